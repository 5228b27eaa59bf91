"""The loop: propose, write down, run, measure, decide, record. Read this file first.

    Proposal --books--> Candidate --sandbox--> Run --evaluator--> Score
                                                     --policy--> Verdict --> books

The left half (think, write) and the right end (decide, record) happen here, one at a
time. Only `trial` leaves for a device, and it takes and returns plain values: so there
is one writer, and one arrow that points back, `policy.wants`.
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from statistics import fmean

from autoresearch import chips, evaluator, evidence, noise, rules, sandbox
from autoresearch.books import Books
from autoresearch.cage import Slot
from autoresearch.context import PLATEAU
from autoresearch.curves import Finished, Outlook, spared, touches_schedule
from autoresearch.errors import Failed, LabError, Stopped
from autoresearch.evaluator import with_holdout
from autoresearch.evidence import Evidence, runs_of
from autoresearch.experiment import (
    HARNESS,
    PERSON,
    Candidate,
    Champion,
    Change,
    Decision,
    Failure,
    History,
    Proposal,
    Score,
    Scores,
    Verdict,
)
from autoresearch.lab import git_blob
from autoresearch.ledger import Row
from autoresearch.policy import Policy
from autoresearch.pools import Pool
from autoresearch.proposers import Proposer
from autoresearch.results import exact
from autoresearch.sandbox import Bench

IDLE_SECONDS = 0.5  # between two looks for a proposal, when there is none
# A token budget has no clock of its own: a run may take three times what the champion
# took, so that a change cannot buy its gain with unlimited seconds.
SHORTEST_WALL_SECONDS = 60.0
WALL_FACTOR = 3.0
REPEATS_OF_VOID = 2  # of one run; then it counts, with what harmed it on record
# That may come after the last idea of a night: at most a third of its runs, and always
# enough for one proof.
CLOSING_RUNS, FEWEST_CLOSING = 10, 3
NO_CHANGE = Change(0, 0)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came back from a device: scores or a failure, of this candidate."""

    candidate: Candidate
    result: Scores | Failure
    against: Champion | None
    again: Scores = ()  # runs of the champion that were made on the way


@dataclass(frozen=True, slots=True)
class Asked:
    """A candidate and all that its trial needs from the ledger, as plain values."""

    candidate: Candidate
    known: Evidence
    change: Change
    rival: Candidate  # the champion, to run again
    seeds: Iterator[int]  # fresh ones for the champion, never the same twice
    past: tuple[Finished, ...]  # runs whose learning curves this one is compared with
    paces: tuple[float, ...]  # tokens per second of the champion's runs
    schedule: bool  # whether the change touches the schedule
    before: int = 0  # runs of the same train.py under another number


@dataclass(frozen=True, slots=True)
class Night:
    """Everything one `run` works with."""

    books: Books
    bench: Bench
    proposer: Proposer
    policy: Policy
    pool: Pool[Trial]
    slots: tuple[Slot, ...]  # the devices behind the pool
    seed: int  # what the seeds of all runs are drawn from
    over: Callable[[int], bool]  # given how many experiments were taken so far
    left: Callable[[], float] = lambda: math.inf  # runs, until its hours are over


def research(night: Night) -> Iterator[Row]:
    """Yield verdicts for as long as somebody has ideas and nobody says stop."""
    before = night.books.ledger.runs_made
    if night.books.ledger.champion is None:
        try:
            yield baseline(night)
        except Stopped:
            return
    night = paced(night)
    stop = night.bench.stop
    in_hand: set[int] = set()
    seeds = Seeds(night)
    ending, taken = Ending(night, seeds, before), 0
    while True:
        while night.pool.free and not stop.soon and not night.over(taken):
            if ending.wants():
                break  # what is in hand ends first, then the night closes
            proposal = next_proposal(night, in_hand)
            if proposal is None:
                break
            taken += 1
            try:
                candidate = night.books.write_down(proposal)
            except Failed as failed:
                champion = night.books.ledger.champion
                refused = Trial(candidate_of(proposal), failed.failure, champion)
                yield record(night, refused)
                continue
            in_hand.add(number_of(proposal))
            night.pool.submit(partial(trial, night, asked(night, candidate, seeds)))
        try:
            done = night.pool.next()
        except Stopped:
            return  # the run in hand has no verdict; the next `run` takes it up again
        if done is not None:
            yield record(night, done)
            in_hand.discard(number_of(done.candidate.proposal))
        elif stop.soon:
            return
        elif blobs := ending.wants(night.over(taken)):
            yield from ending.run(blobs)
        elif night.over(taken) or night.proposer.exhausted:
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
    history = evidence.of(ledger).history()
    champion = history.champion
    start = night.policy.parent(history, history.rows)
    if champion is not None:
        ledger.start_from(start or champion.blob)
    proposal = night.proposer.propose(ledger)
    return night.books.admit(proposal) if proposal else None


def baseline(night: Night) -> Row:
    """Measure where the night starts from: first and alone, or there is no search."""
    books = night.books
    source, why = books.start_file()
    fresh = books.ledger.last_keep() is None
    title = "baseline" if fresh else "champion again"
    number = 0 if fresh and books.ledger.row(0) is None else None
    author = PERSON if fresh else HARNESS
    proposal = books.admit(Proposal(number, title, source, "", author, why))
    try:
        candidate = books.write_down(proposal)
        done = Trial(candidate, baseline_runs(night, candidate), None)
    except Failed as failed:
        done = Trial(candidate_of(proposal), failed.failure, None)
    row = record(night, done)
    if row.decision == "failed":
        raise LabError(
            f"{title} failed, and without it nothing can be compared: {row.why}. "
            f"Next: autoresearch show {row.number}   (its log), then mend train.py"
            + (", or leave a GPU out by CUDA_VISIBLE_DEVICES" * (len(night.slots) > 1))
        )
    return row


def baseline_runs(night: Night, candidate: Candidate) -> Scores:
    """The first alone, whose compiled code is lent to the others; these at one time.

    Two devices of a kind are not quite as fast as each other, and the noise that
    verdicts know has to hold that.
    """
    scores: Scores = ()
    failure: Failure | None = None
    while failure is None and (more := wanted_runs(night, scores)):
        for run in range(len(scores), len(scores) + more):
            night.pool.submit(partial(baseline_run, night, candidate, run))
        for done in collected(night, more):
            if isinstance(done.result, Failure):
                failure = failure or done.result
            else:
                scores += done.result
    if failure is not None:
        raise Failed(after_runs(failure, scores))
    seeds = [seed_of(night.seed, run) for run in range(len(scores))]
    return tuple(sorted(scores, key=lambda score: seeds.index(score.run.seed)))


def collected(night: Night, count: int) -> list[Trial]:
    """What was sent to devices, when all of it is back, or what ended any of it."""
    came: list[Trial] = []
    ended: Stopped | LabError | OSError | None = None
    for _ in range(count):
        try:
            done = night.pool.next()
        except (Stopped, LabError, OSError) as error:
            ended = ended or error
            night.bench.stop.now = True  # nobody is to run on while the night is closed
            continue
        assert done is not None, "as many come back as were sent"
        came.append(done)
    if ended is not None:
        raise ended
    return came


def wanted_runs(night: Night, scores: Scores) -> int:
    """How many runs of the baseline to make now: as many as would be wanted anyway."""
    known, free = Evidence((), ()), night.pool.free if scores else 1
    likely, more = scores, 0
    while more < free and wanted_of(night.policy, known, likely, NO_CHANGE):
        likely, more = (*likely, *scores[-1:]), more + 1
    return more


def baseline_run(night: Night, candidate: Candidate, run: int, slot: Slot) -> Trial:
    """One run of the baseline."""
    try:
        score = on_both(night, candidate, seed_of(night.seed, run), slot)
    except Failed as failed:
        failure = failed.failure
        if len(night.slots) > 1:
            failure = replace(failure, detail=f"{failure.detail}, on GPU {slot.index}")
        return Trial(candidate, failure, None)
    return Trial(candidate, (score,), None)


def asked(night: Night, candidate: Candidate, seeds: "Seeds") -> Asked:
    """Everything a trial needs, read from the ledger before it leaves."""
    ledger, proposal = night.books.ledger, candidate.proposal
    champion = ledger.champion
    assert champion is not None, "the baseline comes first"
    reigning = ledger.source(champion.blob)
    past: tuple[Finished, ...] = ()
    if night.books.program.early_kill:
        past = tuple(run for run, _ in ledger.finished(ledger.series))
    again = Proposal(champion.number, "champion", reigning, "", HARNESS)
    before = 0
    if proposal.author == HARNESS:  # a second look: on fresh seeds, and to its end
        before, past = len(ledger.seeds(number_of(proposal))), ()
    return Asked(
        candidate,
        evidence.of(ledger),
        rules.change(reigning, proposal.source),
        Candidate(again, champion.blob),
        seeds.of(champion.number),
        past,
        ledger.paces(champion.number),
        bool(proposal.parent)
        and touches_schedule(ledger.source(proposal.parent), proposal.source),
        before,
    )


@dataclass(slots=True)
class Ending:
    """The last runs of a night: the proof of its best idea, then what its claim needs.

    They are a few on top of the experiments that were asked for, and inside the hours;
    what the claim needs runs on as many devices as there are at once.
    """

    night: Night
    seeds: "Seeds"
    before: int  # runs in the ledger when the night began
    made: int = 0

    @property
    def most(self) -> int:
        """How many there may be."""
        tonight = self.night.books.ledger.runs_made - self.before - self.made
        return min(CLOSING_RUNS, max(FEWEST_CLOSING, tonight // 3))

    def wants(self, over: bool = False) -> tuple[str, ...]:
        """The blobs to run once more, all at once; none: no need, or not yet.

        over: no further ideas are to be tried.
        """
        left = self.night.left()
        if left <= 0 or self.made >= self.most:
            return ()
        if over:
            left = 0.0
        elif left > CLOSING_RUNS:
            return ()
        known = evidence.of(self.night.books.ledger)
        better = self.night.bench.apparatus.lower_is_better
        need = known.need(lower_is_better=better)
        devices = len(self.night.slots)
        first = left - math.ceil(len(need) / devices)
        again = self.night.policy.closing(known.history(), first)
        if again is not None:
            return (again,)
        return need[: min(devices, self.most - self.made)] if first <= 0 else ()

    def run(self, blobs: tuple[str, ...]) -> Iterator[Row]:
        """Run them, and yield the rows of those that were second looks."""
        for blob in blobs:
            self.submit(blob)
        try:
            came = collected(self.night, len(blobs))
        except Stopped:
            self.made = CLOSING_RUNS  # and no more
            return
        for done in came:
            runs = () if isinstance(done.result, Failure) else done.result
            self.made += max(1, len(runs) + len(done.again))
            if done.against is not None:
                yield record(self.night, done)
            elif done.again:
                self.night.books.ledger.add_runs(done.again, "champion")
                self.night.books.write_results()
                demote(self.night)

    def submit(self, blob: str) -> None:
        """Send one of them to a device."""
        night, ledger = self.night, self.night.books.ledger
        rows = [row for row in evidence.of(ledger).rows if row.blob == blob]
        reigned = {champion.number for champion in ledger.champions()}
        row = next((row for row in rows if row.number in reigned), rows[0])
        again = second_look(ledger.source(blob), row)
        if row.number in reigned:
            candidate = Candidate(replace(again, number=row.number), blob)
            known = asked(night, candidate, self.seeds)
            seeds = self.seeds.of(row.number)
            known = replace(known, rival=candidate, seeds=seeds)
            night.pool.submit(partial(once_more, night, known))
        else:
            candidate = night.books.write_down(night.books.admit(again))
            known = asked(night, candidate, self.seeds)
            night.pool.submit(partial(trial, night, known))


def second_look(source: str, row: Row) -> Proposal:
    """An experiment once more, under a number of its own."""
    why = "the night ends, and this promises more than the champion"
    title = f"again: {row.title}"[:200]
    return Proposal(None, title, source, row.parent, HARNESS, why)


def once_more(night: Night, asked: Asked, slot: Slot) -> Trial:
    """One more run of somebody who reigned."""
    score = champion_again(night, asked, slot)
    return Trial(asked.candidate, (), None, () if score is None else (score,))


def trial(night: Night, asked: Asked, slot: Slot) -> Trial:
    """Candidate -> Scores, with as many seeds as the policy asks for.

    Runs of the champion that it asks for in between are part of the result, whatever
    becomes of the candidate. What will be kept is scored on the holdout as well, while
    its weights are there.
    """
    policy, known = night.policy, asked.known
    against = known.history().champion
    scores: Scores = ()
    again: Scores = ()
    result: Scores | Failure
    try:
        while wanted := wanted_of(policy, known, scores, asked.change):
            if wanted == "champion":
                score = champion_again(night, asked, slot)
                if score is None and scores:
                    break
                if score is not None:
                    again += (score,)
                    known = known.with_champion_run(score)
                    continue
            seed = seed_of(night.seed, asked.before + len(scores))
            outlook = outlook_for(night, asked) if not scores else None
            train = partial(measured, night, asked.candidate, seed, slot, outlook)
            scores += (train(asked.paces),)
        verdict = policy.decide(
            known.fair(scores), known.history(asked.change), asked.change
        )
        if verdict.decision == "keep":
            scores = tuple(with_holdout(night.bench, s, slot=slot) for s in scores)
        result = scores
    except Failed as failed:
        result = after_runs(failed.failure, scores)
    finally:
        sandbox.discard(*(score.run for score in scores))
    return Trial(asked.candidate, result, against, again)


def wanted_of(policy: Policy, known: Evidence, scores: Scores, change: Change) -> str:
    """Which run the policy wants next; "" for none."""
    wanted = policy.wants(known.fair(scores), known.history(change))
    return "" if wanted == "nothing" else wanted


def measured(
    night: Night,
    candidate: Candidate,
    seed: int,
    slot: Slot,
    outlook: Outlook | None = None,
    paces: tuple[float, ...] = (),
) -> Score:
    """Train once and score; the weights stay until the trial is over.

    paces: tokens per second of the champion's runs so far. A run that the machine
    slowed down is void: made again, before anybody knows what it would have scored.
    """
    train = partial(
        sandbox.train, night.bench, candidate, seed=seed, slot=slot, outlook=outlook
    )
    run = train()
    for _ in range(REPEATS_OF_VOID):
        pace = run.tokens_per_second
        why = chips.void(run.harm, pace, paces) if pace is not None else None
        if why is None:
            break
        number = number_of(candidate.proposal)
        night.books.say_once(
            f"a run of experiment {number} was void and is repeated: {why}, and "
            f"{pace:.0f} tokens a second where the champion had {min(paces):.0f}",
            f"void {number} {seed}",
        )
        if outlook is not None:
            outlook.forget()
        run = train()
    try:
        return evaluator.score(night.bench, run, slot=slot)
    except BaseException:
        sandbox.discard(run)
        raise


def on_both(
    night: Night,
    candidate: Candidate,
    seed: int,
    slot: Slot,
    paces: tuple[float, ...] = (),
) -> Score:
    """Train once and score on both splits; nothing of the run stays."""
    score = measured(night, candidate, seed, slot, paces=paces)
    try:
        return evaluator.with_holdout(night.bench, score, slot=slot)
    finally:
        sandbox.discard(score.run)


def champion_again(night: Night, asked: Asked, slot: Slot) -> Score | None:
    """One more run of the champion, with the holdout; None when it failed this time."""
    try:
        return on_both(night, asked.rival, next(asked.seeds), slot, asked.paces)
    except Failed as failed:
        night.books.say_once(
            f"the champion, experiment {asked.rival.proposal.number}, failed when it "
            f"was run again: {failed}",
            f"failed again {asked.rival.proposal.number}",
        )
        return None


def after_runs(failure: Failure, scores: Scores) -> Failure:
    """The failure of a candidate that had scores before it failed: say so."""
    if not scores:
        return failure
    values = ", ".join(exact(score.value) for score in scores)
    detail = f"{failure.detail} (on a further seed; before: {values})"
    return replace(failure, detail=detail)


def outlook_for(night: Night, asked: Asked) -> Outlook | None:
    """What may end a candidate's first run early; None: nothing may."""
    champion = asked.known.history().champion
    if champion is None or not night.books.program.early_kill:
        return None
    seed = seed_of(night.seed, 0)
    luck = asked.known.luck.of.get(seed, 0.0)
    return Outlook(
        asked.past,
        fmean(champion.values) + luck,
        score_on(asked.known, asked.candidate.proposal.parent, seed),
        schedule=asked.schedule,
        spare=spared(night.seed, number_of(asked.candidate.proposal)),
        lower_is_better=night.bench.apparatus.lower_is_better,
    )


def score_on(known: Evidence, blob: str, seed: int) -> float | None:
    """What a train.py scored on a seed, as measured; None: it did not run there."""
    runs = (run for row in known.rows if row.blob == blob for run in runs_of(row))
    return next((value for one, value in runs if one == seed), None)


def record(night: Night, done: Trial) -> Row:
    """Scores -> Verdict, in the books.

    A baseline has no rival. Everybody else meets the champion of this moment, who may
    have been crowned while the candidate ran.
    """
    books, result = night.books, done.result
    if done.again:
        books.ledger.add_runs(done.again, "champion")
    rival = books.ledger.champion if done.against is not None else None
    if isinstance(result, Failure):
        why = f"{result.kind}: {result.detail}"
        word: Decision = "failed"
        if result.kind == "ended early":
            word, why = "discard", result.detail
        return settled(night, Verdict(word, why, result, rival), done.again)
    change = NO_CHANGE
    if rival is not None:
        source = result[0].run.candidate.proposal.source
        change = rules.change(books.ledger.source(rival.blob), source)
    known = evidence.of(books.ledger)
    history, fair = known.history(change), known.fair(result)
    if rival is None:
        history = replace(history, champion=None)
    verdict = night.policy.decide(fair, history, change)
    delta = None
    if history.champion is not None:
        delta = mean_of(fair) - fmean(history.champion.values)
    verdict = replace(verdict, evidence=result, against=rival, delta=delta)
    return settled(night, verdict, done.again)


def mean_of(scores: Scores) -> float:
    """The mean of a candidate's scores."""
    return fmean(score.value for score in scores)


def settled(night: Night, verdict: Verdict, again: Scores = ()) -> Row:
    """A verdict in the books, and what follows from it for the champion."""
    books = night.books
    row = books.record(verdict, again)
    evaluator.settle(night.bench.lab, row.number, kept=row.decision == "keep")
    notice(night, demote(night))
    return row


def demote(night: Night) -> History:
    """Put a former champion back, if what was run since says so -> what is known."""
    books = night.books
    history = evidence.of(books.ledger).history()
    champion, former = history.champion, night.policy.demoted(history)
    if champion is None or former is None:
        return history
    books.take_back(champion, former, worse_than(former, champion))
    return evidence.of(books.ledger).history()


def worse_than(former: Champion, champion: Champion) -> str:
    """Why a champion is taken back."""
    now, then = fmean(champion.values), fmean(former.values)
    return (
        f"{exact(now)} in {len(champion.values)} runs, experiment {former.number} "
        f"before it {exact(then)} in {len(former.values)}"
    )


def notice(night: Night, history: History) -> None:
    """Tell the human of a drift, and of a plateau."""
    found = noise.drift(history.replicates, history.when)
    if found is not None:
        night.books.say_once(
            f"the same train.py scores {found.per_hour:+.2g} an hour: something about "
            "this machine drifts (heat, a neighbour). Policies that know the noise "
            "keep nothing now that did not run side by side with the champion",
            "drift",
        )
    champion = history.champion
    since = sum(row.number > champion.number for row in history.rows) if champion else 0
    if champion is not None and since >= PLATEAU:
        night.books.say_once(
            f"{since} experiments since the last keep: proposers are asked for "
            "something structurally different",
            f"plateau {champion.number}",
        )


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


class Seeds:
    """Fresh seeds for runs of a champion: no two trials get the same."""

    def __init__(self, night: Night) -> None:
        self._night = night
        self._given: dict[int, set[int]] = {}
        self._lock = threading.Lock()  # trials ask from their devices' threads

    def of(self, number: int) -> Iterator[int]:
        """The seeds that this experiment has not run with, in the order of all."""
        known = self._night.books.ledger.seeds(number)
        given = self._given.setdefault(number, set())
        given |= known
        return self._fresh(given)

    def _fresh(self, given: set[int]) -> Iterator[int]:
        for run in count():
            seed = seed_of(self._night.seed, run)
            with self._lock:
                if seed in given:
                    continue
                given.add(seed)
            yield seed


def seed_of(base: int, run: int) -> int:
    """The seed of a candidate's n-th run: the same for all candidates of a series."""
    digest = hashlib.sha256(f"{base}:{run}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % 2**31


def candidate_of(proposal: Proposal) -> Candidate:
    """What a proposal would have been, had it passed the checks."""
    return Candidate(proposal, git_blob(proposal.source))


def number_of(proposal: Proposal) -> int:
    assert proposal.number is not None, "only admitted proposals get this far"
    return proposal.number
