"""Send the runs that open trials want to free devices, and receive their results.

Promises: runs of open trials go before new proposals; a policy is asked with the
evidence of that moment; a run whose machine went away is made again; when a session
ends for any reason, no run continues after it.

Not covered: weights that were lost with their machine before the holdout was scored.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from statistics import fmean

from autoresearch.errors import LabError, RunStopped
from autoresearch.experiment import (
    HARNESS_AUTHOR,
    Candidate,
    Champion,
    CodeSizeChange,
    Proposal,
    Score,
)
from autoresearch.lab import constraints
from autoresearch.measure.messages import RunLost, RunRequest, RunResult
from autoresearch.records import queries
from autoresearch.run.seeds import ChampionSeeds, compute_seed
from autoresearch.run.session import Session, compute_terms
from autoresearch.run.trial import NO_CHANGE, RunKind, Trial, plan_runs
from autoresearch.run.verdicts import report_champion_failure
from autoresearch.stats.early_stopping import Pruner, is_exempt, touches_schedule
from autoresearch.stats.history import Evidence, seed_scores_from_row

MAX_ATTEMPTS = 3  # at one run, where machines go away
NO_MACHINE_SECONDS = 0.5  # between two looks at a pool that has no machine now

Receiver = Callable[[RunResult], None]


class Dispatcher:
    """The runs under way in one session, and the trials they belong to."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ledger = session.recorder.ledger
        self._trials: list[Trial] = []
        self._receivers: dict[int, Receiver] = {}  # by request id
        self._unsent: deque[RunRequest] = deque()  # no device was free for them
        self._attempts: dict[int, int] = {}  # by request id
        self._finished: deque[Trial] = deque()
        self._ids = count(1)
        self.seeds = ChampionSeeds(self._ledger, session.seed)
        self.terms = compute_terms(session)

    # -- state -------------------------------------------------------------------------

    @property
    def numbers(self) -> set[int]:
        """The experiments that are under way."""
        open_trials = (*self._trials, *self._finished)
        return {trial.number for trial in open_trials}

    @property
    def free_count(self) -> int:
        """Idle devices."""
        return max(0, self._session.pool.free_count - len(self._unsent))

    @property
    def has_results(self) -> bool:
        """Whether a run has ended whose result was not received yet."""
        return self._session.pool.has_result

    @property
    def is_running(self) -> bool:
        """Whether there is anything to wait for."""
        return bool(self._receivers or self._trials)

    def take_finished(self) -> Trial | None:
        """Return a trial that has all its runs; None: there is none."""
        return self._finished.popleft() if self._finished else None

    def run_alone(self, trial: Trial) -> Trial:
        """Start a trial and wait for all its runs, with nothing else under way."""
        self.start_trial(trial)
        while (finished := self.take_finished()) is None:
            self.receive()
            self.fill_free_devices()
        return finished

    # -- sending -----------------------------------------------------------------------

    def start_trial(self, trial: Trial) -> None:
        """Open a trial and send its first run."""
        self._trials.append(trial)
        self._advance_trial(trial)

    def start_rerun(self, candidate: Candidate, receiver: Receiver) -> None:
        """Run a decided experiment once more, on a fresh seed."""
        number = candidate.proposal.number
        assert number is not None, "it was decided under a number"
        paces = queries.load_tokens_per_second(self._ledger, number)
        self.start_run(candidate, self.seeds.draw(number), receiver, paces=paces)

    def start_run(
        self,
        candidate: Candidate,
        seed: int,
        receiver: Receiver,
        *,
        paces: tuple[float, ...] = (),
    ) -> None:
        """Start one run that belongs to no trial, scored on both splits.

        paces: tokens per second of earlier runs, to tell a slowed-down run by.
        """
        request = RunRequest(
            next(self._ids), candidate, seed, self.terms, holdout=True, paces=paces
        )
        self._submit(request, receiver)

    def fill_free_devices(self) -> None:
        """Give free devices to open trials that want further runs."""
        self._send_unsent()
        for trial in tuple(self._trials):
            if not self.free_count:
                return
            if trial.scores or not trial.pending:
                self._advance_trial(trial)

    def _submit(self, request: RunRequest, receiver: Receiver) -> None:
        self._receivers[request.id] = receiver
        self._unsent.append(request)
        self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent and self._session.pool.free_count:
            self._session.pool.submit(self._unsent.popleft())

    # -- receiving ---------------------------------------------------------------------

    def receive(self) -> None:
        """Wait for one run to end, and let its trial continue.

        Raises what ended a worker (RunStopped, LabError, OSError), after all have
        ended; RunStopped as well when a stop is requested while no machine is there.
        """
        self._send_unsent()
        try:
            ended = self._session.pool.next_result()
        except (RunStopped, LabError, OSError):
            self.end_runs()
            raise
        if ended is None:
            if self._session.workbench.stop.soon:
                raise RunStopped
            time.sleep(NO_MACHINE_SECONDS)
        elif isinstance(ended, RunLost):
            self._run_again(ended)
        else:
            self._deliver(ended)

    def _deliver(self, ended: RunResult) -> None:
        receiver = self._receivers.pop(ended.request.id, None)
        if receiver is None:  # its machine was given up, and another one was faster
            if isinstance(ended.outcome, Score):
                self._session.pool.release(ended.outcome)
            return
        for notice in ended.notices:
            self._session.recorder.notify_once(notice.words, notice.about)
        receiver(ended)

    def _run_again(self, lost: RunLost) -> None:
        key = lost.request.id
        if key not in self._receivers:
            return
        self._attempts[key] = self._attempts.get(key, 0) + 1
        if self._attempts[key] >= MAX_ATTEMPTS:
            self.end_runs()
            raise LabError(
                f"{MAX_ATTEMPTS} machines went away during one run ({lost.why}). "
                "Next: check these machines, then: autoresearch run   (it continues "
                "where it was)"
            )
        if (pruner := lost.request.pruner) is not None:
            pruner.reset()
        self._unsent.append(lost.request)
        self._send_unsent()

    def end_runs(self) -> None:
        """End every run under way, and wait until all have ended."""
        if not self._receivers:
            return
        self._session.workbench.stop.now = True
        self._receivers.clear()
        self._unsent.clear()
        while True:
            try:
                if self._session.pool.next_result() is None:
                    return
            except (RunStopped, LabError, OSError):
                continue

    # -- one trial ---------------------------------------------------------------------

    def _advance_trial(self, trial: Trial) -> None:
        """Send what a trial wants next; close it when it wants nothing more."""
        if trial.failure is None and not trial.keeps and self._sends_runs(trial):
            return
        if trial.failure is None and trial.keeps and self._sends_to_holdout(trial):
            return
        if not trial.pending:
            self._close_trial(trial)

    def _sends_runs(self, trial: Trial) -> bool:
        """Start the runs it wants; False: it has all it needs, and `keeps` is known."""
        evidence, change = self._load_evidence(trial), self._measure_change(trial)
        policy, free = self._session.policy, self.free_count
        plan = plan_runs(trial, policy, evidence, change, max(1, free))
        for kind in plan[:free]:
            self._start_run(trial, kind, evidence)
        if plan or trial.pending:
            return True
        if not trial.is_baseline:
            adjusted = evidence.adjust_scores(trial.scores)
            verdict = policy.decide(adjusted, evidence.build_history(change), change)
            trial.keeps = verdict.decision == "keep"
        return False

    def _close_trial(self, trial: Trial) -> None:
        self._trials.remove(trial)
        self._finished.append(trial)
        for score in trial.scores:
            self._session.pool.release(score)

    def _load_evidence(self, trial: Trial) -> Evidence:
        """Load what is known now, with the champion runs made for this trial."""
        evidence = queries.load_evidence(self._ledger)
        champion = evidence.champions[-1] if evidence.champions else None
        for score in trial.champion_runs:
            if champion and score.run.candidate.blob == champion.blob:
                evidence = evidence.with_champion_run(score)
        return evidence

    def _measure_change(self, trial: Trial) -> CodeSizeChange:
        """Compare its code size with that of the current champion."""
        champion = self._ledger.champion
        if champion is None:
            return NO_CHANGE
        source = self._ledger.load_source(champion.blob)
        return constraints.compare_code_size(source, trial.candidate.proposal.source)

    def _start_run(self, trial: Trial, kind: RunKind, evidence: Evidence) -> None:
        trial.pending.append(kind)
        champion = self._ledger.champion
        if kind == "champion":
            assert champion is not None, "a baseline has no rival"
            source = self._ledger.load_source(champion.blob)
            self.start_rerun(
                candidate_from_champion(source, champion),
                lambda ended: self._receive_champion(trial, ended),
            )
            return
        index = trial.started
        trial.started += 1
        paces: tuple[float, ...] = ()
        if champion is not None:
            paces = queries.load_tokens_per_second(self._ledger, champion.number)
        request = RunRequest(
            next(self._ids),
            trial.candidate,
            compute_seed(self._session.seed, trial.first_run + index),
            self.terms,
            holdout=trial.is_baseline,
            pruner=None if index else self._make_pruner(trial, evidence),
            paces=paces,
        )
        self._submit(
            request, lambda ended: self._receive_candidate(trial, index, ended)
        )

    def _receive_candidate(self, trial: Trial, index: int, ended: RunResult) -> None:
        trial.pending.remove("candidate")
        trial.champion_failed = False
        if isinstance(ended.outcome, Score):
            trial.runs[index] = ended.outcome
        elif trial.failure is None:
            trial.failure = ended.outcome
            if trial.is_baseline and self._session.pool.capacity > 1:
                where = f"{ended.outcome.detail}, on GPU {ended.device.index}"
                trial.failure = replace(ended.outcome, detail=where)
        self._advance_trial(trial)

    def _receive_champion(self, trial: Trial, ended: RunResult) -> None:
        trial.pending.remove("champion")
        if isinstance(ended.outcome, Score):
            trial.champion_runs += (ended.outcome,)
        else:
            trial.champion_failed = True
            report_champion_failure(self._session, ended.outcome)
        self._advance_trial(trial)

    def _sends_to_holdout(self, trial: Trial) -> bool:
        """Send runs to be scored on the holdout; False: all are scored there."""
        unscored = [n for n, score in trial.runs.items() if score.holdout is None]
        for index in unscored:
            if self.free_count and index not in trial.sent_to_holdout:
                trial.sent_to_holdout.add(index)
                trial.pending.append("holdout")
                self._submit_holdout(trial, index)
        return bool(unscored)

    def _submit_holdout(self, trial: Trial, index: int) -> None:
        score = trial.runs[index]
        request = RunRequest(
            next(self._ids), trial.candidate, score.run.seed, self.terms, score=score
        )
        self._submit(request, lambda ended: self._receive_holdout(trial, index, ended))

    def _receive_holdout(self, trial: Trial, index: int, ended: RunResult) -> None:
        trial.pending.remove("holdout")
        if isinstance(ended.outcome, Score):
            trial.runs[index] = ended.outcome
        else:
            trial.failure = trial.failure or ended.outcome
        self._advance_trial(trial)

    def _make_pruner(self, trial: Trial, evidence: Evidence) -> Pruner | None:
        """Make what may end a candidate's first run early; None: nothing may."""
        champion = evidence.build_history().champion
        if champion is None or not self._session.recorder.program.early_kill:
            return None
        seed = compute_seed(self._session.seed, 0)
        seed_effect = evidence.effects.by_seed.get(seed, 0.0)
        return Pruner(
            trial.finished_runs,
            fmean(champion.values) + seed_effect,
            find_score_on_seed(evidence, trial.candidate.proposal.parent, seed),
            schedule=trial.changes_schedule,
            spare=is_exempt(self._session.seed, trial.number),
            lower_is_better=self._session.workbench.apparatus.lower_is_better,
        )


def open_trial(session: Session, candidate: Candidate) -> Trial:
    """Make the trial of a candidate, with what its runs need from the ledger."""
    ledger, proposal = session.recorder.ledger, candidate.proposal
    trial = Trial(candidate)
    if session.recorder.program.early_kill:
        trial.finished_runs = tuple(
            run for run, _ in queries.load_finished_runs(ledger, ledger.series)
        )
    if proposal.author == HARNESS_AUTHOR:  # a second look: fresh seeds, never pruned
        trial.first_run = len(queries.load_used_seeds(ledger, trial.number))
        trial.finished_runs = ()
    trial.changes_schedule = bool(proposal.parent) and touches_schedule(
        ledger.load_source(proposal.parent), proposal.source
    )
    return trial


def candidate_from_champion(source: str, champion: Champion) -> Candidate:
    """Return the champion as a candidate, to be run once more."""
    proposal = Proposal(champion.number, "champion", source, "", HARNESS_AUTHOR)
    return Candidate(proposal, champion.blob)


def find_score_on_seed(evidence: Evidence, blob: str, seed: int) -> float | None:
    """What a train.py scored on a seed, as measured; None: it did not run there."""
    rows = (row for row in evidence.rows if row.blob == blob)
    runs = (run for row in rows for run in seed_scores_from_row(row))
    return next((value for run_seed, value in runs if run_seed == seed), None)
