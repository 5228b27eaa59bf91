"""Acceptance policies: may a candidate take the champion's place?

A policy is pure: scores in, Verdict out. It is asked twice, once while the candidate
still holds its device (`wants`) and once when it has given it back (`decide`).
Which direction is better is said in one place, `gain`.
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
        """Which run would help the verdict most, while the device is held.

        Asked again after each run, with that run added: to `scores`, or to the
        champion's values and the history. No champion: the baseline.
        """
        ...

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """Scores -> Verdict; `unresolved` where it may be better but is not proven."""
        ...

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """The former champion to put back, because this one turned out worse.

        Ask after every verdict. None almost always.
        """
        ...

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """The blob to run once more now that so many runs are left of the night.

        None: go on (or end, where no ideas are to be tried any more). A blob that is
        neither champion nor baseline gets a second look: an experiment of its own,
        on seeds that it has not run with.
        """
        ...

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """The blob that the next proposal should start from; None: the champion's.

        Not only for anneal and islands: the noise-aware policy works along a line of
        promising, not yet proven changes, and crowns what is proven. `rows` are those
        of the history. How to use it: ask before each proposal; whoever proposes sees
        this blob's source as the one to change, and its Proposal.parent is this blob.
        The verdict is on the candidate as a whole against the champion of record,
        which is always the best measured. A loop that never asks loses gain, not truth.
        """
        ...


def estimate_score_noise(history: History) -> Noise | None:
    """The noise of one score; None: nothing ran twice."""
    return history.noise or estimate_pooled_noise(history.replicates)


def has_earlier_runs(scores: Scores, history: History) -> bool:
    """Whether this train.py has an experiment already, so that all runs are fresh."""
    blob = scores[0].run.candidate.blob
    return any(row.blob == blob and row.values for row in history.rows)


def compute_gain(scores: Scores, champion: Champion, *, lower_is_better: bool) -> float:
    """How much better than the champion's mean, in the metric's own units."""
    difference = fmean(champion.values) - fmean(score.value for score in scores)
    return difference if lower_is_better else -difference
