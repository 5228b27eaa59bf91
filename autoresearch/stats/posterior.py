"""The posterior mean and variance of every train.py's score (empirical Bayes).

Every experiment is its parent plus one change. The prior of a change's effect is a
mixture fitted to recorded sessions (`HELPFUL_COMPONENTS`, `HARMFUL_COMPONENTS`): many
changes do nothing, some harm, few help. With the noise, Bayes' rule gives each
train.py's score a posterior mean and variance. The mean has no winner's curse, because
an unusually good score is mostly attributed to noise; and a change that did nothing is
one more measurement of its parent.

Promises: posteriors follow from the scores alone, whatever was computed before. They
are in units of the noise's standard deviation, and higher is better in every metric.

Not covered: the covariance of parent and child (they are treated as independent). A
mixture that is wrong for a lab costs gain, never a false verdict, because verdicts rest
on fresh runs (`policies.noise_aware`).

Sources: Robbins 1956 (empirical Bayes), Mitchell and Beauchamp 1988 (spike and slab).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from autoresearch.experiment import Row

# (share, mean size in noise units) of exponential components; the rest does nothing.
# Fitted to the late part of the best-known public session and to nine others: see
# docs/decisions/0004-when-to-believe.md.
HELPFUL_COMPONENTS = ((2 / 3, 1.0), (1 / 3, 7.0))
HARMFUL_COMPONENTS = ((0.45, 1.5), (0.55, 9.0))
PRIOR_HELPFUL_SHARE, PRIOR_HARMFUL_SHARE = 0.15, 0.45  # of all changes
PRIOR_EXPERIMENTS = 10  # experiments that these prior shares count for
# The mixture is not exact: least variance of a posterior that depends on it.
MODEL_VARIANCE = 0.04
# Children inform their parent's mean only as far as the mixture is right, and a hundred
# bad children must not lower it without limit. This is the most they may shift it, in
# standard deviations of the estimate from its own runs.
MAX_CHILD_SHIFT_SD = 1.5

Posteriors = Mapping[str, "Posterior"]

SQRT_2 = math.sqrt(2)
SQRT_2_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Posterior:
    """Posterior mean and variance of one train.py's score, in noise units."""

    mean: float
    variance: float
    min_mean: float = -math.inf  # children shift the mean no further
    max_mean: float = math.inf

    def with_runs(self, mean: float, runs: int) -> "Posterior":
        """The posterior after further runs of it, with this mean."""
        weight = 1 / self.variance
        total = weight + runs
        return from_runs((self.mean * weight + mean * runs) / total, 1 / total)


def from_runs(mean: float, variance: float) -> Posterior:
    """The posterior from a train.py's own runs."""
    reach = MAX_CHILD_SHIFT_SD * math.sqrt(variance)
    return Posterior(mean, variance, mean - reach, mean + reach)


@dataclass(frozen=True, slots=True)
class MixtureWeights:
    """Shares of helpful and harmful changes, learned during the session."""

    helpful: float = PRIOR_HELPFUL_SHARE
    harmful: float = PRIOR_HARMFUL_SHARE
    change_count: int = 0

    def with_change(self, change: "ChangeEffect") -> "MixtureWeights":
        """One step of online expectation-maximisation."""
        count = PRIOR_EXPERIMENTS + self.change_count
        return MixtureWeights(
            (self.helpful * count + change.helpful_probability) / (count + 1),
            (self.harmful * count + change.harmful_probability) / (count + 1),
            self.change_count + 1,
        )


@dataclass(frozen=True, slots=True)
class ChangeEffect:
    """Posterior of one change's effect, in noise units."""

    mean: float
    variance: float
    helpful_probability: float
    harmful_probability: float


def compute_component_posterior(
    seen: float, error: float, size: float
) -> tuple[float, float, float]:
    """(likelihood, mean, variance) of the effect under one exponential component.

    The posterior is a normal truncated at 0. `seen`: the difference measured, `error`:
    its standard error, `size`: the component's mean.
    """
    pull = seen - error * error / size
    z = pull / error
    if z < -30:  # its likelihood is 0
        return 0.0, 0.0, 0.0
    share = 0.5 * math.erfc(-z / SQRT_2)
    exponent = error * error / (2 * size * size) - seen / size
    if exponent > 600:
        return 0.0, 0.0, 0.0
    hazard = math.exp(-z * z / 2) / SQRT_2_PI / share
    mean = pull + error * hazard
    variance = error * error * max(0.0, 1 - hazard * (hazard + z))
    return math.exp(exponent) / size * share, mean, variance


def estimate_change_effect(
    seen: float, error: float, shares: MixtureWeights
) -> ChangeEffect:
    """The posterior of a change's effect, from a difference and its standard error."""
    z = seen / error
    nothing = 1 - shares.helpful - shares.harmful
    weights = nothing * math.exp(-z * z / 2) / SQRT_2_PI / error
    mean = square = 0.0
    sums = []
    for parts, sign, among in (
        (HELPFUL_COMPONENTS, 1, shares.helpful),
        (HARMFUL_COMPONENTS, -1, shares.harmful),
    ):
        before = weights
        for share, size in parts:
            likely, middle, variance = compute_component_posterior(
                sign * seen, error, size
            )
            weight = among * share * likely
            weights += weight
            mean += sign * weight * middle
            square += weight * (middle * middle + variance)
        sums.append(weights - before)
    if weights < 1e-280:  # far in the tail the prior underflows: the difference alone
        return ChangeEffect(seen, error * error, float(seen > 0), float(seen < 0))
    mean /= weights
    variance = max(0.0, square / weights - mean * mean)
    return ChangeEffect(mean, variance, sums[0] / weights, sums[1] / weights)


@lru_cache(maxsize=256)  # asked for a candidate, for its verdict, and ever after
def update_on_child_runs(
    parent: Posterior, mean: float, runs: int, shares: MixtureWeights
) -> tuple[Posterior, Posterior, ChangeEffect]:
    """Posteriors of (parent, child, change) after the child's runs with this mean."""
    error = 1 / runs + parent.variance
    seen = mean - parent.mean
    change = estimate_change_effect(seen, math.sqrt(error), shares)
    shared = parent.variance / error
    surprise = shared * (seen - change.mean)
    left = parent.variance * (1 - shared)
    first = parent.mean + surprise
    held = min(parent.max_mean, max(parent.min_mean, first))
    variance = max(MODEL_VARIANCE, left + shared**2 * change.variance)
    return (
        Posterior(held, variance, parent.min_mean, parent.max_mean),
        from_runs(
            first + change.mean,
            left + (1 - shared) ** 2 * change.variance + MODEL_VARIANCE,
        ),
        change,
    )


@dataclass(frozen=True, slots=True)
class PosteriorState:
    """Posteriors, and the rows they follow from."""

    rows: tuple[Row, ...]
    unit: float
    posteriors: Posteriors
    weights: MixtureWeights

    def extend(self, rows: Sequence[Row], unit: float) -> "PosteriorState":
        """The state after these rows; fast where they begin with the rows of this."""
        rows, done = tuple(rows), len(self.rows)
        found, weights = dict(self.posteriors), self.weights
        if self.unit != unit or rows[:done] != self.rows:
            found, weights, done = {}, MixtureWeights(), 0
        for row in rows[done:]:
            if row.values and all(map(math.isfinite, row.values)):
                weights = update_with_row(found, row, fmean(row.values) / unit, weights)
        return PosteriorState(rows, unit, found, weights)


class PosteriorCache:
    """The state computed last: in a session rows only grow, so most work is done."""

    def __init__(self) -> None:
        self._state = PosteriorState((), 0.0, {}, MixtureWeights())

    def compute_state(self, rows: Sequence[Row], unit: float) -> PosteriorState:
        """The state after these rows; the same whatever was asked before."""
        self._state = state = self._state.extend(rows, unit)
        return state


SHARED_CACHE = PosteriorCache()  # for all callers of this process; threads may share it


def compute_posteriors(rows: Sequence[Row], unit: float) -> Posteriors:
    """Posteriors by blob.

    unit: the noise's sd, negative where lower scores are better.
    """
    return compute_posterior_state(rows, unit).posteriors


def compute_posterior_state(
    rows: Sequence[Row], unit: float, cache: PosteriorCache = SHARED_CACHE
) -> PosteriorState:
    """Posteriors by blob, and the mixture weights learned from the rows."""
    return cache.compute_state(rows, unit)


def update_with_row(
    found: dict[str, Posterior], row: Row, mean: float, shares: MixtureWeights
) -> MixtureWeights:
    """Add one experiment's mean to the posteriors, in place; the new weights."""
    runs = len(row.values)
    if row.blob in found:  # run again under another number
        found[row.blob] = found[row.blob].with_runs(mean, runs)
    elif row.parent in found:
        parent, child, change = update_on_child_runs(
            found[row.parent], mean, runs, shares
        )
        found[row.parent], found[row.blob] = parent, child
        return shares.with_change(change)
    else:  # a baseline, or a parent that was not measured here
        found[row.blob] = from_runs(mean, 1 / runs)
    return shares


def find_best_blob(found: Posteriors) -> str | None:
    """The blob with the highest posterior mean; the older of two equals."""
    return max(found, key=lambda blob: found[blob].mean, default=None)
