"""Greedy: a strictly better score wins, after one run each.

Promises: no more than that.

Not covered: noise. About half of what it keeps near the end of a session is noise
(measured elsewhere, see docs/how-it-works.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from autoresearch.experiment import (
    Champion,
    CodeSizeChange,
    History,
    Row,
    Scores,
    Verdict,
)
from autoresearch.policies import NextRun, compute_gain


@dataclass(frozen=True, slots=True)
class GreedyPolicy:
    """A verdict from a single run."""

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    def choose_next_run(self, scores: Scores, history: History) -> NextRun:
        """One run of the candidate."""
        return "nothing" if scores else "candidate"

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """Keep a gain that is positive and pays for the lines it adds."""
        champion, added = history.champion, change.added_lines
        if champion is None:
            return Verdict("keep", "baseline", scores)
        won = compute_gain(scores, champion, lower_is_better=self.lower_is_better)
        price = self.gain_per_20_added_lines * max(0, added) / 20
        if not won > 0:  # also for nan
            return Verdict("discard", f"worse by {abs(won):.6f}", scores, champion)
        if not won > price:
            reason = f"gain {won:.6f} does not pay for {added} added lines"
            return Verdict("discard", f"{reason} ({price:.6f})", scores, champion)
        return Verdict("keep", f"gain {won:.6f}", scores, champion)

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """None: it measures nothing twice, so it cannot find a mistake."""
        return None

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """None: it goes on to the end."""
        return None

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """None: the champion."""
        return None
