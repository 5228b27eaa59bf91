"""`replicate`: does the night's gain come again? Champion against baseline, in pairs.

Both are trained on the same fresh seeds, one right after the other and in turn first:
whatever drifts hits both. Validation and the sealed holdout are scored. Every pair goes
into the ledger as soon as it is done, and a second call goes on where one stopped.

Not covered: another machine or another text (clone the lab there, and replicate).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from autoresearch import apparatus, certificate, evaluator, loop, night, sandbox
from autoresearch.cage import Slot, Stop
from autoresearch.certificate import Certificate
from autoresearch.errors import Failed, NotYet, Stopped
from autoresearch.experiment import Candidate, Proposal, Score
from autoresearch.lab import Lab
from autoresearch.ledger import Ledger, Row
from autoresearch.loop import Night
from autoresearch.notebook import Notebook
from autoresearch.results import exact

AUTHOR = "replicate"
MOST_FAILED = 3  # pairs; after that there is something wrong


@dataclass(frozen=True, slots=True)
class Rivals:
    """What is compared."""

    baseline: Candidate
    champion: Candidate


@dataclass(frozen=True, slots=True)
class Pair:
    """One seed's two runs; or what went wrong."""

    seed: int
    scores: tuple[Score, Score] | None  # of the baseline, of the champion
    why: str = ""


def replicate(lab: Lab, pairs: int, stop: Stop) -> Iterator[Pair]:
    """Run until so many pairs are in the ledger; each as it comes."""
    with night.opened(lab, night.Options(proposers=("mailbox",)), stop) as (found, _):
        ledger = found.books.ledger
        baseline, champion = rivals_of(ledger)
        both = Rivals(candidate(ledger, baseline), candidate(ledger, champion))
        yield from run_pairs(loop.paced(found), both, pairs)
        found.books.write_results()


def run_pairs(found: Night, rivals: Rivals, pairs: int) -> Iterator[Pair]:
    """The same in an open night."""
    ledger, pool = found.books.ledger, night.pool_of(found.slots)
    numbers = [c.proposal.number or 0 for c in (rivals.champion, rivals.baseline)]
    done = len(certificate.pairs_of(ledger, *numbers))
    used = ledger.seeds(numbers[0]) | ledger.seeds(numbers[1])
    fresh = (s for n in count() if (s := loop.seed_of(found.seed, n)) not in used)
    running = failed = turn = 0
    while done < pairs and failed < MOST_FAILED:
        while pool.free and done + running < pairs and not found.bench.stop.soon:
            work = partial(pair, found, rivals, next(fresh), bool(turn % 2))
            pool.submit(work)
            running, turn = running + 1, turn + 1
        try:
            result = pool.next()
        except Stopped:
            return
        if result is None:
            return  # somebody said stop
        running -= 1
        if result.scores is None:
            failed += 1
        else:
            done += 1
            ledger.add_runs(result.scores, "replicate")
        yield result


def pair(
    found: Night, rivals: Rivals, seed: int, champion_first: bool, slot: Slot
) -> Pair:
    """Both rivals on one seed and one device."""
    order = [rivals.baseline, rivals.champion]
    scores: list[Score] = []
    try:
        for one in reversed(order) if champion_first else order:
            score = loop.measured(found, one, seed, slot)
            try:
                scores.append(evaluator.with_holdout(found.bench, score, slot=slot))
            finally:
                sandbox.discard(score.run)
    except Failed as failed:
        return Pair(seed, None, str(failed))
    first, second = reversed(scores) if champion_first else scores
    return Pair(seed, (first, second))


def rivals_of(ledger: Ledger) -> tuple[Row, Row]:
    """(baseline, champion) of the present series, or NotYet."""
    champions = ledger.champions()
    if len(champions) < 2:
        raise NotYet(
            "nothing is kept in this series yet, so there is nothing to replicate. "
            "Next: autoresearch run"
        )
    rows = [ledger.row(one.number) for one in (champions[0], champions[-1])]
    assert rows[0] is not None
    assert rows[1] is not None
    return rows[0], rows[1]


def candidate(ledger: Ledger, row: Row) -> Candidate:
    """An experiment, to be run once more."""
    source = ledger.source(row.blob)
    proposal = Proposal(row.number, row.title, source, row.parent, row.author)
    return Candidate(replace(proposal, program=row.program), row.blob)


def certified(lab: Lab) -> Certificate | None:
    """What the pairs in the ledger say; None before there is one."""
    found = apparatus.load(lab, Notebook(lab.folder))
    ledger = Ledger(lab.ledger, lower_is_better=found.lower_is_better)
    try:
        baseline, champion = rivals_of(ledger)
        return certificate.of(ledger, champion.number, baseline.number)
    finally:
        ledger.close()


def lines(metric: str, found: Certificate) -> list[str]:
    """The certificate for people."""
    pairs = "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"
    said = [
        f"experiment {found.champion} against the baseline, {pairs} of fresh seeds",
        f"  {metric:<12} gain {spread(found.gain, found.low, found.high)}",
    ]
    if found.holdout_gain is not None:
        words = spread(found.holdout_gain, found.holdout_low, found.holdout_high)
        said.append(f"  {'holdout':<12} gain {words}")
    if found.gap is not None:
        words = spread(found.gap, found.gap_low, found.gap_high)
        said.append(f"  {'gap':<12}      {words}   (above 0: fits this text only)")
    return said


def spread(mean: float, low: float | None, high: float | None) -> str:
    """A mean and its 95 % interval."""
    if low is None or high is None:
        return f"{exact(mean, '+')}   (one pair says nothing of its own scatter)"
    between = f"{exact(low, '+')} to {exact(high, '+')}"
    return f"{exact(mean, '+')}   95 % interval {between}"
