"""Anneal: start some proposals from a slightly worse candidate (simulated annealing).

Verdicts are noise-aware's, so the champion of record is always the best measured one.
Only the start of the next proposal is a random walk: a change whose posterior mean is
worse by d is accepted with probability exp(-d / temperature) (Metropolis' rule;
Kirkpatrick and others 1983). The temperature, in units of the noise, halves every 25
experiments. After 20 experiments without a new best the walk restarts from the best.

Promises: the same ledger gives the same walk, in any process, however often it is
asked.

Not covered: in a lab whose effects add up there is no valley to cross, and the walk
costs gain (how much: benchmarks/verdicts.py).
"""

import hashlib
import math
from collections.abc import Sequence

from autoresearch.experiment import Row
from autoresearch.policies.base import OverridePolicy, PosteriorParentRule
from autoresearch.policies.noise_aware import NoiseAwarePolicy
from autoresearch.stats.posterior import Posteriors

INITIAL_TEMPERATURE = 2.0  # in standard deviations of the noise
TEMPERATURE_HALF_LIFE = 25  # experiments
RESTART_PATIENCE = 20  # experiments without a new best


def create_anneal_policy(
    lower_is_better: bool = True, gain_per_20_added_lines: float = 0.001
) -> OverridePolicy:
    """Noise-aware verdicts; parents by the walk."""
    return OverridePolicy(
        NoiseAwarePolicy(lower_is_better, gain_per_20_added_lines),
        parent_rule=PosteriorParentRule(lower_is_better, replay_walk),
    )


def replay_walk(rows: Sequence[Row], posteriors: Posteriors) -> str | None:
    """The blob where the walk stands after these rows; None before the first."""
    head: str | None = None
    best, since_best = None, 0  # the best blob so far, and experiments after it
    for place, row in enumerate(rows):
        if row.blob not in posteriors:
            continue
        since_best += 1
        if head is None or (
            row.parent == head and is_metropolis_accepted(row, head, posteriors, place)
        ):
            head = row.blob
        if best is None or posteriors[row.blob].mean > posteriors[best].mean:
            best, since_best = row.blob, 0
        elif since_best >= RESTART_PATIENCE:
            head, since_best = best, 0
    return head


def is_metropolis_accepted(
    row: Row, head: str, posteriors: Posteriors, place: int
) -> bool:
    """Metropolis' rule, with a random number that belongs to the experiment."""
    rise = posteriors[row.blob].mean - posteriors[head].mean
    temperature = INITIAL_TEMPERATURE * 0.5 ** (place / TEMPERATURE_HALF_LIFE)
    if rise > 0:
        return True
    return draw_uniform(row) < math.exp(max(-700.0, rise / max(temperature, 1e-9)))


def draw_uniform(row: Row) -> float:
    """A number in [0, 1) that is always the same for one experiment."""
    digest = hashlib.sha256(f"{row.number}:{row.blob}".encode()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48
