"""The certificate of a night: champion against baseline on fresh seeds, pair by pair.

A pair is one run of each with the same seed, made by `autoresearch replicate` after the
champion was chosen. So nothing in it was selected for its luck, and what both runs of a
pair owe to their seed cancels.

Promises: only runs made to replicate count; the interval is Student's, with one degree
of freedom less than pairs; one pair has a gain and no interval. In the metric's own
units, positive is better.

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
    """One seed, run by both."""

    seed: int
    gain: float  # on validation; positive is better
    holdout_gain: float | None  # None: one of the two was not scored there


@dataclass(frozen=True, slots=True)
class TInterval:
    """A mean over pairs and its 95 % interval."""

    mean: float | None  # None: no pairs
    low: float | None  # None: one pair says nothing of its own scatter
    high: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a champion is worth, on seeds that had no say in choosing it."""

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
    """Runs made to replicate, paired by seed, in the order of the champion's.

    A seed that was run several times is one pair still: its runs are averaged.
    """
    sign = 1.0 if lower_is_better else -1.0
    best, first = group_replicates(champion), group_replicates(baseline)
    found = []
    for seed in best:
        if seed not in first:
            continue
        after, before = best[seed], first[seed]
        gain = fmean(r.value for r in before) - fmean(r.value for r in after)
        held, held_before = compute_holdout_mean(after), compute_holdout_mean(before)
        kept = None
        if held is not None and held_before is not None:
            kept = sign * (held_before - held)
        found.append(PairedGain(seed, sign * gain, kept))
    return tuple(found)


def group_replicates(runs: Sequence[RunRecord]) -> dict[int, list[RunRecord]]:
    """The runs that were made to replicate an experiment, by seed."""
    found: dict[int, list[RunRecord]] = {}
    for run in runs:
        if run.occasion == "replicate" and math.isfinite(run.value):
            found.setdefault(run.seed, []).append(run)
    return found


def compute_holdout_mean(runs: Sequence[RunRecord]) -> float | None:
    """Their mean score on the holdout; None: not all of them were scored there."""
    scores = [run.holdout for run in runs if run.holdout is not None]
    return fmean(scores) if len(scores) == len(runs) else None


def compute_certificate(
    champion: int, baseline: int, pairs: Sequence[PairedGain]
) -> Certificate | None:
    """The statistic itself; None without a pair."""
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
    """Student's 95 % interval of a mean."""
    count = len(values)
    mean = fmean(values) if values else None
    if mean is None or count == 1:
        return TInterval(mean, None, None)
    half = t_quantile_95(count - 1) * stdev(values) / math.sqrt(count)
    return TInterval(mean, mean - half, mean + half)
