"""Scores -> Verdict, written into the books, and what follows from it.

A former champion may be put back, and the person is told of a drift and of a plateau.
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
    """Decide a trial that has all its runs, and write the verdict down.

    A baseline has no rival. Everything else meets the champion of this moment, which
    may have been crowned while the candidate ran.
    """
    books, result, again = session.recorder, trial.result, trial.champion_runs
    if again:
        books.ledger.record_runs(again, "champion")
    rival = None if trial.is_baseline else books.ledger.champion
    if isinstance(result, Failure):
        return write_verdict(session, verdict_from_failure(result, rival), again)
    change = NO_CHANGE
    if rival is not None:
        source = trial.candidate.proposal.source
        change = constraints.compare_code_size(
            books.ledger.load_source(rival.blob), source
        )
    known = queries.load_evidence(books.ledger)
    history, fair = known.build_history(change), known.adjust_scores(result)
    if rival is None:
        history = replace(history, champion=None)
    verdict = session.policy.decide(fair, history, change)
    delta = None
    if history.champion is not None:
        delta = compute_mean_score(fair) - fmean(history.champion.values)
    verdict = replace(verdict, evidence=result, against=rival, delta=delta)
    return write_verdict(session, verdict, again)


def verdict_from_failure(failure: Failure, rival: Champion | None) -> Verdict:
    """The verdict on a candidate without a score: failed, or ended early."""
    if failure.kind == "ended early":
        return Verdict("discard", failure.detail, failure, rival)
    why = f"{failure.kind}: {failure.detail}"
    return Verdict("failed", why, failure, rival)


def trial_from_refusal(
    proposal: Proposal, failure: Failure, *, is_baseline: bool = False
) -> Trial:
    """The trial of a proposal that must not run."""
    candidate = Candidate(proposal, compute_blob_id(proposal.source))
    return Trial(candidate, is_baseline=is_baseline, failure=failure)


def record_rerun(session: Session, ended: RunResult) -> None:
    """Write down one more run of an experiment that was decided."""
    if isinstance(ended.outcome, Failure):
        failure = ended.outcome
        number = failure.proposal.number
        session.recorder.notify_once(
            f"the champion, experiment {number}, failed when it was run again: "
            f"{failure.kind}: {failure.detail}",
            f"failed again {number}",
        )
        return
    session.recorder.ledger.record_runs((ended.outcome,), "champion")
    session.recorder.write_results()
    restore_former_champion(session)


def compute_mean_score(scores: Scores) -> float:
    """The mean of a candidate's scores."""
    return fmean(score.value for score in scores)


def write_verdict(session: Session, verdict: Verdict, again: Scores = ()) -> Row:
    """A verdict in the books, and what follows from it for the champion."""
    books = session.recorder
    row = books.record_verdict(verdict, again)
    evaluator.settle_claims(
        session.workbench.lab, row.number, kept=row.decision == "keep"
    )
    say_drift_and_plateau(session, restore_former_champion(session))
    return row


def restore_former_champion(session: Session) -> History:
    """Put a former champion back, if what was run since says so -> what is known."""
    books = session.recorder
    history = queries.load_evidence(books.ledger).build_history()
    champion, former = (
        history.champion,
        session.policy.find_champion_to_restore(history),
    )
    if champion is None or former is None:
        return history
    books.revert_champion(champion, former, explain_restoration(former, champion))
    return queries.load_evidence(books.ledger).build_history()


def explain_restoration(former: Champion, champion: Champion) -> str:
    """Why a champion is taken back."""
    now, then = fmean(champion.values), fmean(former.values)
    return (
        f"{format_exact(now)} in {len(champion.values)} runs, experiment {former.number} "
        f"before it {format_exact(then)} in {len(former.values)}"
    )


def say_drift_and_plateau(session: Session, history: History) -> None:
    """Tell the human of a drift, and of a plateau."""
    found = noise.detect_drift(history.replicates, history.end_times)
    if found is not None:
        session.recorder.notify_once(
            f"the same train.py scores {found.per_hour:+.2g} an hour: something about "
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
