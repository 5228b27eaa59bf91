"""Acceptance policies: may a candidate take the champion's place?

A policy is pure: scores in, Verdict out. It is asked twice, once while the candidate
still holds its device (`wants_more`) and once when it has given it back (`decide`).
Which direction is better is said in one place, `gain`.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from autoresearch.errors import LabError
from autoresearch.experiment import Champion, Scores, Verdict


class Policy(Protocol):
    """Decides which candidates are kept."""

    def wants_more(self, scores: Scores, champion: Champion | None) -> bool:
        """Whether another run could change the verdict. No champion: the baseline."""
        ...

    def decide(
        self, scores: Scores, champion: Champion | None, added_lines: int
    ) -> Verdict:
        """Scores -> Verdict."""
        ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """The article's rule: strictly better wins, after one run each.

    It knows no noise: about half of what it keeps near the end of a night is luck
    (measured elsewhere, see docs/how-it-works.md).
    """

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    def wants_more(self, scores: Scores, champion: Champion | None) -> bool:
        """One run settles it."""
        return not scores

    def decide(
        self, scores: Scores, champion: Champion | None, added_lines: int
    ) -> Verdict:
        """Keep a gain that is positive and pays for the lines it adds."""
        if champion is None:
            return Verdict("keep", "baseline", scores)
        won = gain(scores, champion, lower_is_better=self.lower_is_better)
        price = self.gain_per_20_added_lines * max(0, added_lines) / 20
        if not won > 0:  # a nan is no gain either
            return Verdict("discard", f"worse by {abs(won):.6f}", scores, champion)
        if not won > price:
            reason = f"gain {won:.6f} does not pay for {added_lines} added lines"
            return Verdict("discard", f"{reason} ({price:.6f})", scores, champion)
        return Verdict("keep", f"gain {won:.6f}", scores, champion)


def named(
    name: str, *, lower_is_better: bool, gain_per_20_added_lines: float
) -> Policy:
    """The policy that program.md names."""
    if name != "greedy":
        raise LabError(f"unknown policy {name!r}; the policies are: greedy")
    return Greedy(lower_is_better, gain_per_20_added_lines)


def gain(scores: Scores, champion: Champion, *, lower_is_better: bool) -> float:
    """How much better than the champion's mean, in the metric's own units."""
    difference = fmean(champion.values) - fmean(score.value for score in scores)
    return difference if lower_is_better else -difference
