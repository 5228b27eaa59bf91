"""One candidate on its way to a verdict: the runs it has had, and those it wants next.

`plan_runs` is pure: the same scores and the same evidence give the same plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from autoresearch.experiment import Candidate, CodeSizeChange, Failure, Score, Scores
from autoresearch.policies import Policy
from autoresearch.stats.early_stopping import FinishedRun
from autoresearch.stats.history import Evidence
from autoresearch.text import format_exact

RunKind = Literal["candidate", "champion"]
NO_CHANGE = CodeSizeChange(0, 0)


@dataclass(eq=False, slots=True)
class Trial:
    """A candidate, the results of its runs, and the runs still under way."""

    candidate: Candidate
    is_baseline: bool = False  # measured alone, on both splits, against nothing
    is_closing: bool = False  # one of a session's closing runs
    first_run: int = 0  # runs of the same train.py under another number
    finished_runs: tuple[FinishedRun, ...] = ()  # whose learning curves it is held to
    changes_schedule: bool = False
    runs: dict[int, Score] = field(default_factory=dict)  # by index in seed order
    champion_runs: Scores = ()  # champion runs made for this trial
    failure: Failure | None = None
    champion_failed: bool = False  # in its latest run for this trial
    started: int = 0  # runs of the candidate
    pending: list[RunKind | Literal["holdout"]] = field(default_factory=list)
    keeps: bool = False  # to be kept, once its runs are scored on the holdout
    sent_to_holdout: set[int] = field(default_factory=set)  # indices of runs

    @property
    def number(self) -> int:
        """Its experiment."""
        number = self.candidate.proposal.number
        assert number is not None, "only admitted proposals get this far"
        return number

    @property
    def scores(self) -> Scores:
        """One per run, in the order of the seeds."""
        return tuple(self.runs[index] for index in sorted(self.runs))

    @property
    def result(self) -> Scores | Failure:
        """The failure, if it failed; else the scores."""
        if self.failure is None:
            return self.scores
        return add_earlier_scores(self.failure, self.scores)


def plan_runs(
    trial: Trial, policy: Policy, evidence: Evidence, change: CodeSizeChange, free: int
) -> list[RunKind]:
    """Plan the runs to start now, at most `free`, so that a proof runs in parallel.

    Runs under way, and those planned earlier in this plan, are assumed to score the
    mean of what was seen. The first run goes alone: most candidates are discarded by
    it, and the compiled code of a baseline's first run is lent to the others.
    """
    planned: list[RunKind] = []
    scores, expected = trial.scores, evidence
    if not scores:
        if trial.pending:
            return []
        free = min(free, 1)
    elif choose_run(policy, expected, scores, change) is None:
        return []  # what is under way is waited for, and nothing is added to it
    for kind in trial.pending:
        if kind != "holdout":
            scores, expected = add_expected(kind, scores, expected)
    while len(planned) < free:
        wanted = choose_run(policy, expected, scores, change)
        if wanted == "champion" and trial.champion_failed:
            wanted = None if trial.scores else "candidate"
        if wanted is None:
            break
        planned.append(wanted)
        if not trial.scores:
            break
        scores, expected = add_expected(wanted, scores, expected)
    return planned


def choose_run(
    policy: Policy, evidence: Evidence, scores: Scores, change: CodeSizeChange
) -> RunKind | None:
    """Ask the policy which run it wants next; None: no more."""
    wanted = policy.choose_next_run(
        evidence.adjust_scores(scores), evidence.build_history(change)
    )
    return None if wanted == "nothing" else wanted


def add_expected(
    kind: RunKind, scores: Scores, evidence: Evidence
) -> tuple[Scores, Evidence]:
    """Add one run at the mean of its train.py so far. Seed 0 has no seed effect."""
    run = replace(scores[-1].run, seed=0)
    if kind == "candidate":
        values = [score.value for score in evidence.adjust_scores(scores)]
        return (*scores, replace(scores[-1], run=run, value=fmean(values))), evidence
    value = fmean(evidence.champions[-1].values)
    return scores, evidence.with_champion_run(replace(scores[-1], run=run, value=value))


def add_earlier_scores(failure: Failure, scores: Sequence[Score]) -> Failure:
    """Return the failure with the scores that came before it in its detail."""
    if not scores:
        return failure
    values = ", ".join(format_exact(score.value) for score in scores)
    detail = f"{failure.detail} (on a further seed; before: {values})"
    return replace(failure, detail=detail)
