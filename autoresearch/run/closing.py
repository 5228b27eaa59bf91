"""The last runs of a session: the proof of its best idea, then runs for its gain.

They come on top of the experiments that were asked for, and within the hours. The runs
that the confidence interval of the gain needs go to all devices in parallel.
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

# At most a third of a session's runs; the minimum is enough for one proof.
MAX_CLOSING_RUNS, MIN_CLOSING_RUNS = 10, 3


@dataclass(slots=True)
class ClosingRuns:
    """Chooses the runs after the last idea, and counts them."""

    session: Session
    dispatcher: Dispatcher
    before: int  # runs in the ledger when the session began
    made: int = 0
    under_way: int = 0

    @property
    def most(self) -> int:
        """How many closing runs there may be."""
        session_runs = self.session.recorder.ledger.run_count - self.before - self.made
        return min(MAX_CLOSING_RUNS, max(MIN_CLOSING_RUNS, session_runs // 3))

    def choose_runs(self, *, is_over: bool = False) -> tuple[str, ...]:
        """Choose the blobs to run once more, in parallel; none: no need, or not yet.

        is_over: no further ideas are to be tried.
        """
        left = self.session.estimate_runs_left()  # rounds on all devices
        if left <= 0 or self.made >= self.most:
            return ()
        if is_over:
            left = 0.0
        elif left > MAX_CLOSING_RUNS:
            return ()
        evidence = queries.load_evidence(self.session.recorder.ledger)
        lower_is_better = self.session.workbench.apparatus.lower_is_better
        need = evidence.plan_gain_runs(lower_is_better=lower_is_better)
        devices = self.session.pool.capacity
        spare = left - math.ceil(len(need) / devices)
        proof = self.session.policy.choose_closing_run(evidence.build_history(), spare)
        if proof is not None:
            return (proof,)
        return need[: min(devices, self.most - self.made)] if spare <= 0 else ()

    def start_runs(self, blobs: tuple[str, ...]) -> None:
        """Send these runs to devices."""
        for blob in blobs:
            self.under_way += 1
            self._start_one(blob)

    def _start_one(self, blob: str) -> None:
        recorder = self.session.recorder
        evidence = queries.load_evidence(recorder.ledger)
        rows = [row for row in evidence.rows if row.blob == blob]
        champions = {champion.number for champion in recorder.ledger.load_champions()}
        row = next((row for row in rows if row.number in champions), rows[0])
        proposal = propose_second_look(recorder.ledger.load_source(blob), row)
        if row.number in champions:
            candidate = Candidate(replace(proposal, number=row.number), blob)
            self.dispatcher.start_rerun(candidate, self._receive_rerun)
            return
        candidate = recorder.store_candidate(recorder.admit_proposal(proposal))
        trial = open_trial(self.session, candidate)
        trial.is_closing = True
        self.dispatcher.start_trial(trial)

    def _receive_rerun(self, ended: RunResult) -> None:
        self.under_way -= 1
        self.made += 1
        record_rerun(self.session, ended)

    def count_trial(self, trial: Trial) -> None:
        """Count the runs of a second look that has all of them."""
        self.under_way -= 1
        self.made += max(1, len(trial.scores) + len(trial.champion_runs))


def propose_second_look(source: str, row: Row) -> Proposal:
    """Propose an experiment once more, under a number of its own."""
    why = "the night ends, and this promises more than the champion"
    title = f"again: {row.title}"[:200]
    return Proposal(None, title, source, row.parent, HARNESS_AUTHOR, why)
