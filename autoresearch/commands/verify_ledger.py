"""`verify-ledger`: is everything that was recorded still what was recorded?

Checks the chain of rows, the commit of every verdict and what it says, and the locked
apparatus. On request one experiment is trained and scored once more, in the present
cage, with the seed of its first run; nothing of that is recorded.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from autoresearch import git
from autoresearch.errors import ExperimentFailed, LabError, NotReady
from autoresearch.experiment import Candidate, Proposal, Row
from autoresearch.git import GitError, Repository
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure import evaluator, trainer
from autoresearch.measure.workbench import Workbench, list_usable_devices
from autoresearch.records import hash_chain
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.run.seeds import compute_seed
from autoresearch.text import format_exact


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """What was found."""

    entries: int  # of the chain
    adopted: int  # of them written before there was a chain, or rebuilt
    head: str
    commits: int  # verdicts that git knows
    problems: tuple[str, ...]
    again: "Remeasurement | None"  # None: nobody asked

    def to_json(self) -> dict[str, object]:
        """The contract of `verify-ledger --json`."""
        found = asdict(self)
        return {**found, "whole": not self.problems, "problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class Remeasurement:
    """One experiment, measured once more."""

    experiment: int
    seed: int
    recorded: tuple[float, ...]
    value: float

    @property
    def difference(self) -> float:
        """The new value less the first recorded one."""
        return self.value - self.recorded[0]


def verify(lab: Lab, again: int | None) -> VerificationResult:
    """Check it all, or LabError when there is nothing to check."""
    if not lab.ledger_path.exists():
        raise NotReady(f"{lab.folder} has no ledger yet. Next: autoresearch run")
    ledger = Ledger(lab.ledger_path)
    ledger.require_intact()
    try:
        rows = ledger.load_rows()
        known = [row for row in rows if row.commit]
        problems = (
            *hash_chain.find_chain_problems(ledger.db),
            *find_commit_problems(Repository(lab.folder), ledger, known),
            *find_apparatus_problems(lab, ledger),
        )
        measured = None if again is None else remeasure_experiment(lab, ledger, again)
        entries, adopted = hash_chain.count_entries(ledger.db)
        return VerificationResult(
            *(entries, adopted, ledger.chain_head, len(known)),
            problems,
            measured,
        )
    finally:
        ledger.close()


def find_commit_problems(
    book: Repository, ledger: Ledger, rows: list[Row]
) -> Iterator[str]:
    """Verdicts whose commit is not what the ledger says, or that only git knows."""
    mine = {row.number for row in rows}
    for number, _, _ in book.list_verdict_commits():
        if number not in mine:
            yield f"git knows experiment {number}, and the ledger does not"
    for row in rows:
        assert row.commit is not None
        name = f"experiment {row.number}"
        if book.find_commit(row.number) != row.commit:
            yield f"{name}: refs/autoresearch/{row.number} is not its commit"
        try:
            file = book.read_file_at(row.commit, "train.py")
            message = book.run_git("log", "-1", "--format=%B", row.commit)
        except GitError:
            yield f"{name}: git has lost its commit {row.commit[:12]}"
            continue
        if file is None or file[0] != row.blob:
            yield f"{name}: the train.py of its commit is not the one that ran"
        tell = git.parse_trailers(message)
        said = tell.get("Score", "")
        if not has_matching_scores(said.split(), row.values):
            scores = " ".join(map(repr, row.values))
            yield f"{name}: its commit says {said or 'nothing'}, the ledger {scores}"
        link = tell.get("Chain")
        if (
            link
            and not is_rebuilt(ledger)
            and link not in hash_chain.load_links_before(ledger.db, row.number)
        ):
            yield f"{name}: its commit names a link that the chain does not have"


def has_matching_scores(said: Sequence[str], values: Sequence[float]) -> bool:
    """Whether a commit names the first scores of an experiment, and any at all.

    Commits of versions before this one have six decimals.
    """
    if bool(said) != bool(values) or len(said) > len(values):
        return False
    told = zip(said, values, strict=False)
    return all(words in (repr(value), f"{value:.6f}") for words, value in told)


def is_rebuilt(ledger: Ledger) -> bool:
    """Whether the ledger was made anew from git, whose chain then began anew too."""
    _, adopted = hash_chain.count_entries(ledger.db)
    return adopted > 0


def find_apparatus_problems(lab: Lab, ledger: Ledger) -> Iterator[str]:
    """Whether the last series was measured with the prepare.py and data of today."""
    facts = ledger.load_series_facts(ledger.find_last_series())
    try:
        found = apparatus.load_apparatus(lab, Repository(lab.folder))
        now = {"apparatus": found.blob, "data": found.load_fingerprint()}
        for key, value in now.items():
            if key in facts and facts[key] != value:
                then = str(facts[key])[:16]
                yield f"{key} is {value[:16]}, the last series had {then}"
        found.verify_unchanged()
    except LabError as error:
        yield str(error)


def remeasure_experiment(lab: Lab, ledger: Ledger, number: int) -> Remeasurement:
    """Train and score an experiment once more, as a night would."""
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    row = ledger.load_row(number)
    if row is None or not row.values:
        raise LabError(
            f"experiment {number} has no score to compare with. "
            "Next: autoresearch log   (numbers with a value)"
        )
    ledger.series = row.series
    seed = compute_seed(ledger.base_seed, 0)
    proposal = Proposal(number, row.title, ledger.load_source(row.blob), "", row.author)
    with lab.hold_lock():
        session.clean_up_killed_session(lab)
        bench, slot = (
            Workbench.open(lab, apparatus=found),
            list_usable_devices(found)[0],
        )
        candidate = Candidate(proposal, row.blob)
        try:
            run = trainer.train_candidate(bench, candidate, seed=seed, device=slot)
            value = evaluator.score_run(bench, run, device=slot).value
            trainer.discard_runs(run)
        except ExperimentFailed as failed:
            raise LabError(
                f"experiment {number} did not run again: {failed}. Next: autoresearch "
                f"show {number}"
            ) from None
    return Remeasurement(number, seed, row.values, value)


def format_verification(found: VerificationResult) -> list[str]:
    """The same for people."""
    words = [
        f"chain      {found.entries} entries, head {found.head[:16]}",
        f"commits    {found.commits} verdicts in git",
    ]
    if found.adopted:
        words.append(f"           {found.adopted} entries were chained afterwards")
    if found.again:
        new = found.again
        words.append(
            f"again      experiment {new.experiment} with seed {new.seed}: "
            f"{format_exact(new.value)}, recorded {json.dumps(new.recorded)}, "
            f"difference {format_exact(new.difference, '+')}"
        )
    return [*words, *(f"PROBLEM    {problem}" for problem in found.problems)]
