"""The loop: propose, run, measure, decide, record. Read this file first.

    Proposal --recorder--> Candidate --device: train--> Run --device: score--> Score
                                    --policy--> Verdict --recorder--> ledger, git

Everything in this file happens in one process, one step at a time, so there is one
writer. Runs go to devices as plain values (`measure.messages`), and their results are
received before anything new is proposed. What a trial runs next is decided in
`run/trial.py`, what follows from a verdict in `run/verdicts.py`, and how a session ends
in `run/closing.py`.
"""

import time
from collections.abc import Iterator

from autoresearch.errors import ExperimentFailed, RunStopped
from autoresearch.experiment import Proposal, Row
from autoresearch.records import queries
from autoresearch.run.baseline import measure_baseline
from autoresearch.run.closing import ClosingRuns
from autoresearch.run.dispatcher import Dispatcher, open_trial
from autoresearch.run.session import Session
from autoresearch.run.trial import Trial
from autoresearch.run.verdicts import record_trial, trial_from_refusal

IDLE_SECONDS = 0.5  # between two looks for a proposal, when there is none


def research(session: Session) -> Iterator[Row]:
    """Yield verdicts until the proposers are exhausted or a stop is requested.

    An experiment that a stop interrupts has no verdict: the next session resumes it.
    Raises LabError when the baseline fails. However it ends, no run continues after it.
    """
    before = session.recorder.ledger.run_count
    dispatcher = Dispatcher(session)
    try:
        if session.recorder.ledger.champion is None:
            yield measure_baseline(session, dispatcher)
            dispatcher = Dispatcher(session)  # a token budget has a wall time now
        yield from run_trials(
            session, dispatcher, ClosingRuns(session, dispatcher, before)
        )
    except RunStopped:
        return
    finally:
        dispatcher.end_runs()


def run_trials(
    session: Session, dispatcher: Dispatcher, closing: ClosingRuns
) -> Iterator[Row]:
    """Yield the verdict of each trial as it is decided.

    Results are received first, then open trials get the devices they want, then a new
    proposal is requested; if none of these applies, the session waits or ends.
    """
    proposal_count = 0
    while True:
        if (trial := dispatcher.take_finished()) is not None:
            yield decide_trial(session, closing, trial)
            continue
        if dispatcher.has_results:
            dispatcher.receive()
            continue
        dispatcher.fill_free_devices()
        is_over = session.is_over(proposal_count)
        if wants_proposal(session, dispatcher, closing, is_over=is_over):
            proposal = next_proposal(session, dispatcher.numbers)
            if proposal is not None:
                proposal_count += 1
                yield from start_trial(session, dispatcher, proposal)
                continue
        if dispatcher.is_running:
            dispatcher.receive()
        elif session.workbench.stop.soon:
            return
        elif blobs := closing.choose_runs(is_over=is_over):
            closing.start_runs(blobs)
        elif is_over or session.proposer.exhausted:
            return
        else:
            time.sleep(IDLE_SECONDS)


def wants_proposal(
    session: Session, dispatcher: Dispatcher, closing: ClosingRuns, *, is_over: bool
) -> bool:
    """Whether a device is free for a new idea; False once the session is closing."""
    if not dispatcher.free_count or session.workbench.stop.soon or is_over:
        return False
    return not closing.under_way and not closing.choose_runs()


def next_proposal(session: Session, under_way: set[int]) -> Proposal | None:
    """Return a proposal from the ledger (an interrupted run, a `try`), else a new one.

    under_way: numbers of experiments to skip. None: the lab is paused, or no proposer
    has an idea now.
    """
    lab, ledger = session.workbench.lab, session.recorder.ledger
    lab.require_disk_space()
    if lab.pause_path.exists():
        return None
    for queued in ledger.load_open_proposals():
        if queued.number not in under_way:
            return queued
    session.recorder.reload_program()
    history = queries.load_evidence(ledger).build_history()
    start = session.policy.choose_parent(history, history.rows)
    if history.champion is not None:
        ledger.set_start(start or history.champion.blob)
    proposal = session.proposer.propose(ledger)
    return session.recorder.admit_proposal(proposal) if proposal else None


def start_trial(
    session: Session, dispatcher: Dispatcher, proposal: Proposal
) -> Iterator[Row]:
    """Proposal -> Candidate, and send its first run. Yield the verdict if refused."""
    try:
        candidate = session.recorder.store_candidate(proposal)
    except ExperimentFailed as failed:
        yield record_trial(session, trial_from_refusal(proposal, failed.failure))
        return
    dispatcher.start_trial(open_trial(session, candidate))


def decide_trial(session: Session, closing: ClosingRuns, trial: Trial) -> Row:
    """Scores -> Verdict, recorded."""
    if trial.is_closing:
        closing.count_trial(trial)
    return record_trial(session, trial)
