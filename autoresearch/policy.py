"""Acceptance policies: may a candidate take the champion's place?

A policy is pure: scores in, Verdict out. It is asked twice, once while the candidate
still holds its device (`wants`) and once when it has given it back (`decide`).
Which direction is better is said in one place, `gain`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

from autoresearch.errors import LabError
from autoresearch.experiment import Champion, Change, History, Scores, Tried, Verdict

Wanted = Literal["candidate", "champion", "nothing"]


class Policy(Protocol):
    """Decides which candidates are kept."""

    def wants(self, scores: Scores, history: History) -> Wanted:
        """Which run would help the verdict most, while the device is held.

        Asked again after each run, with that run added: to `scores`, or to the
        champion's values and the history. No champion: the baseline.
        """
        ...

    def decide(self, scores: Scores, history: History, change: Change) -> Verdict:
        """Scores -> Verdict. Unresolved is a discard whose reason says so first."""
        ...

    def demoted(self, history: History) -> Champion | None:
        """The former champion to put back, because this one turned out worse.

        Ask after every verdict. None almost always.
        """
        ...

    def parent(self, history: History, rows: Sequence[Tried]) -> str | None:
        """The blob that the next proposal should start from; None: the champion's.

        Not only for anneal and islands: the noise-aware policy works along a line of
        promising, not yet proven changes, and crowns what is proven. `rows` are those
        of the history. How to use it: ask before each proposal; whoever proposes sees
        this blob's source as the one to change, and its Proposal.parent is this blob.
        The verdict is on the candidate as a whole against the champion of record,
        which is always the best measured. A loop that never asks loses gain, not truth.
        """
        ...


@dataclass(frozen=True, slots=True)
class Greedy:
    """The article's rule: strictly better wins, after one run each.

    It knows no noise: about half of what it keeps near the end of a night is luck
    (measured elsewhere, see docs/how-it-works.md).
    """

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    def wants(self, scores: Scores, history: History) -> Wanted:
        """One run settles it."""
        return "nothing" if scores else "candidate"

    def decide(self, scores: Scores, history: History, change: Change) -> Verdict:
        """Keep a gain that is positive and pays for the lines it adds."""
        champion, added = history.champion, change.added_lines
        if champion is None:
            return Verdict("keep", "baseline", scores)
        won = gain(scores, champion, lower_is_better=self.lower_is_better)
        price = self.gain_per_20_added_lines * max(0, added) / 20
        if not won > 0:  # a nan is no gain either
            return Verdict("discard", f"worse by {abs(won):.6f}", scores, champion)
        if not won > price:
            reason = f"gain {won:.6f} does not pay for {added} added lines"
            return Verdict("discard", f"{reason} ({price:.6f})", scores, champion)
        return Verdict("keep", f"gain {won:.6f}", scores, champion)

    def demoted(self, history: History) -> Champion | None:
        """It measures nothing twice, so it learns of no mistake."""
        return None

    def parent(self, history: History, rows: Sequence[Tried]) -> str | None:
        """The champion."""
        return None


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
