"""The noise of a score: its standard deviation, heavy tails and drift.

Promises: only runs of the same train.py are compared, so real improvements do not
inflate the estimate; an estimate has its degrees of freedom and a 95 % interval; with
one run per candidate there is none. Everything is in the metric's units.

Not covered: noise that differs between candidates (one standard deviation is pooled
over all), and a drift that is neither a slope nor a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, median

from autoresearch.experiment import Noise
from autoresearch.stats.quantiles import (
    NORMAL_95,
    chi_square_quantile,
    normal_quantile_from_t,
    t_quantile_from_normal,
)

# Drift is tested after every verdict: the false-positive rate is about 0.1 % a session.
DRIFT_Z = 4.0
MIN_DEGREES_FOR_TAILS = 24  # degrees of freedom; fewer cannot show a heavy tail
HEAVY_TAIL_RATIO = 1.4  # of standard deviation to robust scale; normal noise gives 1

Replicates = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class GainEstimate:
    """A gain and its 95 % interval, in the metric's units."""

    gain: float  # positive is better
    low: float
    high: float
    runs: int  # of the champion that the estimate uses


@dataclass(frozen=True, slots=True)
class Drift:
    """A slope of the same code's scores over the session."""

    per_hour: float  # change of the score, in the metric's units
    z: float  # how many standard errors from no drift


def estimate_pooled_noise(replicates: Replicates) -> Noise | None:
    """The pooled standard deviation within candidates; None: no candidate ran twice.

    Candidates with a score that is not finite are left out.
    """
    squares, degrees = 0.0, 0
    for values in replicates:
        if len(values) > 1 and all(map(math.isfinite, values)):
            squares += compute_sum_of_squares(tuple(values))
            degrees += len(values) - 1
    if not degrees:
        return None
    return noise_from_sd(math.sqrt(squares / degrees), degrees)


def noise_from_sd(sd: float, degrees: float) -> Noise:
    """A standard deviation with its chi-square 95 % interval."""
    low, high = (chi_square_quantile(degrees, z) for z in (-NORMAL_95, NORMAL_95))
    return Noise(
        sd, degrees, sd * math.sqrt(degrees / high), sd * math.sqrt(degrees / low)
    )


@lru_cache(maxsize=4096)
def compute_sum_of_squares(values: tuple[float, ...]) -> float:
    """The sum of squares around the mean."""
    if min(values) == max(values):
        return 0.0  # and not what rounding makes of it
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def estimate_mean_difference(
    champion: Sequence[float],
    baseline: Sequence[float],
    noise: Noise,
    *,
    lower_is_better: bool,
) -> GainEstimate:
    """The gain of a champion over the baseline, with its 95 % interval (Student).

    Both take scores, one per run. Unbiased only for runs that were not used to select
    the champion (`Champion.fresh`): a candidate selected for its score is lucky.
    """
    difference = fmean(baseline) - fmean(champion)
    gain = difference if lower_is_better else -difference
    error = noise.sd * math.sqrt(1 / len(champion) + 1 / len(baseline))
    half = error * t_quantile_from_normal(NORMAL_95, noise.degrees)
    return GainEstimate(gain, gain - half, gain + half, len(champion))


def estimate_robust_sd(replicates: Replicates) -> float | None:
    """A robust scale, equal to the sd when the noise is normal; None: no replicates.

    The median absolute residual. Each residual is scaled up to a single run's error.
    """
    wide = [
        abs(value - fmean(values)) * math.sqrt(len(values) / (len(values) - 1))
        for values in replicates
        if len(values) > 1
        for value in values
    ]
    return median(wide) / 0.674490 if wide else None


def has_heavy_tails(replicates: Replicates) -> bool | None:
    """Whether the noise has outliers; None: too few runs to tell."""
    noise, robust = estimate_pooled_noise(replicates), estimate_robust_sd(replicates)
    if noise is None or not robust or noise.degrees < MIN_DEGREES_FOR_TAILS:
        return None
    return noise.sd > HEAVY_TAIL_RATIO * robust


def detect_drift(
    replicates: Replicates, when: Sequence[Sequence[float]]
) -> Drift | None:
    """A significant slope (|z| >= DRIFT_Z) of the same code's scores over time.

    `when`: seconds since 1970 at the end of each run, in the shape of `replicates`.
    The first run of a candidate is left out, except the baseline's: a candidate ran
    again because its first run was good, so later ones look worse without any drift.
    """
    points: list[tuple[float, float]] = []
    groups = 0
    for place, (values, times) in enumerate(zip(replicates, when, strict=False)):
        chosen = list(zip(times, values, strict=False))[1 if place else 0 :]
        if len(chosen) > 1:
            middle = fmean(t for t, _ in chosen), fmean(v for _, v in chosen)
            points += [(t - middle[0], v - middle[1]) for t, v in chosen]
            groups += 1
    width = sum(t * t for t, _ in points)
    degrees = len(points) - groups - 1
    if degrees < 3 or width <= 0:
        return None
    slope = sum(t * v for t, v in points) / width
    rest = sum((v - slope * t) ** 2 for t, v in points) / degrees
    if rest <= 0:
        return None
    z = normal_quantile_from_t(slope / math.sqrt(rest / width), degrees)
    return Drift(slope * 3600, z) if abs(z) >= DRIFT_Z else None
