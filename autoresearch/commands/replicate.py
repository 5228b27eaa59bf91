"""`autoresearch replicate`: does the gain hold? Champion against baseline, in pairs.

Both are trained on the same fresh seed, one right after the other, with the order
alternating from pair to pair, so that a drift of the machine affects both alike. Both
are scored on validation and on the sealed holdout. A pair enters the ledger as soon as
it is finished, and a second call continues where the first one stopped.

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
from autoresearch.reporting.format import pluralize
from autoresearch.run import session
from autoresearch.run.dispatcher import Dispatcher
from autoresearch.run.seeds import compute_seed
from autoresearch.run.session import Session
from autoresearch.sandbox.process import StopFlag
from autoresearch.stats.paired import Certificate
from autoresearch.text import format_exact

AUTHOR = "replicate"
MAX_FAILED_PAIRS = 3  # then something is wrong, and it ends


@dataclass(frozen=True, slots=True)
class ComparedCandidates:
    """The two programs that are compared."""

    baseline: Candidate
    champion: Candidate


@dataclass(frozen=True, slots=True)
class SeedPair:
    """One seed's two runs, or what went wrong."""

    seed: int
    scores: tuple[Score, Score] | None  # (baseline, champion); None: a run failed
    why: str = ""  # of a failure


def replicate(lab: Lab, pairs: int, stop: StopFlag) -> Iterator[SeedPair]:
    """Run until `pairs` pairs are in the ledger. Yields each new pair as it finishes.

    Raises NotReady before anything is kept.
    """
    options = session.SessionOptions(proposers=("mailbox",))
    with session.open_session(lab, options, stop) as (opened, _):
        ledger = opened.recorder.ledger
        baseline, champion = load_baseline_and_champion(ledger)
        compared = ComparedCandidates(
            load_candidate(ledger, baseline), load_candidate(ledger, champion)
        )
        yield from run_pairs(opened, compared, pairs)
        opened.recorder.write_results()


def run_pairs(
    opened: Session, compared: ComparedCandidates, pairs: int
) -> Iterator[SeedPair]:
    """`replicate` in an open session."""
    ledger, dispatcher = opened.recorder.ledger, Dispatcher(opened)
    baseline, champion = compared.baseline, compared.champion
    numbers = [c.proposal.number or 0 for c in (champion, baseline)]
    done = len(queries.load_pairs(ledger, *numbers))
    used = set[int]().union(*(queries.load_used_seeds(ledger, n) for n in numbers))
    fresh = (s for n in count() if (s := compute_seed(opened.seed, n)) not in used)
    ended: deque[SeedPair] = deque()
    failed = started = under_way = 0
    while done < pairs and failed < MAX_FAILED_PAIRS:
        while (
            dispatcher.free_count
            and done + under_way < pairs
            and not opened.workbench.stop.soon
        ):
            order = [champion, baseline] if started % 2 else [baseline, champion]
            run_pair(dispatcher, order, baseline, next(fresh), ended.append)
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
    """Run both candidates on one seed, in this order, on the same device.

    `finish` is called with the pair; its scores have the baseline's first.
    """
    scores: dict[str, Score] = {}

    def receive_result(result: RunResult) -> None:
        if isinstance(result.outcome, Failure):
            finish(SeedPair(seed, None, str(ExperimentFailed(result.outcome))))
            return
        scores[result.request.candidate.blob] = result.outcome
        if len(scores) < len(order):
            dispatcher.start_run(order[1], seed, receive_result)
            return
        first, second = (scores[candidate.blob] for candidate in order)
        is_in_order = order[0] is baseline
        finish(SeedPair(seed, (first, second) if is_in_order else (second, first)))

    dispatcher.start_run(order[0], seed, receive_result)


def load_baseline_and_champion(ledger: Ledger) -> tuple[Row, Row]:
    """(baseline, champion) of this series. Raises NotReady if nothing is kept."""
    champions = ledger.load_champions()
    if len(champions) < 2:
        raise NotReady(
            "nothing is kept in this series yet, so there is nothing to replicate. "
            "Next: autoresearch run"
        )
    baseline = ledger.load_row(champions[0].number)
    champion = ledger.load_row(champions[-1].number)
    assert baseline is not None
    assert champion is not None
    return baseline, champion


def load_candidate(ledger: Ledger, row: Row) -> Candidate:
    """A recorded experiment as a candidate that can run again."""
    source = ledger.load_source(row.blob)
    proposal = Proposal(row.number, row.title, source, row.parent, row.author)
    return Candidate(replace(proposal, program=row.program), row.blob)


def load_certificate(lab: Lab) -> Certificate | None:
    """The paired comparison in the ledger; None before there is a pair."""
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    ledger = Ledger(lab.ledger_path, lower_is_better=found.lower_is_better)
    try:
        baseline, champion = load_baseline_and_champion(ledger)
        return queries.load_certificate(ledger, champion.number, baseline.number)
    finally:
        ledger.close()


def format_replication(metric: str, certificate: Certificate) -> list[str]:
    """The certificate for people."""
    c, seeds = certificate, pluralize(certificate.pairs, "fresh seed")
    lines = [
        f"experiment {c.champion} against the baseline on {seeds}",
        f"  {metric:<12} gain {format_mean_interval(c.gain, c.low, c.high)}",
    ]
    if c.holdout_gain is not None:
        gain = format_mean_interval(c.holdout_gain, c.holdout_low, c.holdout_high)
        lines.append(f"  {'holdout':<12} gain {gain}")
    if c.gap is not None:
        gap = format_mean_interval(c.gap, c.gap_low, c.gap_high)
        lines.append(
            f"  {'gap':<12}      {gap}   (above 0: part of the gain is overfitting)"
        )
    return lines


def format_mean_interval(mean: float, low: float | None, high: float | None) -> str:
    """A mean and its 95 % interval."""
    if low is None or high is None:
        return f"{format_exact(mean, '+')}   (no interval: that needs two pairs)"
    bounds = f"{format_exact(low, '+')} to {format_exact(high, '+')}"
    return f"{format_exact(mean, '+')}   95 % interval {bounds}"
