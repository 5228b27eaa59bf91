"""The loop: propose, write down, run, measure, decide, record. Read this file first.

    Proposal --books--> Candidate --sandbox--> Run --evaluator--> Score
                                                     --policy--> Verdict --> books

The left half (think, write) and the right end (decide, record) happen here, one at a
time. Only `trial` leaves for a device, and it takes and returns plain values: so there
is one writer, and one arrow that points back, `policy.wants`.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from autoresearch import evaluator, rules, sandbox
from autoresearch.books import Books
from autoresearch.cage import Slot
from autoresearch.errors import Failed, LabError, Stopped
from autoresearch.experiment import (
    Candidate,
    Champion,
    Change,
    Failure,
    History,
    Proposal,
    Scores,
    Verdict,
)
from autoresearch.ledger import Row
from autoresearch.policy import Policy
from autoresearch.pools import Pool
from autoresearch.proposers import Proposer
from autoresearch.sandbox import Bench

IDLE_SECONDS = 0.5  # between two looks for a proposal, when there is none
# A token budget has no clock of its own: a run may take three times what the champion
# took, so that a change cannot buy its gain with unlimited seconds.
SHORTEST_WALL_SECONDS = 60.0
WALL_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What came back from a device: scores or a failure, of this candidate."""

    candidate: Candidate
    result: Scores | Failure
    against: Champion | None


@dataclass(frozen=True, slots=True)
class Night:
    """Everything one `run` works with."""

    books: Books
    bench: Bench
    proposer: Proposer
    policy: Policy
    pool: Pool[Trial]
    seed: int  # what the seeds of all runs are drawn from
    over: Callable[[int], bool]  # given how many experiments were taken so far


def research(night: Night) -> Iterator[Row]:
    """Yield verdicts for as long as somebody has ideas and nobody says stop."""
    if night.books.ledger.champion is None:
        try:
            yield baseline(night)
        except Stopped:
            return
    night = paced(night)
    stop = night.bench.stop
    in_hand: set[int] = set()
    taken = 0
    while True:
        while night.pool.free and not stop.soon and not night.over(taken):
            proposal = next_proposal(night, in_hand)
            if proposal is None:
                break
            taken += 1
            try:
                candidate = night.books.write_down(proposal)
            except Failed as failed:
                yield record(night, failed.failure, night.books.ledger.champion)
                continue
            in_hand.add(number_of(proposal))
            champion = night.books.ledger.champion
            night.pool.submit(partial(trial, night, candidate, champion))
        try:
            done = night.pool.next()
        except Stopped:
            return  # the run in hand has no verdict; the next `run` takes it up again
        if done is not None:
            yield record(night, done.result, done.against)
            in_hand.discard(number_of(done.candidate.proposal))
        elif stop.soon or night.over(taken) or night.proposer.exhausted:
            return
        else:
            time.sleep(IDLE_SECONDS)


def next_proposal(night: Night, in_hand: set[int]) -> Proposal | None:
    """What waits in the ledger (an interrupted run, a `try`), else a new idea."""
    night.bench.lab.need_space()
    if night.bench.lab.pause.exists():
        return None
    ledger = night.books.ledger
    for waiting in ledger.open():
        if number_of(waiting) not in in_hand:
            return waiting
    night.books.read_program()
    proposal = night.proposer.propose(ledger)
    return night.books.admit(proposal) if proposal else None


def baseline(night: Night) -> Row:
    """Measure where the night starts from: first and alone, or there is no search."""
    books = night.books
    source, why = books.start_file()
    fresh = books.ledger.last_keep() is None
    title = "baseline" if fresh else "champion again"
    number = 0 if fresh and books.ledger.row(0) is None else None
    author = "human" if fresh else "autoresearch"
    proposal = books.admit(Proposal(number, title, source, "", author, why))
    try:
        candidate = books.write_down(proposal)
        night.pool.submit(partial(trial, night, candidate, None))
        done = night.pool.next()
        assert done is not None
        result = done.result
    except Failed as failed:
        result = failed.failure
    row = record(night, result, None)
    if row.decision == "failed":
        raise LabError(
            f"{title} failed, and without it nothing can be compared: {row.why}. "
            f"Next: autoresearch show {row.number}   (its log), then mend train.py"
        )
    return row


def trial(
    night: Night, candidate: Candidate, champion: Champion | None, slot: Slot
) -> Trial:
    """Candidate -> Scores, with as many seeds as the policy asks for."""
    scores: Scores = ()
    try:
        while night.policy.wants(scores, History(champion)) == "candidate":
            seed = seed_of(night.seed, len(scores))
            run = sandbox.train(night.bench, candidate, seed=seed, slot=slot)
            scores += (evaluator.score(night.bench, run, slot=slot),)
    except Failed as failed:
        return Trial(candidate, failed.failure, champion)
    return Trial(candidate, scores, champion)


def record(night: Night, result: Scores | Failure, against: Champion | None) -> Row:
    """Scores -> Verdict, in the books.

    A baseline has no rival. Everybody else meets the champion of this moment, who may
    have been crowned while the candidate ran.
    """
    rival = night.books.ledger.champion if against is not None else None
    if isinstance(result, Failure):
        why = f"{result.kind}: {result.detail}"
        return settled(night, Verdict("failed", why, result, rival))
    proposal = result[0].run.candidate.proposal
    added = 0
    if rival is not None:
        parent = night.books.ledger.source(proposal.parent)
        added = rules.added_lines(parent, proposal.source)
    verdict = night.policy.decide(result, History(rival), Change(added, 0))
    return settled(night, verdict)


def settled(night: Night, verdict: Verdict) -> Row:
    """A verdict in the books; a new champion's claims are what others will meet."""
    row = night.books.record(verdict)
    evaluator.settle(night.bench.lab, row.number, kept=row.decision == "keep")
    return row


def paced(night: Night) -> Night:
    """The same night; a token budget gets a wall that fits what the champion took."""
    terms = night.bench.terms
    champion = night.books.ledger.champion
    if terms.budget_tokens is None or champion is None:
        return night
    row = night.books.ledger.row(champion.number)
    assert row is not None
    wall = max(SHORTEST_WALL_SECONDS, WALL_FACTOR * row.seconds / row.runs)
    bench = replace(night.bench, terms=replace(terms, wall_seconds=wall))
    return replace(night, bench=bench)


def seed_of(base: int, run: int) -> int:
    """The seed of a candidate's n-th run: the same for all candidates of a series."""
    digest = hashlib.sha256(f"{base}:{run}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % 2**31


def number_of(proposal: Proposal) -> int:
    assert proposal.number is not None, "only admitted proposals get this far"
    return proposal.number
