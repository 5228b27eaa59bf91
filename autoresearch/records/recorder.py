"""Records proposals and verdicts in the ledger, git and results.tsv, consistently.

Promises: it survives kill -9 at any point. A commit exists before the ledger names it,
the ledger has a verdict before a ref points to its commit, and `publish_pending`
finishes at the next start what was interrupted. results.tsv is rewritten at every
start.

Not covered: two writers. The process that records verdicts holds the lab's lock.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import fmean

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
from autoresearch.records import admission, results_tsv
from autoresearch.records.commit_message import (
    commit_from_message,
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
RenameCommit = Callable[[str], None]  # record the new id of a commit


class Recorder:
    """Writes what is proposed and decided in one lab."""

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
        self._notify = notify  # shows the user a message
        self._program_error = ""  # the last one shown about program.md
        self._notified_topics: set[str] = set()  # of `notify_once`
        self.program = Program()
        self._program_blob = ""
        self.reload_program(first=True)

    def reload_program(self, *, first: bool = False) -> Program:
        """Read program.md again; a broken one never stops a session.

        The last good one stays in force, and the user is notified of the error. On the
        `first` read, raises LabError.
        """
        try:
            text = self.lab.read_file("program.md")
            blob = compute_blob_id(text)
            if blob != self._program_blob:
                self.program = program.parse_program(text)
                self.ledger.store_source(blob, text)
                self._program_blob = blob
                if warning := program.find_ignored_settings(text):
                    self._notify(warning)
        except LabError as error:
            if first:
                raise
            if str(error) != self._program_error:
                self._program_error = str(error)
                self._notify(f"{error}; the last good program.md stays in force")
        return self.program

    # -- proposal -> candidate ---------------------------------------------------------

    def admit_proposal(self, proposal: Proposal) -> Proposal:
        """Record a proposal under a number, with the current program.md."""
        proposal = replace(proposal, program=self._program_blob)
        blob = compute_blob_id(proposal.source)
        return self.ledger.admit_proposal(
            proposal, blob, constraints.fingerprint_code(proposal.source)
        )

    def store_candidate(self, proposal: Proposal, *, again: bool = False) -> Candidate:
        """Check a proposal and write its train.py into git.

        Raises ExperimentFailed ("refused" or "duplicate"). A baseline is the user's own
        and is only required to be Python; so is a second look at an experiment
        (`again`, or by the harness), which repeats code on purpose.
        """
        if proposal.parent and proposal.author != HARNESS_AUTHOR and not again:
            self._require_admissible(proposal)
        elif why := constraints.find_python_fault(proposal.source):
            raise ExperimentFailed(Failure(proposal, "refused", why))
        return Candidate(proposal, self.repository.write_blob(proposal.source))

    def _require_admissible(self, proposal: Proposal) -> None:
        if proposal.refused:
            raise ExperimentFailed(Failure(proposal, "refused", proposal.refused))
        if failure := admission.find_rejection(self.ledger, proposal, self.program):
            raise ExperimentFailed(failure)

    # -- verdict -> ledger, git, results.tsv -------------------------------------------

    def record_verdict(self, verdict: Verdict, again: Scores = ()) -> Row:
        """Write a verdict to git, the ledger and results.tsv.

        again: runs of the champion made for this verdict, already in the ledger.
        """
        at = float(int(time.time()))
        commit = None
        if not is_ledger_only(verdict):
            parent = self.repository.head_commit()
            if verdict.decision != "keep" and verdict.against is not None:
                parent = self._find_commit(verdict.against.number)
            blob = compute_blob_id(verdict.proposal.source)
            message = self.build_verdict_commit(verdict, at, again)
            commit = self.repository.create_commit(message, blob, parent)
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
        """Point git's refs to the commit of a verdict in the ledger. Idempotent."""
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
        """Make the former champion champion again: in git, then in the ledger."""
        at = float(int(time.time()))
        message = self.build_reversion_commit(champion, former, why, at)
        commit = self.repository.create_commit(
            message, former.blob, self.repository.head_commit()
        )
        self.ledger.record_reversion(former, champion, why, commit, at)
        self.publish_reversion(self.ledger.load_reversions()[-1])
        self._notify(
            f"experiment {champion.number} was taken back, experiment "
            f"{former.number} is champion again: {why}"
        )

    def publish_reversion(self, reversion: Reversion) -> None:
        """Point git's refs to the commit of a reversion in the ledger. Idempotent."""
        number = reversion.reverted_number
        why = f"experiment {number} was taken back"
        rename = partial(self.ledger.rename_reversion_commit, number)
        commit = self._advance_branch(
            reversion.commit, HARNESS_AUTHOR, reversion.reverted_at, rename, why
        )
        self.repository.set_reverted_ref(number, commit)
        self.ledger.mark_reversion_published(number)

    def _advance_branch(
        self, commit: str, author: str, at: float, rename: RenameCommit, why: str
    ) -> str:
        """Move the branch to a commit, created again if the user committed meanwhile.

        The ledger gets the new id before the branch moves, so that a crash in between
        does not lead to a second commit.
        """
        repository = self.repository
        while not repository.has_commit(commit):
            branch, head = repository.current_branch(), repository.head_commit()
            parent = repository.run_git("rev-parse", f"{commit}^")
            if parent != head:
                message = repository.run_git("log", "-1", "--format=%B", commit)
                file = repository.read_file_at(commit, "train.py")
                assert file is not None, "every commit of ours has a train.py"
                commit = repository.create_commit(
                    commit_from_message(message, author, at), file[0], head
                )
                rename(commit)
            repository.advance_branch(branch, commit, head)
        if not repository.update_working_file(f"{commit}^", commit):
            self._notify(
                f"{why}, but train.py in your folder has your own edits and was left "
                "unchanged"
            )
        return commit

    def _find_commit(self, number: int) -> str:
        """The commit of an earlier experiment; the branch's head if it is missing."""
        return self.repository.find_commit(number) or self.repository.head_commit()

    def publish_pending(self) -> int:
        """Publish what a crash left in the ledger only; the count of such verdicts."""
        pending = self.ledger.load_unpublished_rows()
        for row in pending:
            self.publish_verdict(row)
        for reversion in self.ledger.load_reversions():
            if not reversion.is_in_git:
                self.publish_reversion(reversion)
        self.write_results()
        return len(pending)

    def write_results(self) -> None:
        """Rewrite results.tsv."""
        results_tsv.write_results(
            self.lab.results_path, self.apparatus.metric, self.ledger.load_rows()
        )

    def notify_once(self, words: str, about: str) -> None:
        """Notify the user of something at most once a session; `about`: its topic."""
        if about not in self._notified_topics:
            self._notified_topics.add(about)
            self._notify(words)

    # -- the text of a verdict ---------------------------------------------------------

    def build_verdict_commit(
        self, verdict: Verdict, at: float, again: Scores = ()
    ) -> VerdictCommit:
        """The message of a verdict's commit."""
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
        """The message of the commit that reverts a champion."""
        row = self.ledger.load_row(champion.number)
        what = git.shorten_title("" if row is None else row.title)
        delta = fmean(former.values) - fmean(champion.values)
        trailers = (
            ("Taken-back", str(champion.number)),
            ("Verdict", f"taken back: {why}"),
            (
                "Instead",
                f"{former.number} at {format_all_digits(fmean(former.values))}",
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
            outcome = f"{metric}={format_score(fmean(verdict.values))}"
        else:
            delta = verdict.delta
            if delta is None:
                delta = fmean(verdict.values) - fmean(verdict.against.values)
            outcome = f"Δ{metric}={format_delta(delta)}"
            if before := self.load_unproven_ancestors(verdict):
                outcome += f", {len(before) + 1} changes"
        return f"[AutoResearch] {what} | {outcome}"

    def load_unproven_ancestors(self, verdict: Verdict) -> tuple[int, ...]:
        """Unproven experiments whose changes it contains besides its own."""
        if verdict.against is None:
            return ()
        return self.ledger.load_unproven_ancestors(verdict.proposal.parent)

    # -- the start of a session --------------------------------------------------------

    def choose_start_source(self) -> tuple[str, str]:
        """(train.py to measure first, reason): the user's, or the last champion's."""
        last = self.ledger.find_last_keep()
        if last is None:
            source = self.lab.read_file("train.py")
            return source, "the train.py of this lab, as it stands"
        old = self.ledger.load_series_facts(last.series)
        new = self.ledger.load_series_facts(self.ledger.series)
        changed = [
            f"{key} {old.get(key)} -> {new.get(key)}"
            for key in new
            if old.get(key) != new.get(key)
        ]
        return self.ledger.load_source(last.blob), f"a new series: {'; '.join(changed)}"
