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
SHARE, WEIGHT = 0.5, 1.0
ROUNDS, CLOSE = 200, 1e-9  # of alternating least squares; the change that ends it

Runs = tuple[tuple[int, float], ...]  # (seed, score) of one experiment


@dataclass(frozen=True, slots=True)
class Luck:
    """What each seed adds to a score, and the noise of what is left."""

    of: Mapping[int, float]
    noise: Noise | None  # None: nothing ran twice
    seeds: float = 0.0  # variance of what seeds add
    rest: float = 0.0  # of what they do not explain

    def without(self, runs: Runs) -> tuple[float, ...]:
        """The scores without the luck of their seeds."""
        return tuple(value - self.of.get(seed, 0.0) for seed, value in runs)


def luck(experiments: Sequence[Runs]) -> Luck:
    """What all runs of a series tell."""
    told = tuple(
        runs
        for runs in experiments
        if len(runs) > 1 and all(math.isfinite(value) for _, value in runs)
    )
    return estimated(told)


@lru_cache(maxsize=64)  # asked for a candidate, for its verdict, and for each view
def estimated(told: tuple[Runs, ...]) -> Luck:
    """The same, from experiments that ran several times."""
    plain = noise.pooled([[value for _, value in runs] for runs in told])
    if plain is None or plain.sd == 0:
        return Luck({}, plain)
    whole = plain.sd**2
    _, left = fitted(told, 0.0, plain.sd)
    degrees = max(0.0, plain.degrees - spent(told))
    rest = (left + WEIGHT * SHARE * whole) / (degrees + WEIGHT)
    seeds = whole - rest
    if seeds <= 0:
        return Luck({}, plain, 0.0, whole)
    shrink = rest / seeds
    of, _ = fitted(told, shrink, plain.sd)
    most = max(sum(seed in dict(runs) for runs in told) for seed in of)
    sd = math.sqrt(rest * (1 + 1 / (most + shrink)))
    return Luck(of, noise.known(sd, degrees + WEIGHT), seeds, rest)


def fitted(
    told: Sequence[Runs], shrink: float, scale: float
) -> tuple[dict[int, float], float]:
    """(seed effects, sum of squares left); `shrink` 0: plain least squares."""
    of: dict[int, float] = {seed: 0.0 for runs in told for seed, _ in runs}
    for _ in range(ROUNDS):
        sums, counts = dict.fromkeys(of, 0.0), dict.fromkeys(of, shrink)
        for runs in told:
            level = fmean(value - of[seed] for seed, value in runs)
            for seed, value in runs:
                sums[seed] += value - level
                counts[seed] += 1
        moved = max(abs(sums[seed] / counts[seed] - of[seed]) for seed in of)
        of = {seed: sums[seed] / counts[seed] for seed in of}
        if moved < CLOSE * scale:
            break
    left = 0.0
    for runs in told:
        level = fmean(value - of[seed] for seed, value in runs)
        left += sum((value - of[seed] - level) ** 2 for seed, value in runs)
    return of, left


def spent(told: Sequence[Runs]) -> int:
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
