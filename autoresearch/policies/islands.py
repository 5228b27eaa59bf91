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

from autoresearch.experiment import Champion, CodeSizeChange, History, Row, Scores, Verdict
from autoresearch.policies import Wanted
from autoresearch.policies.noise_aware import NoiseAware, unit_of
from autoresearch.stats import posterior

LINES = 3
MIGRATION = 30  # experiments


@dataclass(frozen=True, slots=True)
class Islands:
    """See the top of the file."""

    lower_is_better: bool = True
    gain_per_20_added_lines: float = 0.001

    @property
    def verdicts(self) -> NoiseAware:
        """Who decides what is kept."""
        return NoiseAware(self.lower_is_better, self.gain_per_20_added_lines)

    def wants(self, scores: Scores, history: History) -> Wanted:
        """As noise-aware."""
        return self.verdicts.wants(scores, history)

    def decide(self, scores: Scores, history: History, change: CodeSizeChange) -> Verdict:
        """As noise-aware."""
        return self.verdicts.decide(scores, history, change)

    def demoted(self, history: History) -> Champion | None:
        """As noise-aware."""
        return self.verdicts.demoted(history)

    def closing(self, history: History, left: float) -> str | None:
        """As noise-aware."""
        return self.verdicts.closing(history, left)

    def parent(self, history: History, rows: Sequence[Row]) -> str | None:
        """The head of the line whose turn it is."""
        unit = unit_of(history, lower_is_better=self.lower_is_better)
        heads = settled(rows, posterior.levels(rows, unit)) if unit else []
        return heads[len(rows) % LINES] if heads else None


def settled(rows: Sequence[Row], known: posterior.Levels) -> list[str]:
    """Replay the lines -> their heads; none before the baseline."""
    heads: list[str] = []
    for place, row in enumerate(rows):
        if row.blob not in known:
            continue
        if not heads:
            heads = [row.blob] * LINES
            continue
        turn = place % LINES
        mine = turn if heads[turn] == row.parent else found(row.parent, heads)
        if mine is not None and known[row.blob].mean > known[heads[mine]].mean:
            heads[mine] = row.blob
        if place % MIGRATION == 0:
            ranked = sorted(range(LINES), key=lambda line: known[heads[line]].mean)
            heads[ranked[0]] = heads[ranked[-1]]
    return heads


def found(blob: str, heads: list[str]) -> int | None:
    """The line that this blob leads, if any."""
    return heads.index(blob) if blob in heads else None
