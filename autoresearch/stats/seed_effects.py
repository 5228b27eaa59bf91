"""Seed effects: how much a seed adds to the score of any candidate (BLUP).

All candidates run on the same seeds in the same order. Where runs are deterministic,
most of what looks like noise is a seed effect that all candidates share: 0.015 bits per
byte for a two-layer model on a CPU, ten times the gain of a good change. So raw scores
must not be compared across seeds. The model is score = candidate + seed + residual;
seed effects are random effects, shrunk by the share of the variance they explain
(Henderson 1975, best linear unbiased prediction).

Promises: only experiments with several runs inform the seed effects, so many poor
candidates on one seed do not bias them; where seeds explain nothing, scores stay as
they are; the noise returned is that of an adjusted score, and includes the uncertainty
of the seed effects.

Not covered: interactions of a change with a seed (another model shape draws other
initial weights). They are part of the residual.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from autoresearch.experiment import Noise
from autoresearch.stats import noise

# Prior: half of the noise variance is due to seeds, with a weight of one degree of
# freedom.
PRIOR_SEED_SHARE, PRIOR_WEIGHT = 0.5, 1.0
# Alternating least squares: rounds, and the change relative to the noise that ends it.
MAX_ROUNDS, RELATIVE_TOLERANCE = 200, 1e-9

SeedScores = tuple[tuple[int, float], ...]  # (seed, score) of one experiment


@dataclass(frozen=True, slots=True)
class SeedEffects:
    """The effect of each seed, and the noise of an adjusted score."""

    by_seed: Mapping[int, float]
    noise: Noise | None  # None: nothing ran twice
    seed_variance: float = 0.0
    residual_variance: float = 0.0

    def adjust_scores(self, runs: SeedScores) -> tuple[float, ...]:
        """Scores with their seed effects subtracted; an unknown seed has none."""
        return tuple(value - self.by_seed.get(seed, 0.0) for seed, value in runs)


def estimate_seed_effects(experiments: Sequence[SeedScores]) -> SeedEffects:
    """The seed effects of a series, from all of its experiments.

    Those with one run, or with a score that is not finite, are left out.
    """
    replicated = tuple(
        runs
        for runs in experiments
        if len(runs) > 1 and all(math.isfinite(value) for _, value in runs)
    )
    return compute_blup(replicated)


@lru_cache(maxsize=64)  # asked for a candidate, for its verdict, and for each view
def compute_blup(experiments: tuple[SeedScores, ...]) -> SeedEffects:
    """The seed effects, from experiments with several runs each."""
    pooled = noise.estimate_pooled_noise(
        [[value for _, value in runs] for runs in experiments]
    )
    if pooled is None or pooled.sd == 0:
        return SeedEffects({}, pooled)
    total = pooled.sd**2
    _, left = fit_random_effects(experiments, 0.0, pooled.sd)
    degrees = max(0.0, pooled.degrees - count_effect_degrees(experiments))
    residual = (left + PRIOR_WEIGHT * PRIOR_SEED_SHARE * total) / (
        degrees + PRIOR_WEIGHT
    )
    seed_variance = total - residual
    if seed_variance <= 0:
        return SeedEffects({}, pooled, 0.0, total)
    shrink = residual / seed_variance
    effects, _ = fit_random_effects(experiments, shrink, pooled.sd)
    most_runs = max(sum(seed in dict(runs) for runs in experiments) for seed in effects)
    sd = math.sqrt(residual * (1 + 1 / (most_runs + shrink)))
    return SeedEffects(
        effects,
        noise.noise_from_sd(sd, degrees + PRIOR_WEIGHT),
        seed_variance,
        residual,
    )


def fit_random_effects(
    experiments: Sequence[SeedScores], shrink: float, scale: float
) -> tuple[dict[int, float], float]:
    """(seed effects, residual sum of squares).

    shrink: ratio of residual to seed variance; 0: ordinary least squares. scale: of the
    scores, for the tolerance.
    """
    effects: dict[int, float] = {seed: 0.0 for runs in experiments for seed, _ in runs}
    for _ in range(MAX_ROUNDS):
        sums, counts = dict.fromkeys(effects, 0.0), dict.fromkeys(effects, shrink)
        for runs in experiments:
            mean = fmean(value - effects[seed] for seed, value in runs)
            for seed, value in runs:
                sums[seed] += value - mean
                counts[seed] += 1
        moved = max(abs(sums[seed] / counts[seed] - effects[seed]) for seed in effects)
        effects = {seed: sums[seed] / counts[seed] for seed in effects}
        if moved < RELATIVE_TOLERANCE * scale:
            break
    left = 0.0
    for runs in experiments:
        mean = fmean(value - effects[seed] for seed, value in runs)
        left += sum((value - effects[seed] - mean) ** 2 for seed, value in runs)
    return effects, left


def count_effect_degrees(experiments: Sequence[SeedScores]) -> int:
    """Degrees of freedom of the seed effects: one each, less one per component.

    Seeds of one experiment are connected. In a connected component only differences
    between seeds can be estimated.
    """
    components: list[set[int]] = []
    for runs in experiments:
        seeds = {seed for seed, _ in runs}
        touching = [component for component in components if component & seeds]
        components = [c for c in components if not c & seeds]
        components.append(seeds.union(*touching))
    return sum(len(component) - 1 for component in components)
