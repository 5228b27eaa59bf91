"""The last runs of a session: the proof of its best idea, then what its claim needs.

They are a few on top of the experiments that were asked for, and inside the hours; what
the claim needs runs on as many devices as there are at once.
"""

import math
from dataclasses import dataclass, replace

from autoresearch.experiment import HARNESS_AUTHOR, Candidate, Proposal, Row
from autoresearch.measure.messages import RunResult
from autoresearch.records import queries
from autoresearch.run.dispatcher import Dispatcher, open_trial
from autoresearch.run.session import Session
from autoresearch.run.trial import Trial
from autoresearch.run.verdicts import record_rerun

# At most a third of a session's runs, and always enough for one proof.
MAX_CLOSING_RUNS, MIN_CLOSING_RUNS = 10, 3


@dataclass(slots=True)
class ClosingRuns:
    """Which runs come after the last idea, and how many there were."""

    session: Session
    dispatcher: Dispatcher
    before: int  # runs in the ledger when the session began
    made: int = 0
    under_way: int = 0

    @property
    def most(self) -> int:
        """How many there may be."""
        tonight = self.session.recorder.ledger.run_count - self.before - self.made
        return min(MAX_CLOSING_RUNS, max(MIN_CLOSING_RUNS, tonight // 3))

    def choose_runs(self, *, is_over: bool = False) -> tuple[str, ...]:
        """The blobs to run once more, all at once; none: no need, or not yet.

        is_over: no further ideas are to be tried.
        """
        left = self.session.estimate_runs_left()
        if left <= 0 or self.made >= self.most:
            return ()
        if is_over:
            left = 0.0
        elif left > MAX_CLOSING_RUNS:
            return ()
        known = queries.load_evidence(self.session.recorder.ledger)
        better = self.session.workbench.apparatus.lower_is_better
        need = known.plan_gain_runs(lower_is_better=better)
        devices = self.session.pool.capacity
        first = left - math.ceil(len(need) / devices)
        again = self.session.policy.choose_closing_run(known.build_history(), first)
        if again is not None:
            return (again,)
        return need[: min(devices, self.most - self.made)] if first <= 0 else ()

    def start_runs(self, blobs: tuple[str, ...]) -> None:
        """Send them to devices."""
        for blob in blobs:
            self.under_way += 1
            self._start_one(blob)

    def _start_one(self, blob: str) -> None:
        books = self.session.recorder
        rows = [
            row for row in queries.load_evidence(books.ledger).rows if row.blob == blob
        ]
        reigned = {champion.number for champion in books.ledger.load_champions()}
        row = next((row for row in rows if row.number in reigned), rows[0])
        again = propose_second_look(books.ledger.load_source(blob), row)
        if row.number in reigned:
            candidate = Candidate(replace(again, number=row.number), blob)
            self.dispatcher.start_rerun(candidate, self._hear)
            return
        trial = open_trial(
            self.session, books.store_candidate(books.admit_proposal(again))
        )
        trial.is_closing = True
        self.dispatcher.start_trial(trial)

    def _hear(self, ended: RunResult) -> None:
        self.under_way -= 1
        self.made += 1
        record_rerun(self.session, ended)

    def count_trial(self, trial: Trial) -> None:
        """Take note of a second look that has its verdict."""
        self.under_way -= 1
        self.made += max(1, len(trial.scores) + len(trial.champion_runs))


def propose_second_look(source: str, row: Row) -> Proposal:
    """An experiment once more, under a number of its own."""
    why = "the night ends, and this promises more than the champion"
    title = f"again: {row.title}"[:200]
    return Proposal(None, title, source, row.parent, HARNESS_AUTHOR, why)
