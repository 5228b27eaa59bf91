"""Acceptance policies: whether a candidate becomes champion.

A policy is pure: scores in, Verdict out. It is called while the candidate still holds
its device (`choose_next_run`), and after its last run (`decide`).
`compute_gain` is the one place that knows which direction is better.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, Protocol

from autoresearch.experiment import (
    Champion,
    CodeSizeChange,
    History,
    Noise,
    Row,
    Scores,
    Verdict,
)
from autoresearch.stats.noise import estimate_pooled_noise

NextRun = Literal["candidate", "champion", "nothing"]


class Policy(Protocol):
    """Decides which candidates are kept."""

    def choose_next_run(self, scores: Scores, history: History) -> NextRun:
        """The run that would help the verdict most, while the device is held.

        Called again after each run, with that run added to `scores`, or to the
        champion's values and the history. No champion in the history: the candidate is
        the baseline.
        """
        ...

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """Scores -> Verdict; `unresolved` where it may be better but is not proven."""
        ...

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """The former champion to restore, because this one turned out worse.

        Called after every verdict; almost always None.
        """
        ...

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """The blob to run again, when `left` runs are left of the session.

        None: go on, or end if no proposals are to follow. A blob that is neither
        champion nor baseline gets a second look: an experiment of its own, on seeds
        that it has not run with.
        """
        ...

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """The blob that the next proposal should start from; None: the champion's.

        Not only for anneal and islands: the noise-aware policy works along a line of
        promising, unproven changes, and makes champion what is proven. `rows` are those
        of the history. Called before each proposal: the proposer sees this blob's
        source as the one to change, and Proposal.parent is this blob. The verdict is on
        the candidate as a whole against the champion of record, which is always the
        best measured one. A loop that never calls it loses gain, not validity.
        """
        ...


def estimate_score_noise(history: History) -> Noise | None:
    """The noise of one score; None: nothing ran twice."""
    return history.noise or estimate_pooled_noise(history.replicates)


def has_earlier_runs(scores: Scores, history: History) -> bool:
    """Whether this train.py has an experiment, which makes all of these runs fresh."""
    blob = scores[0].run.candidate.blob
    return any(row.blob == blob and row.values for row in history.rows)


def compute_gain(scores: Scores, champion: Champion, *, lower_is_better: bool) -> float:
    """Gain over the champion's mean, in the metric's units; positive is better."""
    difference = fmean(champion.values) - fmean(score.value for score in scores)
    return difference if lower_is_better else -difference
