"""`replicate`: does the night's gain come again? Champion against baseline, in pairs.

Both are trained on the same fresh seeds, one right after the other and in turn first:
whatever drifts hits both. Validation and the sealed holdout are scored. Every pair goes
into the ledger as soon as it is done, and a second call goes on where one stopped.

Not covered: another machine or another text (clone the lab there, and replicate).
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from autoresearch.errors import ExperimentFailed, NotReady, RunStopped
from autoresearch.experiment import Candidate, Failure, Proposal, Row, Score
from autoresearch.git import Repository
from autoresearch.lab import apparatus
from autoresearch.lab.folder import Lab
from autoresearch.measure.messages import RunResult
from autoresearch.records import queries
from autoresearch.records.ledger import Ledger
from autoresearch.run import session
from autoresearch.run.dispatcher import Dispatcher
from autoresearch.run.seeds import compute_seed
from autoresearch.run.session import Session
from autoresearch.sandbox.process import StopFlag
from autoresearch.stats.paired import Certificate
from autoresearch.text import format_exact

AUTHOR = "replicate"
MAX_FAILED_PAIRS = 3  # pairs; after that there is something wrong


@dataclass(frozen=True, slots=True)
class ComparedCandidates:
    """What is compared."""

    baseline: Candidate
    champion: Candidate


@dataclass(frozen=True, slots=True)
class SeedPair:
    """One seed's two runs; or what went wrong."""

    seed: int
    scores: tuple[Score, Score] | None  # of the baseline, of the champion
    why: str = ""


def replicate(lab: Lab, pairs: int, stop: StopFlag) -> Iterator[SeedPair]:
    """Run until so many pairs are in the ledger; each as it comes."""
    with session.open_session(
        lab, session.SessionOptions(proposers=("mailbox",)), stop
    ) as (
        found,
        _,
    ):
        ledger = found.recorder.ledger
        baseline, champion = load_baseline_and_champion(ledger)
        both = ComparedCandidates(
            load_candidate(ledger, baseline), load_candidate(ledger, champion)
        )
        yield from run_pairs(found, both, pairs)
        found.recorder.write_results()


def run_pairs(
    found: Session, rivals: ComparedCandidates, pairs: int
) -> Iterator[SeedPair]:
    """The same in an open session."""
    ledger, dispatcher = found.recorder.ledger, Dispatcher(found)
    numbers = [c.proposal.number or 0 for c in (rivals.champion, rivals.baseline)]
    done = len(queries.load_pairs(ledger, *numbers))
    used = set[int]().union(*(queries.load_used_seeds(ledger, n) for n in numbers))
    fresh = (s for n in count() if (s := compute_seed(found.seed, n)) not in used)
    ended: deque[SeedPair] = deque()
    failed = started = under_way = 0
    while done < pairs and failed < MAX_FAILED_PAIRS:
        while (
            dispatcher.free_count
            and done + under_way < pairs
            and not found.workbench.stop.soon
        ):
            order = [rivals.baseline, rivals.champion]
            order = order[::-1] if started % 2 else order
            run_pair(dispatcher, order, rivals.baseline, next(fresh), ended.append)
            started, under_way = started + 1, under_way + 1
        if not dispatcher.is_running:
            return  # a stop was requested
        try:
            dispatcher.receive()
        except RunStopped:
            return
        while ended:
            pair, under_way = ended.popleft(), under_way - 1
            failed, done = failed + (not pair.scores), done + bool(pair.scores)
            if pair.scores is not None:
                ledger.record_runs(pair.scores, "replicate")
            yield pair


def run_pair(
    dispatcher: Dispatcher,
    order: list[Candidate],
    baseline: Candidate,
    seed: int,
    finish: Callable[[SeedPair], None],
) -> None:
    """Both rivals on one seed, one after the other: the second where the first ran.

    `finish` gets the pair, with the baseline's score first.
    """
    scores: dict[str, Score] = {}

    def hear(ended: RunResult) -> None:
        if isinstance(ended.outcome, Failure):
            finish(SeedPair(seed, None, str(ExperimentFailed(ended.outcome))))
            return
        scores[ended.request.candidate.blob] = ended.outcome
        if len(scores) < len(order):
            dispatcher.start_run(order[1], seed, hear)
            return
        one, other = (scores[c.blob] for c in order)
        finish(SeedPair(seed, (one, other) if order[0] is baseline else (other, one)))

    dispatcher.start_run(order[0], seed, hear)


def load_baseline_and_champion(ledger: Ledger) -> tuple[Row, Row]:
    """(baseline, champion) of the present series, or NotYet."""
    champions = ledger.load_champions()
    if len(champions) < 2:
        raise NotReady(
            "nothing is kept in this series yet, so there is nothing to replicate. "
            "Next: autoresearch run"
        )
    rows = [ledger.load_row(one.number) for one in (champions[0], champions[-1])]
    assert rows[0] is not None
    assert rows[1] is not None
    return rows[0], rows[1]


def load_candidate(ledger: Ledger, row: Row) -> Candidate:
    """An experiment, to be run once more."""
    source = ledger.load_source(row.blob)
    proposal = Proposal(row.number, row.title, source, row.parent, row.author)
    return Candidate(replace(proposal, program=row.program), row.blob)


def load_certificate(lab: Lab) -> Certificate | None:
    """What the pairs in the ledger say; None before there is one."""
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    ledger = Ledger(lab.ledger_path, lower_is_better=found.lower_is_better)
    try:
        baseline, champion = load_baseline_and_champion(ledger)
        return queries.load_certificate(ledger, champion.number, baseline.number)
    finally:
        ledger.close()


def format_replication(metric: str, found: Certificate) -> list[str]:
    """The certificate for people."""
    pairs = "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"
    said = [
        f"experiment {found.champion} against the baseline, {pairs} of fresh seeds",
        f"  {metric:<12} gain {format_mean_interval(found.gain, found.low, found.high)}",
    ]
    if found.holdout_gain is not None:
        words = format_mean_interval(
            found.holdout_gain, found.holdout_low, found.holdout_high
        )
        said.append(f"  {'holdout':<12} gain {words}")
    if found.gap is not None:
        words = format_mean_interval(found.gap, found.gap_low, found.gap_high)
        said.append(f"  {'gap':<12}      {words}   (above 0: fits this text only)")
    return said


def format_mean_interval(mean: float, low: float | None, high: float | None) -> str:
    """A mean and its 95 % interval."""
    if low is None or high is None:
        return f"{format_exact(mean, '+')}   (one pair says nothing of its own scatter)"
    between = f"{format_exact(low, '+')} to {format_exact(high, '+')}"
    return f"{format_exact(mean, '+')}   95 % interval {between}"
