"""Anneal: go on from something a little worse now and then, to reach a higher peak.

Verdicts are noise-aware's, so the champion of record is the best measured and no warmer
for it. Only where the next proposal starts is a random walk: a change that is believed
worse by d is gone on from with probability exp(-d / temperature), and the temperature,
in units of the noise, halves every 25 experiments (Kirkpatrick and others 1983).
After 20 experiments without a new best the walk starts again from there.

Promises: the same walk for the same ledger, whoever asks, however often.

Not covered: in a lab whose effects add up there is no valley to cross, and wandering
costs gain (how much: benchmarks/verdicts.py).
"""

import hashlib
import math
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

INITIAL_TEMPERATURE = 2.0  # in standard deviations of the noise
TEMPERATURE_HALF_LIFE = 25  # experiments
RESTART_PATIENCE = 20  # experiments without a new best


@dataclass(frozen=True, slots=True)
class AnnealPolicy:
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
        """Where the walk stands."""
        unit = compute_noise_unit(history, lower_is_better=self.lower_is_better)
        return (
            replay_walk(rows, posterior.compute_posteriors(rows, unit))
            if unit
            else None
        )


def replay_walk(rows: Sequence[Row], known: posterior.Posteriors) -> str | None:
    """Replay the walk."""
    head: str | None = None
    summit, since = None, 0  # the best blob on the way, and experiments after it
    for place, row in enumerate(rows):
        if row.blob not in known:
            continue
        since += 1
        if head is None or (
            row.parent == head and is_metropolis_accepted(row, head, known, place)
        ):
            head = row.blob
        if summit is None or known[row.blob].mean > known[summit].mean:
            summit, since = row.blob, 0
        elif since >= RESTART_PATIENCE:
            head, since = summit, 0
    return head


def is_metropolis_accepted(
    row: Row, head: str, known: posterior.Posteriors, place: int
) -> bool:
    """Metropolis' rule, with a coin that belongs to the experiment."""
    rise = known[row.blob].mean - known[head].mean
    temperature = INITIAL_TEMPERATURE * 0.5 ** (place / TEMPERATURE_HALF_LIFE)
    if rise > 0:
        return True
    return draw_uniform(row) < math.exp(max(-700.0, rise / max(temperature, 1e-9)))


def draw_uniform(row: Row) -> float:
    """Between 0 and 1, always the same for an experiment."""
    digest = hashlib.sha256(f"{row.number}:{row.blob}".encode()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48
