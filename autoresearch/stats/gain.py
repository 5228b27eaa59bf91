"""What a night may claim: how much its champion gains, and how surely.

    runs of both --seeds, hours--> difference --levels--> Claim

Three things lie between two means and the truth, and all three are taken into account.
A champion is chosen for its score, so it was lucky: what that is worth is taken off
(`levels`). Both ran on few seeds, and a seed that helps one model helps another only
partly: luck that both owe to a seed cancels, the rest is in the interval. And the
machine may have moved between a baseline of the evening and a champion of the morning:
a slope is estimated from whatever ran early and late, and where nothing did, the
interval holds what machines do.

Promises: a claim rests on all runs there are; best linear unbiased estimates with known
variances (Henderson 1975) but for the luck of the chosen. `wanted` names the run that
would make the claim surest: the last runs of a night go there.

Not covered: a machine that moves in steps; changes whose answer to a seed is far from
what INTERACTION says.
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

# Of what a seed is worth to the baseline: the part that is its own, and no other
# train.py's. Measured on the recorded night: on eight seeds a champion moved 0.6 times
# as far as its baseline did.
SEED_INTERACTION_SHARE = 0.4
# What a machine may move from the first run to the last: one standard deviation of
# that, in the noise's. Only where no run says better.
DRIFT_SD = 2.0
# Neither levels nor variances are exactly known (benchmarks/verdicts.py).
INTERVAL_WIDENING = 1.0
ENOUGH_RELATIVE_ERROR = (
    0.05  # standard error of a claim over the claim: no further runs are needed
)
MAX_GAIN_RUNS = 6  # that a night gives for its claim


@dataclass(frozen=True, slots=True)
class MeasuredExperiment:
    """An experiment as it was measured."""

    row: Row
    seed_scores: seed_effects.SeedScores
    end_times: tuple[float, ...]  # seconds at the end of each run; empty: unknown


@dataclass(frozen=True, slots=True)
class RunObservation:
    """One run of one of the two."""

    is_champion: bool
    seed: int
    time_share: float  # 0: the night's first run, 1: its last
    value: float  # positive is better


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """What the variance of one run consists of."""

    seed_variance: float  # shared by all train.py that run on a seed
    residual_variance: float
    drift_variance: float  # of the way a machine goes in a night

    def compute_covariance(self, one: RunObservation, other: RunObservation) -> float:
        """Covariance of two runs."""
        shared = self.seed_variance * (one.seed == other.seed)
        return shared + self.drift_variance * one.time_share * other.time_share


def compute_variance_components(luck: SeedEffects) -> VarianceComponents:
    """The same for a series, as far as its runs tell."""
    return VarianceComponents(
        (1 - SEED_INTERACTION_SHARE) * luck.seed_variance,
        luck.residual_variance + SEED_INTERACTION_SHARE * luck.seed_variance,
        DRIFT_SD**2 * luck.residual_variance,
    )


def estimate_champion_gain(
    told: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> GainEstimate | None:
    """What one blob gains over another, with its 95 % interval.

    In the metric's units, positive is better. None: one of them was never measured, or
    there is no noise to speak of.
    """
    told = drop_nonfinite(told)
    luck = seed_effects.estimate_seed_effects([one.seed_scores for one in told])
    if luck.noise is None or luck.noise.sd == 0:
        return None
    if champion == baseline:
        return GainEstimate(0.0, 0.0, 0.0, 0)
    seen = collect_observations(
        told, champion, baseline, lower_is_better=lower_is_better
    )
    sides = {one.is_champion for one in seen}
    if len(sides) < 2:
        return None
    gain, variance = fit_generalized_least_squares(
        seen, compute_variance_components(luck)
    )
    lucky, shrunk = estimate_selection_bias(
        told, champion, baseline, luck, lower_is_better
    )
    half = INTERVAL_WIDENING * math.sqrt(variance * shrunk)
    half *= t_quantile_from_normal(NORMAL_95, luck.noise.degrees)
    gain -= lucky
    runs = sum(one.is_champion for one in seen)
    return GainEstimate(gain, gain - half, gain + half, runs)


def drop_nonfinite(told: Sequence[MeasuredExperiment]) -> list[MeasuredExperiment]:
    """Without scores that are no numbers."""
    return [one for one in told if all(math.isfinite(v) for _, v in one.seed_scores)]


def estimate_selection_bias(
    told: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    luck: SeedEffects,
    lower_is_better: bool,
) -> tuple[float, float]:
    """(luck of the chosen, what else is known as a factor on the variance).

    How far `levels`, which know of all relatives, are from the plain means.
    """
    assert luck.noise is not None, "asked where noise is known"
    unit = -luck.noise.sd if lower_is_better else luck.noise.sd
    rows = [
        replace(one.row, values=luck.adjust_scores(one.seed_scores)) for one in told
    ]
    found = posterior.compute_posteriors(rows, unit)
    means, weights = [], []
    for blob in (champion, baseline):
        values = [v for row in rows if row.blob == blob for v in row.values]
        means.append(fmean(values) / unit)
        weights.append(1 / len(values))
    best, first = found[champion], found[baseline]
    plain, believed = means[0] - means[1], best.mean - first.mean
    lucky = (plain - believed) * luck.noise.sd
    return lucky, (best.variance + first.variance) / sum(weights)


def collect_observations(
    told: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> list[RunObservation]:
    """Every run of the two, with its seed and its hour."""
    times = [at for one in told for at in one.end_times if at > 0]
    begin, end = min(times, default=0.0), max(times, default=0.0)
    sign = -1 if lower_is_better else 1
    found = []
    for one in told:
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
    whole = a * d - b * b
    scores = [
        sum(w * one.value for w, one in zip(weights, seen, strict=True))
        for weights in (best, first)
    ]
    top = (d * scores[0] - b * scores[1]) / whole
    bottom = (a * scores[1] - b * scores[0]) / whole
    return top - bottom, (a + d + 2 * b) / whole


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
    told: Sequence[MeasuredExperiment],
    champion: str,
    baseline: str,
    *,
    lower_is_better: bool,
) -> tuple[str, ...]:
    """Whom to run until the claim is sure enough, what helps most first.

    Empty: it is, or there is none.
    """
    told = drop_nonfinite(told)
    known = estimate_champion_gain(
        told, champion, baseline, lower_is_better=lower_is_better
    )
    if known is None or champion == baseline or known.gain <= 0:
        return ()
    seen = collect_observations(
        told, champion, baseline, lower_is_better=lower_is_better
    )
    spread = compute_variance_components(
        seed_effects.estimate_seed_effects([one.seed_scores for one in told])
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
    """One more run of one of the two, at the end of the night.

    All run on the same seeds in the same order, so those that the other has run with
    come first.
    """
    used = {one.seed for one in seen if one.is_champion == champion}
    others = [one.seed for one in seen if one.is_champion != champion]
    seed = next((seed for seed in others if seed not in used), -1)
    return RunObservation(champion, seed, 1.0, 0.0)
