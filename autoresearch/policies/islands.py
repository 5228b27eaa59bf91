"""Islands: several lines at once, each climbing on its own, with migration.

Verdicts are noise-aware's, so the champion of record is the best measured. Proposals
start in turn from the head of each of three lines; a line's head moves on to whatever
is believed better. Every 30 experiments the line that is furthest behind is given up
for the best one's head (Whitley 1999; a population without crossover).

Promises: the same lines for the same ledger, whoever asks, however often.

Not covered: three lines climb a third as fast each, so where effects simply add up this
costs gain (how much: benchmarks/verdicts.py).
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
from autoresearch.policies import NextRun
from autoresearch.policies.noise_aware import NoiseAwarePolicy, compute_noise_unit
from autoresearch.stats import posterior

ISLAND_COUNT = 3
MIGRATION_INTERVAL = 30  # experiments


@dataclass(frozen=True, slots=True)
class IslandsPolicy:
    """See the top of the file."""

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    @property
    def verdict_policy(self) -> NoiseAwarePolicy:
        """Who decides what is kept."""
        return NoiseAwarePolicy(self.lower_is_better, self.gain_per_20_added_lines)

    def choose_next_run(self, scores: Scores, history: History) -> NextRun:
        """As noise-aware."""
        return self.verdict_policy.choose_next_run(scores, history)

    def decide(
        self, scores: Scores, history: History, change: CodeSizeChange
    ) -> Verdict:
        """As noise-aware."""
        return self.verdict_policy.decide(scores, history, change)

    def find_champion_to_restore(self, history: History) -> Champion | None:
        """As noise-aware."""
        return self.verdict_policy.find_champion_to_restore(history)

    def choose_closing_run(self, history: History, left: float) -> str | None:
        """As noise-aware."""
        return self.verdict_policy.choose_closing_run(history, left)

    def choose_parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """The head of the line whose turn it is."""
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        heads = (
            replay_islands(rows, posterior.compute_posteriors(rows, unit))
            if unit
            else []
        )
        return heads[len(rows) % ISLAND_COUNT] if heads else None


def replay_islands(rows: Sequence[Row], known: posterior.Posteriors) -> list[str]:
    """Replay the lines -> their heads; none before the baseline."""
    heads: list[str] = []
    for place, row in enumerate(rows):
        if row.blob not in known:
            continue
        if not heads:
            heads = [row.blob] * ISLAND_COUNT
            continue
        turn = place % ISLAND_COUNT
        mine = turn if heads[turn] == row.parent else find_island(row.parent, heads)
        if mine is not None and known[row.blob].mean > known[heads[mine]].mean:
            heads[mine] = row.blob
        if place % MIGRATION_INTERVAL == 0:
            ranked = sorted(
                range(ISLAND_COUNT), key=lambda line: known[heads[line]].mean
            )
            heads[ranked[0]] = heads[ranked[-1]]
    return heads


def find_island(blob: str, heads: list[str]) -> int | None:
    """The line that this blob leads, if any."""
    return heads.index(blob) if blob in heads else None
