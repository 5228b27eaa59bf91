"""The books of a lab: ledger, git and results.tsv, kept in agreement.

The order of writing is what survives a crash: the commit exists before the ledger
names it, the ledger has the verdict before a ref does, and `settle` finishes at the
next start whatever a kill -9 left undone. results.tsv is written anew at every start.

Not covered: two writers. Whoever records verdicts holds the lab's lock.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from autoresearch import git
from autoresearch.errors import ExperimentFailed, LabError
from autoresearch.experiment import (
    HARNESS_AUTHOR,
    Candidate,
    Champion,
    Failure,
    Proposal,
    Row,
    Scores,
    Verdict,
)
from autoresearch.git import Repository, VerdictCommit, compute_blob_id
from autoresearch.lab import constraints, program
from autoresearch.lab.apparatus import Apparatus
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.records import queries, results_tsv
from autoresearch.records.commit_message import (
    commit_from_message,
    compute_mean,
    escape_reason,
    format_all_digits,
    format_decision_trailer,
    format_ended_share,
    format_remeasured_runs,
    format_rival,
    is_ledger_only,
    list_run_seeds,
)
from autoresearch.records.ledger import Ledger, Reversion
from autoresearch.text import format_delta, format_score

PACK_INTERVAL = 500  # experiments
RenameCommit = Callable[[str], None]  # write down the name that a commit got


class Recorder:
    """What was proposed, tried and decided in one lab, and where it is written."""

    def __init__(
        self,
        lab: Lab,
        apparatus: Apparatus,
        ledger: Ledger,
        notify: Callable[[str], None],
    ) -> None:
        self.lab = lab
        self.apparatus = apparatus
        self.ledger = ledger
        self.repository = Repository(lab.folder)
        self._notify = notify  # tells the human something
        self._program_error = ""  # what was last said about program.md
        self._notified_topics: set[str] = set()  # what need not be said again tonight
        self.program = Program()
        self._program_blob = ""
        self.reload_program(first=True)

    def reload_program(self, *, first: bool = False) -> Program:
        """program.md as it stands; a broken one never stops a night.

        The last good one stays in force, and a notice says what is wrong with the new.
        """
        try:
            text = self.lab.read_file("program.md")
            blob = compute_blob_id(text)
            if blob != self._program_blob:
                self.program = program.parse_program(text)
                self.ledger.store_source(blob, text)
                self._program_blob = blob
                if doubt := program.find_ignored_settings(text):
                    self._notify(doubt)
        except LabError as error:
            if first:
                raise
            if str(error) != self._program_error:
                self._program_error = str(error)
                self._notify(f"{error}; the last good program.md stays in force")
        return self.program

    # -- proposal -> candidate ---------------------------------------------------------

    def admit_proposal(self, proposal: Proposal) -> Proposal:
        """Put a proposal on record under a number, with the program.md it goes by."""
        proposal = replace(proposal, program=self._program_blob)
        blob = compute_blob_id(proposal.source)
        return self.ledger.admit_proposal(
            proposal, blob, constraints.fingerprint_code(proposal.source)
        )

    def store_candidate(self, proposal: Proposal, *, again: bool = False) -> Candidate:
        """Proposal -> Candidate, written into git; or Failed("refused" | "duplicate").

        A baseline is the human's own and is only required to be Python; a second look
        at an experiment (`again`, or the harness's) is the same code on purpose.
        """
        if proposal.parent and proposal.author != HARNESS_AUTHOR and not again:
            self._require_admissible(proposal)
        elif why := constraints.find_python_fault(proposal.source):
            raise ExperimentFailed(Failure(proposal, "refused", why))
        return Candidate(proposal, self.repository.write_blob(proposal.source))

    def _require_admissible(self, proposal: Proposal) -> None:
        limits = constraints.ChangeLimits(
            self.program.max_constants, self.program.max_changed_lines
        )
        parent = self.ledger.load_source(proposal.parent)
        if why := proposal.refused or constraints.find_violation(
            proposal.source, parent, limits
        ):
            raise ExperimentFailed(Failure(proposal, "refused", why))
        code = constraints.fingerprint_code(proposal.source)
        twin = self.ledger.find_same_code(code, proposal.parent, proposal.number)
        if twin is not None:
            detail = f"the same code as experiment {twin}"
            raise ExperimentFailed(Failure(proposal, "duplicate", detail))
        if near := queries.describe_near_duplicate(
            self.ledger, proposal.source, proposal.parent
        ):
            raise ExperimentFailed(Failure(proposal, "duplicate", near))

    # -- verdict -> ledger, git, results.tsv -------------------------------------------

    def record_verdict(self, verdict: Verdict, again: Scores = ()) -> Row:
        """Write a verdict everywhere it belongs.

        `again`: runs of the champion on the way to it, which the ledger has already.
        """
        at = float(int(time.time()))
        commit = None
        if not is_ledger_only(verdict):
            parent = self.repository.head_commit()
            if verdict.decision != "keep" and verdict.against is not None:
                parent = self._find_commit(verdict.against.number)
            blob = compute_blob_id(verdict.proposal.source)
            entry = self.build_verdict_commit(verdict, at, again)
            commit = self.repository.create_commit(entry, blob, parent)
        row = self.ledger.record_verdict(verdict, commit=commit, at=at)
        if commit is not None:
            self.publish_verdict(row)
        if again:
            self.write_results()
        else:
            results_tsv.append_result(self.lab.results_path, row)
        if row.number % PACK_INTERVAL == PACK_INTERVAL - 1:
            self.repository.pack_objects()
        return row

    def publish_verdict(self, row: Row) -> None:
        """Make git know what the ledger knows of a verdict. Doing it twice is fine."""
        commit = row.commit
        assert commit is not None
        if row.decision == "keep":
            why = f"experiment {row.number} was kept"
            rename = partial(self.ledger.rename_verdict_commit, row.number)
            commit = self._advance_branch(
                commit, row.author, row.decided_at, rename, why
            )
        self.repository.set_experiment_ref(row.number, commit)
        self.ledger.mark_verdict_published(row.number)

    def revert_champion(self, champion: Champion, former: Champion, why: str) -> None:
        """Put the champion before back in its place: in git, then in the ledger."""
        at = float(int(time.time()))
        entry = self.build_reversion_commit(champion, former, why, at)
        commit = self.repository.create_commit(
            entry, former.blob, self.repository.head_commit()
        )
        self.ledger.record_reversion(former, champion, why, commit, at)
        self.publish_reversion(self.ledger.load_reversions()[-1])
        self._notify(
            f"experiment {champion.number} was taken back, experiment "
            f"{former.number} reigns again: {why}"
        )

    def publish_reversion(self, back: Reversion) -> None:
        """Make git know of it. Doing it twice is fine."""
        why = f"experiment {back.reverted_number} was taken back"
        rename = partial(self.ledger.rename_reversion_commit, back.reverted_number)
        commit = self._advance_branch(
            back.commit, "autoresearch", back.reverted_at, rename, why
        )
        self.repository.set_reverted_ref(back.reverted_number, commit)
        self.ledger.mark_reversion_published(back.reverted_number)

    def _advance_branch(
        self, commit: str, author: str, at: float, rename: RenameCommit, why: str
    ) -> str:
        """Move the branch to a commit, remade if the human committed meanwhile.

        The ledger learns of the new name first: a crash in between is no second commit.
        """
        book = self.repository
        while not book.has_commit(commit):
            branch, head = book.current_branch(), book.head_commit()
            parent = book.run_git("rev-parse", f"{commit}^")
            if parent != head:
                message = book.run_git("log", "-1", "--format=%B", commit)
                file = book.read_file_at(commit, "train.py")
                assert file is not None, "every commit of ours has a train.py"
                commit = book.create_commit(
                    commit_from_message(message, author, at), file[0], head
                )
                rename(commit)
            book.advance_branch(branch, commit, head)
        if not book.update_working_file(f"{commit}^", commit):
            self._notify(
                f"{why}, but train.py in your folder has edits of yours and was left "
                "as it is"
            )
        return commit

    def _find_commit(self, number: int) -> str:
        """The commit of an earlier experiment; the branch if git has lost it."""
        return self.repository.find_commit(number) or self.repository.head_commit()

    def publish_pending(self) -> int:
        """After a crash: finish in git what the ledger has; how many there were."""
        waiting = self.ledger.load_unpublished_rows()
        for row in waiting:
            self.publish_verdict(row)
        for back in self.ledger.load_reversions():
            if not back.is_in_git:
                self.publish_reversion(back)
        self.write_results()
        return len(waiting)

    def write_results(self) -> None:
        """Write results.tsv anew."""
        results_tsv.write_results(
            self.lab.results_path, self.apparatus.metric, self.ledger.load_rows()
        )

    def notify_once(self, words: str, about: str) -> None:
        """Tell the human something that would be true again at every verdict."""
        if about not in self._notified_topics:
            self._notified_topics.add(about)
            self._notify(words)

    # -- the text of a verdict ---------------------------------------------------------

    def build_verdict_commit(
        self, verdict: Verdict, at: float, again: Scores = ()
    ) -> VerdictCommit:
        """What the commit of a verdict says."""
        proposal, against = verdict.proposal, verdict.against
        scores = " ".join(map(format_all_digits, verdict.values))
        trailers = [
            ("Experiment", str(proposal.number)),
            ("Verdict", format_decision_trailer(verdict)),
            ("Score", scores),
            ("Seeds", " ".join(map(str, list_run_seeds(verdict.evidence)))),
            ("Delta", "" if verdict.delta is None else f"{verdict.delta:+}"),
            ("Runs", str(len(verdict.values))),
            ("Against", "" if against is None else format_rival(verdict)),
            ("On-the-way", " ".join(map(str, self.load_unproven_ancestors(verdict)))),
            ("Ended-at", format_ended_share(verdict)),
            ("Remeasured", format_remeasured_runs(again)),
            ("Proposed-by", proposal.author),
            ("Program", proposal.program),
            ("Ran", compute_blob_id(proposal.source)),
            ("Series", self.ledger.series),
            ("Chain", self.ledger.chain_head),
        ]
        return VerdictCommit(
            self.format_title(verdict),
            escape_reason(proposal.reason),
            tuple((key, text) for key, text in trailers if text),
            proposal.author,
            at,
        )

    def build_reversion_commit(
        self, champion: Champion, former: Champion, why: str, at: float
    ) -> VerdictCommit:
        """What the commit that takes a champion back says."""
        row = self.ledger.load_row(champion.number)
        what = git.shorten_title("" if row is None else row.title)
        delta = compute_mean(former.values) - compute_mean(champion.values)
        trailers = (
            ("Taken-back", str(champion.number)),
            ("Verdict", f"taken back: {why}"),
            (
                "Instead",
                f"{former.number} at {format_all_digits(compute_mean(former.values))}",
            ),
            ("Ran", former.blob),
            ("Series", self.ledger.series),
            ("Chain", self.ledger.chain_head),
        )
        metric = self.apparatus.short_metric
        title = (
            f"[AutoResearch] take back {champion.number}: {what} | "
            f"Δ{metric}={format_delta(delta)}"
        )
        return VerdictCommit(title, "", trailers, "autoresearch", at)

    def format_title(self, verdict: Verdict) -> str:
        """`[AutoResearch] MATRIX_LR 0.04 -> 0.05 | Δbpb=-0.0012`"""
        what = git.shorten_title(verdict.proposal.title)
        metric = self.apparatus.short_metric
        if isinstance(verdict.evidence, Failure):
            outcome: str = verdict.evidence.kind
        elif verdict.against is None:
            outcome = f"{metric}={format_score(compute_mean(verdict.values))}"
        else:
            delta = verdict.delta
            if delta is None:
                delta = compute_mean(verdict.values) - compute_mean(
                    verdict.against.values
                )
            outcome = f"Δ{metric}={format_delta(delta)}"
            if before := self.load_unproven_ancestors(verdict):
                outcome += f", {len(before) + 1} changes"
        return f"[AutoResearch] {what} | {outcome}"

    def load_unproven_ancestors(self, verdict: Verdict) -> tuple[int, ...]:
        """What it brings besides its own change: the unproven it began from."""
        if verdict.against is None:
            return ()
        return self.ledger.load_unproven_ancestors(verdict.proposal.parent)

    # -- where a night begins ----------------------------------------------------------

    def choose_start_source(self) -> tuple[str, str]:
        """(train.py to measure first, why): the human's, or a champion of before."""
        last = self.ledger.find_last_keep()
        if last is None:
            return self.lab.read_file(
                "train.py"
            ), "the train.py of this lab, as it stands"
        old = self.ledger.load_series_facts(last.series)
        new = self.ledger.load_series_facts(self.ledger.series)
        changed = [
            f"{key} {old.get(key)} -> {new.get(key)}"
            for key in new
            if old.get(key) != new.get(key)
        ]
        return self.ledger.load_source(last.blob), f"a new series: {'; '.join(changed)}"
