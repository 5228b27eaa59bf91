"""The luck of a seed: how much it adds to whatever is trained with it.

All candidates run on the same seeds in the same order. Where a run is repeatable, most
of what looks like noise is the seed's, and shared: 0.015 bits per byte of a two-layer
model on a CPU, ten times what a good change brings. So it must not be compared across
seeds. A score is taken apart into candidate + seed + rest; seeds are random effects,
shrunk by how much they explain (Henderson 1975, best linear unbiased prediction).

Promises: only experiments with several runs teach what a seed is worth, so a hundred
losers on one seed do not; where seeds explain nothing, scores stay as they are; the
noise that comes out is that of a score whose seed's luck was taken out, with what is
not known of that luck added.

Not covered: changes that answer to a seed otherwise than their champion did (another
shape draws other weights). They are in the rest, which grows by that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from autoresearch.experiment import Noise
from autoresearch.stats import noise

# Before anything ran twice on the same seeds, half of the noise is held to be the
# seed's. It counts as much as one difference.
PRIOR_SEED_SHARE, PRIOR_WEIGHT = 0.5, 1.0
MAX_ROUNDS, RELATIVE_TOLERANCE = (
    200,
    1e-9,
)  # of alternating least squares; the change that ends it

SeedScores = tuple[tuple[int, float], ...]  # (seed, score) of one experiment


@dataclass(frozen=True, slots=True)
class SeedEffects:
    """What each seed adds to a score, and the noise of what is left."""

    by_seed: Mapping[int, float]
    noise: Noise | None  # None: nothing ran twice
    seed_variance: float = 0.0  # variance of what seeds add
    residual_variance: float = 0.0  # of what they do not explain

    def adjust_scores(self, runs: SeedScores) -> tuple[float, ...]:
        """The scores without the luck of their seeds."""
        return tuple(value - self.by_seed.get(seed, 0.0) for seed, value in runs)


def estimate_seed_effects(experiments: Sequence[SeedScores]) -> SeedEffects:
    """What all runs of a series tell."""
    told = tuple(
        runs
        for runs in experiments
        if len(runs) > 1 and all(math.isfinite(value) for _, value in runs)
    )
    return compute_blup(told)


@lru_cache(maxsize=64)  # asked for a candidate, for its verdict, and for each view
def compute_blup(told: tuple[SeedScores, ...]) -> SeedEffects:
    """The same, from experiments that ran several times."""
    plain = noise.estimate_pooled_noise([[value for _, value in runs] for runs in told])
    if plain is None or plain.sd == 0:
        return SeedEffects({}, plain)
    whole = plain.sd**2
    _, left = fit_random_effects(told, 0.0, plain.sd)
    degrees = max(0.0, plain.degrees - count_effect_degrees(told))
    rest = (left + PRIOR_WEIGHT * PRIOR_SEED_SHARE * whole) / (degrees + PRIOR_WEIGHT)
    seeds = whole - rest
    if seeds <= 0:
        return SeedEffects({}, plain, 0.0, whole)
    shrink = rest / seeds
    of, _ = fit_random_effects(told, shrink, plain.sd)
    most = max(sum(seed in dict(runs) for runs in told) for seed in of)
    sd = math.sqrt(rest * (1 + 1 / (most + shrink)))
    return SeedEffects(of, noise.noise_from_sd(sd, degrees + PRIOR_WEIGHT), seeds, rest)


def fit_random_effects(
    told: Sequence[SeedScores], shrink: float, scale: float
) -> tuple[dict[int, float], float]:
    """(seed effects, sum of squares left); `shrink` 0: plain least squares."""
    of: dict[int, float] = {seed: 0.0 for runs in told for seed, _ in runs}
    for _ in range(MAX_ROUNDS):
        sums, counts = dict.fromkeys(of, 0.0), dict.fromkeys(of, shrink)
        for runs in told:
            level = fmean(value - of[seed] for seed, value in runs)
            for seed, value in runs:
                sums[seed] += value - level
                counts[seed] += 1
        moved = max(abs(sums[seed] / counts[seed] - of[seed]) for seed in of)
        of = {seed: sums[seed] / counts[seed] for seed in of}
        if moved < RELATIVE_TOLERANCE * scale:
            break
    left = 0.0
    for runs in told:
        level = fmean(value - of[seed] for seed, value in runs)
        left += sum((value - of[seed] - level) ** 2 for seed, value in runs)
    return of, left


def count_effect_degrees(told: Sequence[SeedScores]) -> int:
    """Degrees of freedom that seed effects take: one each, less one per island.

    An island is a set of experiments that share seeds with each other, and with no
    others: inside it only differences between seeds can be known.
    """
    islands: list[set[int]] = []
    for runs in told:
        mine = {seed for seed, _ in runs}
        touching = [island for island in islands if island & mine]
        islands = [island for island in islands if not island & mine]
        islands.append(mine.union(*touching))
    return sum(len(island) - 1 for island in islands)
