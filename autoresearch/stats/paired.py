"""The certificate: champion against baseline on fresh seeds, a paired t-interval.

A pair is one run of each with the same seed, made by `autoresearch replicate` after the
champion was chosen. So there is no selection bias, and seed effects that both runs of a
pair share cancel.

Promises: only replicates count; the interval is Student's with one degree of freedom
less than pairs; one pair gives a gain and no interval. In the metric's units, positive
is better.

Not covered: gains whose noise is far from normal, with few pairs; a baseline that never
ran on this machine (nothing to pair with).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from autoresearch.experiment import RunRecord
from autoresearch.stats.quantiles import t_quantile_95


@dataclass(frozen=True, slots=True)
class PairedGain:
    """The gain on one seed that both ran with."""

    seed: int
    gain: float  # on validation; positive is better
    holdout_gain: float | None  # None: one of the two was not scored there


@dataclass(frozen=True, slots=True)
class TInterval:
    """A mean over pairs and its 95 % interval."""

    mean: float | None  # None: no pairs
    low: float | None  # None: a single pair has no standard error
    high: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A champion's gain on seeds that were not used to select it."""

    champion: int
    baseline: int
    gain: float
    low: float | None  # None: one pair only
    high: float | None
    pairs: int
    holdout_gain: float | None  # None: no pair was scored on the holdout
    holdout_low: float | None
    holdout_high: float | None
    holdout_pairs: int
    # Gain on validation less gain on the holdout, over pairs that have both: above 0,
    # part of the gain fits the validation text only.
    gap: float | None
    gap_low: float | None
    gap_high: float | None

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return asdict(self)


def pair_by_seed(
    champion: Sequence[RunRecord],
    baseline: Sequence[RunRecord],
    *,
    lower_is_better: bool,
) -> tuple[PairedGain, ...]:
    """Replicates paired by seed, in the order of the champion's runs.

    Several runs on one seed make one pair: they are averaged.
    """
    sign = 1.0 if lower_is_better else -1.0
    champion_runs, baseline_runs = map(group_replicates, (champion, baseline))
    pairs = []
    for seed in champion_runs:
        if seed not in baseline_runs:
            continue
        after, before = champion_runs[seed], baseline_runs[seed]
        gain = fmean(r.value for r in before) - fmean(r.value for r in after)
        holdouts = compute_holdout_mean(before), compute_holdout_mean(after)
        holdout_gain = None
        if holdouts[0] is not None and holdouts[1] is not None:
            holdout_gain = sign * (holdouts[0] - holdouts[1])
        pairs.append(PairedGain(seed, sign * gain, holdout_gain))
    return tuple(pairs)


def group_replicates(runs: Sequence[RunRecord]) -> dict[int, list[RunRecord]]:
    """The replicates among an experiment's runs, by seed."""
    by_seed: dict[int, list[RunRecord]] = {}
    for run in runs:
        if run.occasion == "replicate" and math.isfinite(run.value):
            by_seed.setdefault(run.seed, []).append(run)
    return by_seed


def compute_holdout_mean(runs: Sequence[RunRecord]) -> float | None:
    """The mean holdout score of these runs; None: not all were scored there."""
    scores = [run.holdout for run in runs if run.holdout is not None]
    return fmean(scores) if len(scores) == len(runs) else None


def compute_certificate(
    champion: int, baseline: int, pairs: Sequence[PairedGain]
) -> Certificate | None:
    """Paired gains as a certificate; None without a pair.

    champion, baseline: numbers of their experiments.
    """
    gain = compute_t_interval([pair.gain for pair in pairs])
    both = [(p.gain, p.holdout_gain) for p in pairs if p.holdout_gain is not None]
    held = compute_t_interval([holdout for _, holdout in both])
    gap = compute_t_interval([seen - holdout for seen, holdout in both])
    if gain.mean is None:
        return None
    return Certificate(
        champion, baseline, gain.mean, gain.low, gain.high, len(pairs),
        held.mean, held.low, held.high, len(both), gap.mean, gap.low, gap.high,
    )  # fmt: skip


def compute_t_interval(values: Sequence[float]) -> TInterval:
    """The mean of values and its 95 % interval (Student)."""
    count = len(values)
    mean = fmean(values) if values else None
    if mean is None or count == 1:
        return TInterval(mean, None, None)
    half = t_quantile_95(count - 1) * stdev(values) / math.sqrt(count)
    return TInterval(mean, mean - half, mean + half)
