"""Measure the baseline of a session: first, and with nothing else under way."""

from autoresearch.errors import ExperimentFailed, LabError
from autoresearch.experiment import HARNESS_AUTHOR, HUMAN_AUTHOR, Proposal, Row
from autoresearch.run.dispatcher import Dispatcher
from autoresearch.run.session import Session
from autoresearch.run.trial import Trial
from autoresearch.run.verdicts import record_trial, trial_from_refusal


def measure_baseline(session: Session, dispatcher: Dispatcher) -> Row:
    """Run the baseline as often as the policy wants; LabError when it fails.

    The first run goes alone, and the others are lent its compiled code. They run in
    parallel on all devices: two devices of one model differ slightly in speed, and the
    noise estimate has to include that.
    """
    recorder = session.recorder
    source, why = recorder.choose_start_source()
    fresh = recorder.ledger.find_last_keep() is None
    title = "baseline" if fresh else "champion again"
    number = 0 if fresh and recorder.ledger.load_row(0) is None else None
    author = HUMAN_AUTHOR if fresh else HARNESS_AUTHOR
    proposal = recorder.admit_proposal(Proposal(number, title, source, "", author, why))
    row = record_trial(session, run_baseline(session, dispatcher, proposal))
    if row.decision == "failed":
        raise LabError(
            f"{title} failed, and without it nothing can be compared: {row.why}. "
            f"Next: autoresearch show {row.number}   (its log), then fix train.py"
            + (", or leave a GPU out by CUDA_VISIBLE_DEVICES" * (session.width > 1))
        )
    return row


def run_baseline(session: Session, dispatcher: Dispatcher, proposal: Proposal) -> Trial:
    """Make all runs of the baseline, or the trial of a refused one."""
    try:
        candidate = session.recorder.store_candidate(proposal)
    except ExperimentFailed as failed:
        return trial_from_refusal(proposal, failed.failure, is_baseline=True)
    return dispatcher.run_alone(Trial(candidate, is_baseline=True))
