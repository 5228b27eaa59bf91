"""The books of a lab: ledger, git and results.tsv, kept in agreement.

The order of writing is what survives a crash: the commit exists before the ledger
names it, the ledger has the verdict before a ref does, and `settle` finishes at the
next start whatever a kill -9 left undone. results.tsv is written anew at every start.

Not covered: two writers. Whoever records verdicts holds the lab's lock.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from statistics import fmean

from autoresearch import chain, notebook, novelty, program, results, rules
from autoresearch.apparatus import Apparatus
from autoresearch.errors import Failed, LabError
from autoresearch.experiment import (
    HARNESS,
    Candidate,
    Champion,
    Failure,
    Proposal,
    Scores,
    Verdict,
)
from autoresearch.lab import Lab, git_blob
from autoresearch.ledger import (
    IN_LEDGER_ONLY,
    Ledger,
    Row,
    TakenBack,
    keep_source,
    seed_of_series,
)
from autoresearch.notebook import Entry, GitFailed, Notebook
from autoresearch.program import Program

# What `rebuild` says of itself.
NOT_IN_GIT = (
    "times, memory and learning curves of runs, the holdout, what replicate ran, what "
    "models were asked, and proposals that were refused or repeated"
)
TIDY_EVERY = 500  # experiments
Rename = Callable[[str], None]  # write down the name that a commit got


class Books:
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
        self.notebook = Notebook(lab.folder)
        self._notify = notify  # tells the human something
        self._broken = ""  # what was last said about program.md
        self._said: set[str] = set()  # what need not be said again tonight
        self.program = Program()
        self._program_blob = ""
        self.read_program(first=True)

    def read_program(self, *, first: bool = False) -> Program:
        """program.md as it stands; a broken one never stops a night.

        The last good one stays in force, and a notice says what is wrong with the new.
        """
        try:
            text = self.lab.read("program.md")
            blob = git_blob(text)
            if blob != self._program_blob:
                self.program = program.parse(text)
                self.ledger.remember(blob, text)
                self._program_blob = blob
                if doubt := program.doubtful(text):
                    self._notify(doubt)
        except LabError as error:
            if first:
                raise
            if str(error) != self._broken:
                self._broken = str(error)
                self._notify(f"{error}; the last good program.md stays in force")
        return self.program

    # -- proposal -> candidate ---------------------------------------------------------

    def admit(self, proposal: Proposal) -> Proposal:
        """Put a proposal on record under a number, with the program.md it goes by."""
        proposal = replace(proposal, program=self._program_blob)
        blob = git_blob(proposal.source)
        return self.ledger.admit(proposal, blob, rules.fingerprint(proposal.source))

    def write_down(self, proposal: Proposal, *, again: bool = False) -> Candidate:
        """Proposal -> Candidate, written into git; or Failed("refused" | "duplicate").

        A baseline is the human's own and is only required to be Python; a second look
        at an experiment (`again`, or the harness's) is the same code on purpose.
        """
        if proposal.parent and proposal.author != HARNESS and not again:
            self._check(proposal)
        elif why := rules.not_python(proposal.source):
            raise Failed(Failure(proposal, "refused", why))
        return Candidate(proposal, self.notebook.store(proposal.source))

    def _check(self, proposal: Proposal) -> None:
        limits = rules.Limits(
            self.program.max_constants, self.program.max_changed_lines
        )
        parent = self.ledger.source(proposal.parent)
        if why := proposal.refused or rules.refusal(proposal.source, parent, limits):
            raise Failed(Failure(proposal, "refused", why))
        code = rules.fingerprint(proposal.source)
        twin = self.ledger.same_code(code, proposal.parent, proposal.number)
        if twin is not None:
            detail = f"the same code as experiment {twin}"
            raise Failed(Failure(proposal, "duplicate", detail))
        if near := novelty.near_twin(self.ledger, proposal.source, proposal.parent):
            raise Failed(Failure(proposal, "duplicate", near))

    # -- verdict -> ledger, git, results.tsv -------------------------------------------

    def record(self, verdict: Verdict, again: Scores = ()) -> Row:
        """Write a verdict everywhere it belongs.

        `again`: runs of the champion on the way to it, which the ledger has already.
        """
        at = float(int(time.time()))
        commit = None
        if not in_ledger_only(verdict):
            parent = self.notebook.head()
            if verdict.decision != "keep" and verdict.against is not None:
                parent = self._commit_of(verdict.against.number)
            blob = git_blob(verdict.proposal.source)
            entry = self.entry(verdict, at, again)
            commit = self.notebook.commit(entry, blob, parent)
        row = self.ledger.decide(verdict, commit=commit, at=at)
        if commit is not None:
            self.settle(row)
        if again:
            self.write_results()
        else:
            results.append(self.lab.results, row)
        if row.number % TIDY_EVERY == TIDY_EVERY - 1:
            self.notebook.tidy()
        return row

    def settle(self, row: Row) -> None:
        """Make git know what the ledger knows of a verdict. Doing it twice is fine."""
        commit = row.commit
        assert commit is not None
        if row.decision == "keep":
            why = f"experiment {row.number} was kept"
            rename = partial(self.ledger.rename_commit, row.number)
            commit = self._advance(commit, row.author, row.decided_at, rename, why)
        self.notebook.name(row.number, commit)
        self.ledger.published(row.number)

    def take_back(self, champion: Champion, former: Champion, why: str) -> None:
        """Put the champion before back in its place: in git, then in the ledger."""
        at = float(int(time.time()))
        entry = self.entry_back(champion, former, why, at)
        commit = self.notebook.commit(entry, former.blob, self.notebook.head())
        self.ledger.take_back(former, champion, why, commit, at)
        self.settle_back(self.ledger.taken_back()[-1])
        self._notify(
            f"experiment {champion.number} was taken back, experiment "
            f"{former.number} reigns again: {why}"
        )

    def settle_back(self, back: TakenBack) -> None:
        """Make git know of it. Doing it twice is fine."""
        why = f"experiment {back.experiment} was taken back"
        rename = partial(self.ledger.rename_taken_back, back.experiment)
        commit = self._advance(back.commit, "autoresearch", back.at, rename, why)
        self.notebook.name_taken_back(back.experiment, commit)
        self.ledger.published_taken_back(back.experiment)

    def _advance(
        self, commit: str, author: str, at: float, rename: Rename, why: str
    ) -> str:
        """Move the branch to a commit, remade if the human committed meanwhile.

        The ledger learns of the new name first: a crash in between is no second commit.
        """
        book = self.notebook
        while not book.contains(commit):
            branch, head = book.branch(), book.head()
            parent = book.git("rev-parse", f"{commit}^")
            if parent != head:
                message = book.git("log", "-1", "--format=%B", commit)
                file = book.file_at(commit, "train.py")
                assert file is not None, "every commit of ours has a train.py"
                commit = book.commit(entry_again(message, author, at), file[0], head)
                rename(commit)
            book.advance(branch, commit, head)
        if not book.check_out(f"{commit}^", commit):
            self._notify(
                f"{why}, but train.py in your folder has edits of yours and was left "
                "as it is"
            )
        return commit

    def _commit_of(self, number: int) -> str:
        """The commit of an earlier experiment; the branch if git has lost it."""
        return self.notebook.commit_of(number) or self.notebook.head()

    def catch_up(self) -> int:
        """After a crash: finish in git what the ledger has; how many there were."""
        waiting = self.ledger.not_in_git()
        for row in waiting:
            self.settle(row)
        for back in self.ledger.taken_back():
            if not back.in_git:
                self.settle_back(back)
        self.write_results()
        return len(waiting)

    def write_results(self) -> None:
        """Write results.tsv anew."""
        results.write(self.lab.results, self.apparatus.metric, self.ledger.rows())

    def say_once(self, words: str, about: str) -> None:
        """Tell the human something that would be true again at every verdict."""
        if about not in self._said:
            self._said.add(about)
            self._notify(words)

    # -- the text of a verdict ---------------------------------------------------------

    def entry(self, verdict: Verdict, at: float, again: Scores = ()) -> Entry:
        """What the commit of a verdict says."""
        proposal, against = verdict.proposal, verdict.against
        scores = " ".join(map(digits, verdict.values))
        trailers = [
            ("Experiment", str(proposal.number)),
            ("Verdict", said(verdict)),
            ("Score", scores),
            ("Seeds", " ".join(map(str, seeds_of(verdict.evidence)))),
            ("Delta", "" if verdict.delta is None else f"{verdict.delta:+}"),
            ("Runs", str(len(verdict.values))),
            ("Against", "" if against is None else against_words(verdict)),
            ("On-the-way", " ".join(map(str, self.on_the_way(verdict)))),
            ("Ended-at", ended_at(verdict)),
            ("Remeasured", remeasured(again)),
            ("Proposed-by", proposal.author),
            ("Program", proposal.program),
            ("Ran", git_blob(proposal.source)),
            ("Series", self.ledger.series),
            ("Chain", self.ledger.chain_head),
        ]
        return Entry(
            self.title(verdict),
            paragraph(proposal.reason),
            tuple((key, text) for key, text in trailers if text),
            proposal.author,
            at,
        )

    def entry_back(
        self, champion: Champion, former: Champion, why: str, at: float
    ) -> Entry:
        """What the commit that takes a champion back says."""
        row = self.ledger.row(champion.number)
        what = notebook.summary("" if row is None else row.title)
        delta = mean(former.values) - mean(champion.values)
        trailers = (
            ("Taken-back", str(champion.number)),
            ("Verdict", f"taken back: {why}"),
            ("Instead", f"{former.number} at {digits(mean(former.values))}"),
            ("Ran", former.blob),
            ("Series", self.ledger.series),
            ("Chain", self.ledger.chain_head),
        )
        metric = self.apparatus.short_metric
        title = (
            f"[AutoResearch] take back {champion.number}: {what} | "
            f"Δ{metric}={results.change(delta)}"
        )
        return Entry(title, "", trailers, "autoresearch", at)

    def title(self, verdict: Verdict) -> str:
        """`[AutoResearch] MATRIX_LR 0.04 -> 0.05 | Δbpb=-0.0012`"""
        what = notebook.summary(verdict.proposal.title)
        metric = self.apparatus.short_metric
        if isinstance(verdict.evidence, Failure):
            outcome: str = verdict.evidence.kind
        elif verdict.against is None:
            outcome = f"{metric}={results.score(mean(verdict.values))}"
        else:
            delta = verdict.delta
            if delta is None:
                delta = mean(verdict.values) - mean(verdict.against.values)
            outcome = f"Δ{metric}={results.change(delta)}"
            if before := self.on_the_way(verdict):
                outcome += f", {len(before) + 1} changes"
        return f"[AutoResearch] {what} | {outcome}"

    def on_the_way(self, verdict: Verdict) -> tuple[int, ...]:
        """What it brings besides its own change: the unproven it began from."""
        if verdict.against is None:
            return ()
        return self.ledger.way(verdict.proposal.parent)

    # -- where a night begins ----------------------------------------------------------

    def start_file(self) -> tuple[str, str]:
        """(train.py to measure first, why): the human's, or a champion of before."""
        last = self.ledger.last_keep()
        if last is None:
            return self.lab.read("train.py"), "the train.py of this lab, as it stands"
        old = self.ledger.series_facts(last.series)
        new = self.ledger.series_facts(self.ledger.series)
        changed = [
            f"{key} {old.get(key)} -> {new.get(key)}"
            for key in new
            if old.get(key) != new.get(key)
        ]
        return self.ledger.source(last.blob), f"a new series: {'; '.join(changed)}"


def in_ledger_only(verdict: Verdict) -> bool:
    """Whether nothing of this proposal ran, so that git need not know it."""
    evidence = verdict.evidence
    return isinstance(evidence, Failure) and evidence.kind in IN_LEDGER_ONLY


def said(verdict: Verdict) -> str:
    """Decision and reason, as a trailer."""
    if verdict.decision == "failed":
        assert isinstance(verdict.evidence, Failure)
        return f"failed: {verdict.evidence.kind}: {verdict.evidence.detail}"
    return f"{verdict.decision}: {verdict.reason}"


def ended_at(verdict: Verdict) -> str:
    """The share of its budget at which a hopeless run was ended, as a trailer."""
    if isinstance(verdict.evidence, Failure) and verdict.evidence.share is not None:
        return f"{verdict.evidence.share:.2f}"
    return ""


def remeasured(again: Scores) -> str:
    """The champion's new runs, as a trailer: its experiment, their scores and seeds."""
    if not again:
        return ""
    scores = " ".join(f"{digits(score.value)}/{score.run.seed}" for score in again)
    return f"{again[0].run.candidate.proposal.number} at {scores}"


def seeds_of(evidence: Scores | Failure) -> list[int]:
    """What a candidate was run with."""
    if isinstance(evidence, Failure):
        return []
    return [score.run.seed for score in evidence]


def against_words(verdict: Verdict) -> str:
    """The rival, as a trailer: its experiment and its mean."""
    assert verdict.against is not None
    return f"{verdict.against.number} at {digits(mean(verdict.against.values))}"


def digits(value: float) -> str:
    """A score with every digit it has, so that it comes back from git as it was."""
    return repr(float(value))


def mean(values: Sequence[float]) -> float:
    return fmean(values)


def paragraph(text: str) -> str:
    """A proposer's reason, printable, and unable to pose as trailers."""
    lines = [notebook.one_line(line) for line in text[:4000].splitlines()]
    kept = [f" {line}" if re.match(r"[A-Za-z-]+: ", line) else line for line in lines]
    return "\n".join(kept)


def entry_again(message: str, author: str, at: float) -> Entry:
    """The entry of a commit that has to be made anew."""
    title, _, rest = message.partition("\n")
    body = rest.rpartition("\n\n")[0].strip()
    found = tuple(notebook.read_trailers(message).items())
    return Entry(title, body, found, author, at)


# -- the ledger from git ---------------------------------------------------------------


def rebuild(lab: Lab, ledger: Ledger) -> int:
    """Fill an empty ledger from refs/autoresearch; how many experiments came back.

    What is not in git does not come back: `NOT_IN_GIT`.
    """
    book = Notebook(lab.folder)
    entries = book.entries()
    if not entries:
        raise LabError(
            f"{lab.folder} has no refs/autoresearch/*. Next: git fetch origin "
            "'refs/autoresearch/*:refs/autoresearch/*'"
        )
    with ledger.transaction() as db:
        for sequence, (number, commit, message) in enumerate(entries, 1):
            tell = notebook.read_trailers(message)
            try:
                restore(ledger, book, number, commit, message, tell, sequence)
            except (KeyError, ValueError, GitFailed) as error:
                raise LabError(
                    f"refs/autoresearch/{number} is no verdict of ours ({error}). "
                    f"Next: git update-ref -d refs/autoresearch/{number}"
                ) from None
        for _, _, message in entries:
            restore_again(db, notebook.read_trailers(message))
        for number, commit, message in book.taken_back():
            restore_back(ledger, book, number, commit, message)
        db.execute("update experiment set in_git = 1")
        chain.adopt(db)
    return len(entries)


def restore_again(db: sqlite3.Connection, tell: dict[str, str]) -> None:
    """The champion's runs that were made for the sake of another experiment."""
    number, _, values = tell.get("Remeasured", "").partition(" at ")
    for told in values.split():
        value, _, seed = told.partition("/")
        run = (float(value), int(seed or 0), "champion")
        insert_run(db, int(number), tell["Series"], *run)


def restore_back(
    ledger: Ledger, book: Notebook, number: int, commit: str, message: str
) -> None:
    """A champion that was taken back."""
    tell = notebook.read_trailers(message)
    instead, why = tell["Instead"].partition(" at ")[0], tell["Verdict"]
    at = float(book.git("log", "-1", "--format=%at", commit))
    ledger.db.execute(
        "insert into taken_back values (?, ?, ?, ?, ?, ?, 1)",
        (
            *(number, int(instead), tell["Series"]),
            *(why.removeprefix("taken back: "), at, commit),
        ),
    )


def insert_run(
    db: sqlite3.Connection,
    number: int,
    series: str,
    value: float,
    seed: int,
    occasion: str,
) -> None:
    """A run of which git knows score and seed and no more."""
    db.execute(
        "insert into run (experiment, series, seed, value, error, seconds,"
        " startup_seconds, evaluation_seconds, memory_gb, facts, log, occasion)"
        " values (?, ?, ?, ?, 0, 0, 0, 0, 0, '[]', '', ?)",
        (number, series, seed, value, occasion),
    )


def restore(
    ledger: Ledger,
    book: Notebook,
    number: int,
    commit: str,
    message: str,
    tell: dict[str, str],
    sequence: int,
) -> None:
    """One experiment and its runs, from what its commit says."""
    decision, _, why = tell["Verdict"].partition(": ")
    what = why.partition(": ")[0] if decision == "failed" else None
    share = float(tell["Ended-at"]) if "Ended-at" in tell else None
    if share is not None:
        what = "ended early"
    values = [float(value) for value in tell.get("Score", "").split()]
    found = book.file_at(commit, "train.py")
    if found is None or found[0] != tell["Ran"]:
        raise ValueError("its train.py is not what it says ran")
    source = found[1].decode()
    rival = tell.get("Against", "").partition(" at ")
    against = int(rival[0]) if rival[0] else None
    at = float(book.git("log", "-1", "--format=%at", commit))
    entry = entry_again(message, tell["Proposed-by"], at)
    title = entry.title.removeprefix("[AutoResearch] ").rpartition(" | ")[0]
    db = ledger.db
    series = tell["Series"]
    db.execute(
        "insert or ignore into series values (?, '{}', ?)",
        (series, seed_of_series(series)),
    )
    keep_source(db, tell["Ran"], source)
    score = mean(values) if values else None
    delta = None if score is None else delta_of(tell, score, rival[2])
    db.execute(
        "insert into experiment (number, title, reason, author, parent, blob, code,"
        " program, proposed_at, sequence, series, decision, why, kind, value, delta,"
        " against, decided_at, commit_name, ended_at_share)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(number, title, entry.body, tell["Proposed-by"]),
            *(parent_blob(db, book, commit, against, tell), tell["Ran"]),
            *(rules.fingerprint(source), tell.get("Program", ""), at, sequence),
            *(tell["Series"], decision, why, what, score, delta, against, at, commit),
            share,
        ),
    )
    seeds = [int(seed) for seed in tell.get("Seeds", "").split()]
    for value, seed in zip_longest(values, seeds[: len(values)], fillvalue=0):
        insert_run(db, number, tell["Series"], value, seed, "verdict")


def delta_of(tell: dict[str, str], score: float, rival: str) -> float | None:
    """What a commit says it gained; older ones say it of means only."""
    if "Delta" in tell:
        return float(tell["Delta"])
    return score - float(rival) if rival else None


def parent_blob(
    db: sqlite3.Connection,
    book: Notebook,
    commit: str,
    against: int | None,
    tell: dict[str, str],
) -> str:
    """The train.py an experiment started from, kept; "" for a baseline.

    It may be the human's own, committed between two verdicts; or the newest of the
    unproven that the experiment stands on.
    """
    if way := tell.get("On-the-way", "").split():
        query = "select blob from experiment where number = ?"
        if (known := db.execute(query, (int(way[-1]),)).fetchone()) is not None:
            return str(known[0])
    found = book.file_at(f"{commit}^", "train.py")
    if against is None or found is None:
        return ""
    keep_source(db, found[0], found[1].decode(errors="replace"))
    return found[0]
