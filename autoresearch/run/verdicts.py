"""Scores -> Verdict, recorded, and what follows from it.

A former champion may be restored, and the user is told of a drift and of a plateau.
"""

from dataclasses import replace
from statistics import fmean

from autoresearch.experiment import (
    Candidate,
    Champion,
    Failure,
    History,
    Proposal,
    Row,
    Scores,
    Verdict,
)
from autoresearch.git import compute_blob_id
from autoresearch.lab import constraints
from autoresearch.measure import evaluator
from autoresearch.measure.messages import RunResult
from autoresearch.proposers.context import PLATEAU_EXPERIMENTS
from autoresearch.records import queries
from autoresearch.run.session import Session
from autoresearch.run.trial import NO_CHANGE, Trial
from autoresearch.stats import noise
from autoresearch.text import format_exact


def record_trial(session: Session, trial: Trial) -> Row:
    """Decide a trial that has all its runs, and record the verdict.

    A baseline has no rival. Every other candidate is compared with the champion of
    this moment, which may have become champion while the candidate ran.
    """
    recorder, result, reruns = session.recorder, trial.result, trial.champion_runs
    if reruns:
        recorder.ledger.record_runs(reruns, "champion")
    rival = None if trial.is_baseline else recorder.ledger.champion
    if isinstance(result, Failure):
        return write_verdict(session, verdict_from_failure(result, rival), reruns)
    change = NO_CHANGE
    if rival is not None:
        source = trial.candidate.proposal.source
        change = constraints.compare_code_size(
            recorder.ledger.load_source(rival.blob), source
        )
    evidence = queries.load_evidence(recorder.ledger)
    history, adjusted = evidence.build_history(change), evidence.adjust_scores(result)
    if rival is None:
        history = replace(history, champion=None)
    verdict = session.policy.decide(adjusted, history, change)
    delta = None
    if history.champion is not None:
        delta = compute_mean_score(adjusted) - fmean(history.champion.values)
    verdict = replace(verdict, evidence=result, against=rival, delta=delta)
    return write_verdict(session, verdict, reruns)


def verdict_from_failure(failure: Failure, rival: Champion | None) -> Verdict:
    """Return the verdict on a candidate without a score: failed, or pruned."""
    if failure.kind == "ended early":
        return Verdict("discard", failure.detail, failure, rival)
    why = f"{failure.kind}: {failure.detail}"
    return Verdict("failed", why, failure, rival)


def trial_from_refusal(
    proposal: Proposal, failure: Failure, *, is_baseline: bool = False
) -> Trial:
    """Make the trial of a proposal that must not run."""
    candidate = Candidate(proposal, compute_blob_id(proposal.source))
    return Trial(candidate, is_baseline=is_baseline, failure=failure)


def record_rerun(session: Session, ended: RunResult) -> None:
    """Record one more run of an experiment that was decided."""
    if isinstance(ended.outcome, Failure):
        report_champion_failure(session, ended.outcome)
        return
    session.recorder.ledger.record_runs((ended.outcome,), "champion")
    session.recorder.write_results()
    restore_former_champion(session)


def report_champion_failure(session: Session, failure: Failure) -> None:
    """Tell the user, once, that a champion failed when it was run again."""
    number = failure.proposal.number
    session.recorder.notify_once(
        f"the champion, experiment {number}, failed when it was run again: "
        f"{failure.kind}: {failure.detail}",
        f"failed again {number}",
    )


def compute_mean_score(scores: Scores) -> float:
    """The mean of a candidate's scores."""
    return fmean(score.value for score in scores)


def write_verdict(session: Session, verdict: Verdict, reruns: Scores = ()) -> Row:
    """Record a verdict, and restore a former champion if it follows from it.

    reruns: runs of the champion that were made on the way.
    """
    recorder = session.recorder
    row = recorder.record_verdict(verdict, reruns)
    evaluator.settle_claims(
        session.workbench.lab, row.number, kept=row.decision == "keep"
    )
    report_drift_and_plateau(session, restore_former_champion(session))
    return row


def restore_former_champion(session: Session) -> History:
    """Restore a former champion if later runs show that it is better.

    Return the history after that.
    """
    recorder = session.recorder
    history = queries.load_evidence(recorder.ledger).build_history()
    champion = history.champion
    former = session.policy.find_champion_to_restore(history)
    if champion is None or former is None:
        return history
    recorder.revert_champion(champion, former, explain_restoration(former, champion))
    return queries.load_evidence(recorder.ledger).build_history()


def explain_restoration(former: Champion, champion: Champion) -> str:
    """Say why a champion is reverted."""
    now, then = fmean(champion.values), fmean(former.values)
    return (
        f"{format_exact(now)} in {len(champion.values)} runs, experiment "
        f"{former.number} before it {format_exact(then)} in {len(former.values)}"
    )


def report_drift_and_plateau(session: Session, history: History) -> None:
    """Tell the user of a drift, and of a plateau."""
    drift = noise.detect_drift(history.replicates, history.end_times)
    if drift is not None:
        session.recorder.notify_once(
            f"the same train.py scores {drift.per_hour:+.2g} an hour: something about "
            "this machine drifts (heat, a neighbour). Policies that know the noise "
            "keep nothing now that did not run side by side with the champion",
            "drift",
        )
    champion = history.champion
    since = sum(row.number > champion.number for row in history.rows) if champion else 0
    if champion is not None and since >= PLATEAU_EXPERIMENTS:
        session.recorder.notify_once(
            f"{since} experiments since the last keep: proposers are asked for "
            "something structurally different",
            f"plateau {champion.number}",
        )
