"""Islands: several lines of changes, each climbing on its own, with migration.

Verdicts are noise-aware's, so the champion of record is always the best measured one.
Proposals start in turn from the head of each of three islands; a head moves on to a
change with a better posterior mean. Every 30 experiments the worst head is replaced by
the best one (Whitley 1999; a population without crossover).

Promises: the same ledger gives the same islands, in any process, however often it is
asked.

Not covered: three islands climb a third as fast each, so where effects simply add up
this costs gain (how much: benchmarks/verdicts.py).
"""

from collections.abc import Sequence

from autoresearch.experiment import Row
from autoresearch.policies.base import OverridePolicy, PosteriorParentRule
from autoresearch.policies.noise_aware import NoiseAwarePolicy
from autoresearch.stats.posterior import Posteriors

ISLAND_COUNT = 3
MIGRATION_INTERVAL = 30  # experiments


def create_islands_policy(
    lower_is_better: bool = True, gain_per_20_added_lines: float = 0.001
) -> OverridePolicy:
    """Noise-aware verdicts; parents from each island in turn."""
    return OverridePolicy(
        NoiseAwarePolicy(lower_is_better, gain_per_20_added_lines),
        parent_rule=PosteriorParentRule(lower_is_better, choose_island_head),
    )


def choose_island_head(rows: Sequence[Row], posteriors: Posteriors) -> str | None:
    """The head of the island whose turn it is; None before the baseline."""
    heads = replay_islands(rows, posteriors)
    return heads[len(rows) % ISLAND_COUNT] if heads else None


def replay_islands(rows: Sequence[Row], posteriors: Posteriors) -> list[str]:
    """The head of every island after these rows; none before the baseline."""
    heads: list[str] = []
    for place, row in enumerate(rows):
        if row.blob not in posteriors:
            continue
        if not heads:
            heads = [row.blob] * ISLAND_COUNT
            continue
        turn = place % ISLAND_COUNT
        island = turn if heads[turn] == row.parent else find_island(row.parent, heads)
        if (
            island is not None
            and posteriors[row.blob].mean > posteriors[heads[island]].mean
        ):
            heads[island] = row.blob
        if place % MIGRATION_INTERVAL == 0:
            ranked = sorted(
                range(ISLAND_COUNT), key=lambda number: posteriors[heads[number]].mean
            )
            heads[ranked[0]] = heads[ranked[-1]]
    return heads


def find_island(blob: str, heads: list[str]) -> int | None:
    """The island with this head; None: none has it."""
    return heads.index(blob) if blob in heads else None
