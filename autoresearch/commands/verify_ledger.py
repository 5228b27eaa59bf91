"""`autoresearch verify-ledger`: is everything still as it was recorded?

Checks the hash chain of the rows, every verdict's commit and what its message says, and
the locked prepare.py and its data. On request one experiment is trained and scored once
more, in the current sandbox, with the seed of its first run; that is not recorded.
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
    """What the checks found."""

    entries: int  # in the hash chain
    adopted: int  # of these: older than the chain, or rebuilt from git
    head: str
    commits: int  # verdicts with a commit
    problems: tuple[str, ...]  # one sentence each
    again: "Remeasurement | None"  # None: --again was not given

    def to_json(self) -> dict[str, object]:
        """The contract of `verify-ledger --json`."""
        found = asdict(self)
        return {**found, "whole": not self.problems, "problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class Remeasurement:
    """One experiment, trained and scored once more."""

    experiment: int
    seed: int
    recorded: tuple[float, ...]  # the scores in the ledger, first run first
    value: float  # the new score

    @property
    def difference(self) -> float:
        """The new score minus the first recorded one."""
        return self.value - self.recorded[0]


def verify(lab: Lab, again: int | None) -> VerificationResult:
    """Check everything. `again` is an experiment to run once more.

    Raises NotReady without a ledger, LabError if `again` has no score or fails.
    """
    if not lab.ledger_path.exists():
        raise NotReady(f"{lab.folder} has no ledger yet. Next: autoresearch run")
    ledger = Ledger(lab.ledger_path)
    ledger.require_intact()
    try:
        rows = ledger.load_rows()
        committed = [row for row in rows if row.commit]
        problems = (
            *hash_chain.find_chain_problems(ledger.db),
            *find_commit_problems(Repository(lab.folder), ledger, committed),
            *find_apparatus_problems(lab, ledger),
        )
        remeasured = None if again is None else remeasure_experiment(lab, ledger, again)
        entries, adopted = hash_chain.count_entries(ledger.db)
        return VerificationResult(
            *(entries, adopted, ledger.chain_head, len(committed)),
            problems,
            remeasured,
        )
    finally:
        ledger.close()


def find_commit_problems(
    repository: Repository, ledger: Ledger, rows: list[Row]
) -> Iterator[str]:
    """Verdicts whose commit contradicts the ledger, or that are in git only."""
    in_ledger = {row.number for row in rows}
    for number, _, _ in repository.list_verdict_commits():
        if number not in in_ledger:
            yield f"experiment {number} is in git but not in the ledger"
    for row in rows:
        assert row.commit is not None
        name = f"experiment {row.number}"
        if repository.find_commit(row.number) != row.commit:
            yield f"{name}: refs/autoresearch/{row.number} does not point to its commit"
        try:
            file = repository.read_file_at(row.commit, "train.py")
            message = repository.run_git("log", "-1", "--format=%B", row.commit)
        except GitError:
            yield f"{name}: its commit {row.commit[:12]} is missing from git"
            continue
        if file is None or file[0] != row.blob:
            yield f"{name}: the train.py in its commit is not the one that ran"
        trailers = git.parse_trailers(message)
        score = trailers.get("Score", "")
        if not has_matching_scores(score.split(), row.values):
            recorded = " ".join(map(repr, row.values)) or "no score"
            yield (
                f"{name}: its commit says {score or 'no score'}, the ledger {recorded}"
            )
        link = trailers.get("Chain")
        if (
            link
            and not is_rebuilt(ledger)
            and link not in hash_chain.load_links_before(ledger.db, row.number)
        ):
            yield f"{name}: its commit names a hash that is not in the chain"


def has_matching_scores(written: Sequence[str], values: Sequence[float]) -> bool:
    """Whether the scores in a commit are an experiment's first ones, and not none.

    Early versions wrote six decimals, later ones the whole number.
    """
    if bool(written) != bool(values) or len(written) > len(values):
        return False
    pairs = zip(written, values, strict=False)
    return all(text in (repr(value), f"{value:.6f}") for text, value in pairs)


def is_rebuilt(ledger: Ledger) -> bool:
    """Whether the ledger was rebuilt from git, which starts a new hash chain."""
    _, adopted = hash_chain.count_entries(ledger.db)
    return adopted > 0


def find_apparatus_problems(lab: Lab, ledger: Ledger) -> Iterator[str]:
    """Whether prepare.py and its data are still those of the last series."""
    facts = ledger.load_series_facts(ledger.find_last_series())
    try:
        found = apparatus.load_apparatus(lab, Repository(lab.folder))
        current = {"apparatus": found.blob, "data": found.load_fingerprint()}
        for name, value in current.items():
            if name in facts and facts[name] != value:
                recorded = str(facts[name])[:16]
                yield f"{name} is {value[:16]}, the last series had {recorded}"
        found.verify_unchanged()
    except LabError as error:
        yield str(error)


def remeasure_experiment(lab: Lab, ledger: Ledger, number: int) -> Remeasurement:
    """Train and score an experiment once more, as a night would. Raises LabError."""
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    row = ledger.load_row(number)
    if row is None or not row.values:
        raise LabError(
            f"experiment {number} has no score to compare with. "
            "Next: autoresearch log   (lists those that have one)"
        )
    ledger.series = row.series
    seed = compute_seed(ledger.base_seed, 0)
    proposal = Proposal(number, row.title, ledger.load_source(row.blob), "", row.author)
    with lab.hold_lock():
        session.clean_up_killed_session(lab)
        workbench = Workbench.open(lab, apparatus=found)
        device = list_usable_devices(found)[0]
        candidate = Candidate(proposal, row.blob)
        try:
            run = trainer.train_candidate(
                workbench, candidate, seed=seed, device=device
            )
            value = evaluator.score_run(workbench, run, device=device).value
            trainer.discard_runs(run)
        except ExperimentFailed as failed:
            raise LabError(
                f"experiment {number} failed this time: {failed}. Next: autoresearch "
                f"show {number}"
            ) from None
    return Remeasurement(number, seed, row.values, value)


def format_verification(result: VerificationResult) -> list[str]:
    """The same for people."""
    lines = [
        f"chain      {result.entries} entries, head {result.head[:16]}",
        f"commits    {result.commits} verdicts in git",
    ]
    if result.adopted:
        lines.append(f"           {result.adopted} entries were chained afterwards")
    if result.again:
        new = result.again
        lines.append(
            f"again      experiment {new.experiment} with seed {new.seed}: "
            f"{format_exact(new.value)}, recorded {json.dumps(new.recorded)}, "
            f"difference {format_exact(new.difference, '+')}"
        )
    return [*lines, *(f"PROBLEM    {problem}" for problem in result.problems)]
