"""The gain of the champion over the baseline, with a 95 % interval.

The difference of two means is corrected for three things. Selection: a champion was
chosen for its score, so its mean is biased; the bias is estimated with the posteriors
and subtracted. Seeds: both ran on few seeds, and a seed effect is shared by two models
only in part; the shared part cancels, the rest widens the interval. Drift: the machine
may change between a baseline in the evening and a champion in the morning; a slope is
estimated from runs of the same code early and late, and where there are none, the
interval allows for it.

Promises: the estimate uses all runs of both; apart from the selection bias it is the
best linear unbiased one for known variances (generalised least squares; Henderson
1975). `plan_gain_runs` names the runs that reduce its variance most: the last runs of a
session go there.

Not covered: a machine that drifts in steps; changes whose interaction with seeds is far
from SEED_INTERACTION_SHARE.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from autoresearch.experiment import Row
from autoresearch.stats import posterior, seed_effects
from autoresearch.stats.noise import GainEstimate
from autoresearch.stats.quantiles import NORMAL_95, t_quantile_from_normal
from autoresearch.stats.seed_effects import SeedEffects

# The part of a seed effect that is not shared with another train.py. Measured on the
# recorded session: over eight seeds a champion's score moved 0.6 times as far as its
# baseline's.
SEED_INTERACTION_SHARE = 0.4
# Prior standard deviation of the drift from the first run to the last, in units of the
# residual's. It matters where no run measures the drift better.
DRIFT_SD = 2.0
# Neither the posteriors nor the variances are known exactly (benchmarks/verdicts.py).
INTERVAL_WIDENING = 1.0
ENOUGH_RELATIVE_ERROR = 0.05  # standard error over gain: no further runs are needed
MAX_GAIN_RUNS = 6  # that a session spends on the estimate


@dataclass(frozen=True, slots=True)
class MeasuredExperiment:
    """An experiment as it was measured."""

    row: Row
    seed_scores: seed_effects.SeedScores
    end_times: tuple[float, ...]  # seconds at the end of each run; empty: unknown


@dataclass(frozen=True, slots=True)
class RunObservation:
    """One run of the champion or the baseline."""

    is_champion: bool
    seed: int
    time_share: float  # 0: the session's first run, 1: its last
    value: float  # positive is better


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """The variance components of one run's score."""

    seed_variance: float  # shared by all candidates that run on a seed
    residual_variance: float
    drift_variance: float  # of the drift from the first run to the last

    def compute_covariance(self, one: RunObservation, other: RunObservation) -> float:
        """Covariance of two runs."""
        shared = self.seed_variance * (one.seed == other.seed)
        return shared + self.drift_variance * one.time_share * other.time_share


def compute_variance_components(effects: SeedEffects) -> VarianceComponents:
    """The variance components of a series, from its seed effects."""
    return VarianceComponents(
        (1 - SEED_INTERACTION_SHARE) * effects.seed_variance,
        effects.residual_variance + SEED_INTERACTION_SHARE * effects.seed_variance,
        DRIFT_SD**2 * effects.residual_variance,
    )


def estimate_champion_gain(
    experiments: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> GainEstimate | None:
    """The gain of one blob over another, with its 95 % interval.

    In the metric's units, positive is better. None: one of them was never measured, or
    the noise is unknown or 0.
    """
    experiments = drop_nonfinite(experiments)
    effects = seed_effects.estimate_seed_effects(
        [one.seed_scores for one in experiments]
    )
    if effects.noise is None or effects.noise.sd == 0:
        return None
    if champion == baseline:
        return GainEstimate(0.0, 0.0, 0.0, 0)
    seen = collect_observations(
        experiments, champion, baseline, lower_is_better=lower_is_better
    )
    sides = {one.is_champion for one in seen}
    if len(sides) < 2:
        return None
    gain, variance = fit_generalized_least_squares(
        seen, compute_variance_components(effects)
    )
    bias, shrinkage = estimate_selection_bias(
        experiments, champion, baseline, effects, lower_is_better
    )
    half = INTERVAL_WIDENING * math.sqrt(variance * shrinkage)
    half *= t_quantile_from_normal(NORMAL_95, effects.noise.degrees)
    gain -= bias
    runs = sum(one.is_champion for one in seen)
    return GainEstimate(gain, gain - half, gain + half, runs)


def drop_nonfinite(
    experiments: Sequence[MeasuredExperiment],
) -> list[MeasuredExperiment]:
    """The experiments whose scores are all finite."""
    return [
        one for one in experiments if all(math.isfinite(v) for _, v in one.seed_scores)
    ]


def estimate_selection_bias(
    experiments: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    effects: SeedEffects,
    lower_is_better: bool,
) -> tuple[float, float]:
    """(selection bias in the metric's units, factor on the variance).

    The bias is the difference of plain means less that of posterior means, which use
    all related experiments; the factor is the ratio of their variances.
    """
    assert effects.noise is not None, "asked where noise is known"
    unit = -effects.noise.sd if lower_is_better else effects.noise.sd
    rows = [
        replace(one.row, values=effects.adjust_scores(one.seed_scores))
        for one in experiments
    ]
    found = posterior.compute_posteriors(rows, unit)
    means, weights = [], []
    for blob in (champion, baseline):
        values = [v for row in rows if row.blob == blob for v in row.values]
        means.append(fmean(values) / unit)
        weights.append(1 / len(values))
    best, first = found[champion], found[baseline]
    plain, posterior_gain = means[0] - means[1], best.mean - first.mean
    bias = (plain - posterior_gain) * effects.noise.sd
    return bias, (best.variance + first.variance) / sum(weights)


def collect_observations(
    experiments: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> list[RunObservation]:
    """Every run of the two, with its seed and time."""
    times = [at for one in experiments for at in one.end_times if at > 0]
    begin, end = min(times, default=0.0), max(times, default=0.0)
    sign = -1 if lower_is_better else 1
    found = []
    for one in experiments:
        if one.row.blob not in (champion, baseline):
            continue
        hours = (
            one.end_times
            if len(one.end_times) == len(one.seed_scores)
            else (0.0,) * len(one.seed_scores)
        )
        for (seed, value), at in zip(one.seed_scores, hours, strict=True):
            share = (at - begin) / (end - begin) if end > begin and at else 0.0
            mine = one.row.blob == champion
            found.append(RunObservation(mine, seed, share, sign * value))
    return found


def fit_generalized_least_squares(
    seen: Sequence[RunObservation], spread: VarianceComponents
) -> tuple[float, float]:
    """(champion less baseline, its variance): generalised least squares."""
    matrix = [
        [
            spread.compute_covariance(a, b) + spread.residual_variance * (i == j)
            for j, b in enumerate(seen)
        ]
        for i, a in enumerate(seen)
    ]
    sides = [[float(one.is_champion == side) for one in seen] for side in (True, False)]
    best, first = (solve_linear_system(matrix, side) for side in sides)
    a = sum(w for w, one in zip(best, seen, strict=True) if one.is_champion)
    b = sum(w for w, one in zip(best, seen, strict=True) if not one.is_champion)
    d = sum(w for w, one in zip(first, seen, strict=True) if not one.is_champion)
    determinant = a * d - b * b
    scores = [
        sum(w * one.value for w, one in zip(weights, seen, strict=True))
        for weights in (best, first)
    ]
    top = (d * scores[0] - b * scores[1]) / determinant
    bottom = (a * scores[1] - b * scores[0]) / determinant
    return top - bottom, (a + d + 2 * b) / determinant


def solve_linear_system(
    matrix: Sequence[Sequence[float]], right: Sequence[float]
) -> list[float]:
    """x of matrix @ x = right; the matrix is a covariance (Gauss, no pivoting)."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    count = len(rows)
    for i in range(count):
        for j in range(i + 1, count):
            factor = rows[j][i] / rows[i][i]
            if factor:
                for k in range(i, count + 1):
                    rows[j][k] -= factor * rows[i][k]
    found = [0.0] * count
    for i in reversed(range(count)):
        known = sum(rows[i][k] * found[k] for k in range(i + 1, count))
        found[i] = (rows[i][count] - known) / rows[i][i]
    return found


def plan_gain_runs(
    experiments: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> tuple[str, ...]:
    """Blobs to run until the gain is known well enough, most useful first.

    Empty: it is known well enough, or there is no gain.
    """
    experiments = drop_nonfinite(experiments)
    known = estimate_champion_gain(
        experiments, champion, baseline, lower_is_better=lower_is_better
    )
    if known is None or champion == baseline or known.gain <= 0:
        return ()
    seen = collect_observations(
        experiments, champion, baseline, lower_is_better=lower_is_better
    )
    spread = compute_variance_components(
        seed_effects.estimate_seed_effects([one.seed_scores for one in experiments])
    )
    order: list[str] = []
    while len(order) < MAX_GAIN_RUNS:
        if (
            math.sqrt(fit_generalized_least_squares(seen, spread)[1])
            <= ENOUGH_RELATIVE_ERROR * known.gain
        ):
            break
        tried = [[*seen, plan_observation(seen, side)] for side in (True, False)]
        seen = min(
            tried, key=lambda more: fit_generalized_least_squares(more, spread)[1]
        )
        order.append(champion if seen[-1].is_champion else baseline)
    return tuple(order)


def plan_observation(seen: Sequence[RunObservation], champion: bool) -> RunObservation:
    """A planned run of one of the two, at the end of the session.

    Seeds that the other one has run with come first; after that a new seed (-1).
    """
    used = {one.seed for one in seen if one.is_champion == champion}
    others = [one.seed for one in seen if one.is_champion != champion]
    seed = next((seed for seed in others if seed not in used), -1)
    return RunObservation(champion, seed, 1.0, 0.0)
