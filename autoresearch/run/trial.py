"""One candidate on its way to a verdict: the runs it has had, and those it wants next.

`plan_runs` is pure: the same scores and the same evidence give the same plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """A candidate, what came back of its runs, and what is still under way."""

    candidate: Candidate
    is_baseline: bool = False  # measured alone, on both splits, against nothing
    is_closing: bool = False  # one of a session's closing runs
    first_run: int = 0  # runs of the same train.py under another number
    finished_runs: tuple[
        FinishedRun, ...
    ] = ()  # runs whose learning curves it is compared with
    changes_schedule: bool = False
    runs: dict[int, Score] = field(default_factory=dict)  # by their place in the order
    champion_runs: Scores = ()  # runs of the champion that were made on the way
    failure: Failure | None = None
    champion_failed: bool = False  # when it was run again just now
    started: int = 0  # runs of the candidate
    pending: list[RunKind | Literal["holdout"]] = field(default_factory=list)
    keeps: bool = False  # it will be kept, once its runs are scored on the holdout
    sent_to_holdout: set[int] = field(default_factory=set)  # places of runs

    @property
    def number(self) -> int:
        """Its experiment."""
        number = self.candidate.proposal.number
        assert number is not None, "only admitted proposals get this far"
        return number

    @property
    def scores(self) -> Scores:
        """One per run, in the order of the seeds."""
        return tuple(self.runs[place] for place in sorted(self.runs))

    @property
    def result(self) -> Scores | Failure:
        """The failure, where there is one; else the scores."""
        if self.failure is None:
            return self.scores
        return add_earlier_scores(self.failure, self.scores)


def plan_runs(
    trial: Trial, policy: Policy, evidence: Evidence, change: CodeSizeChange, free: int
) -> list[RunKind]:
    """The runs to start now, at most `free`, so that a proof's runs go side by side.

    Runs under way, and those planned before it, are taken to come out like the mean of
    what was seen; with nothing seen one run goes first, alone: most candidates lose by
    it, and a baseline's first run compiles what the others are lent.
    """
    planned: list[RunKind] = []
    scores, expected = trial.scores, evidence
    if not scores:
        if trial.pending:
            return []
        free = min(free, 1)
    elif choose_run(policy, expected, scores, change) is None:
        return []  # what is under way comes in, and no more is asked for
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
    """Which run the policy wants next; None: no more."""
    wanted = policy.choose_next_run(
        evidence.adjust_scores(scores), evidence.build_history(change)
    )
    return None if wanted == "nothing" else wanted


def add_expected(
    kind: RunKind, scores: Scores, evidence: Evidence
) -> tuple[Scores, Evidence]:
    """The same with one more run, of the candidate or of the champion, as expected."""
    if kind == "candidate":
        return (*scores, scores[-1]), evidence
    values = evidence.champions[-1].values
    run = replace(scores[-1].run, seed=0)
    expected = replace(scores[-1], run=run, value=sum(values) / len(values))
    return scores, evidence.with_champion_run(expected)


def add_earlier_scores(failure: Failure, scores: Sequence[Score]) -> Failure:
    """The failure of a candidate that had scores before it failed: say so."""
    if not scores:
        return failure
    values = ", ".join(format_exact(score.value) for score in scores)
    detail = f"{failure.detail} (on a further seed; before: {values})"
    return replace(failure, detail=detail)
