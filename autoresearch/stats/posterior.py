"""How good each train.py truly is, as far as all the night's scores tell.

Every experiment is its parent plus one change. What changes are worth is a mixture
fitted to recorded nights (`PRIOR`): many do nothing, some harm, few help. From that and
the noise, Bayes' rule gives each train.py a level: a mean and a variance. It is free of
the winner's luck, since a lucky score is mostly believed to be luck; and a change that
did nothing measures its parent once more, for nothing.

Promises: levels follow from the scores alone, in any order of asking. In units of the
noise's standard deviation, and higher is better whatever the metric says.

Not covered: what parent and child owe to the same runs (they are treated as
independent); a mixture that is wrong for a lab costs gain, never a false verdict,
because verdicts rest on fresh runs (`policy.noise_aware`).

Sources: Robbins 1956 (empirical Bayes), Mitchell and Beauchamp 1988 (spike and slab).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from autoresearch.experiment import Row

# (share, mean size in noise units) of exponential parts; the rest does nothing.
# Fitted to the late part of the best-known public night and to nine others: see
# docs/decisions/0004-when-to-believe.md.
HELPS = ((2 / 3, 1.0), (1 / 3, 7.0))
HARMS = ((0.45, 1.5), (0.55, 9.0))
HELPING, HARMING = 0.15, 0.45  # of all changes, as a night begins
ANCHOR = 10  # experiments that this beginning counts for
# The mixture is not exact, so what a level owes to it is never quite certain.
SURELY = 0.04
# Children tell of a parent only as far as the mixture is right: a hundred losers of one
# size must not talk it down. So they move it by no more than this, in the standard
# deviations that its own runs left.
REACH = 1.5

Levels = Mapping[str, "Level"]

ROOT_2 = math.sqrt(2)
ROOT_2_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Level:
    """What is believed of one train.py, in noise units."""

    mean: float
    variance: float
    low: float = -math.inf  # what children may make of its mean
    high: float = math.inf

    def measured(self, mean: float, runs: int) -> "Level":
        """The same after further runs of it."""
        weight = 1 / self.variance
        total = weight + runs
        return born((self.mean * weight + mean * runs) / total, 1 / total)


def born(mean: float, variance: float) -> Level:
    """A level that rests on its own runs."""
    reach = REACH * math.sqrt(variance)
    return Level(mean, variance, mean - reach, mean + reach)


@dataclass(frozen=True, slots=True)
class Shares:
    """How many changes help and harm, learned as the night goes on."""

    helping: float = HELPING
    harming: float = HARMING
    seen: int = 0

    def with_one_more(self, change: "Effect") -> "Shares":
        """One step of expectation and maximisation."""
        count = ANCHOR + self.seen
        return Shares(
            (self.helping * count + change.helps) / (count + 1),
            (self.harming * count + change.harms) / (count + 1),
            self.seen + 1,
        )


@dataclass(frozen=True, slots=True)
class Effect:
    """What is believed of one change."""

    mean: float
    variance: float
    helps: float  # probability
    harms: float


def part(seen: float, error: float, size: float) -> tuple[float, float, float]:
    """One exponential part: its likelihood, and mean and variance of the effect."""
    pull = seen - error * error / size
    z = pull / error
    if z < -30:  # nothing of it is left
        return 0.0, 0.0, 0.0
    share = 0.5 * math.erfc(-z / ROOT_2)
    exponent = error * error / (2 * size * size) - seen / size
    if exponent > 600:
        return 0.0, 0.0, 0.0
    hazard = math.exp(-z * z / 2) / ROOT_2_PI / share
    mean = pull + error * hazard
    variance = error * error * max(0.0, 1 - hazard * (hazard + z))
    return math.exp(exponent) / size * share, mean, variance


def effect(seen: float, error: float, shares: Shares) -> Effect:
    """What a change is worth, given the difference seen and its standard error."""
    z = seen / error
    nothing = 1 - shares.helping - shares.harming
    weights = nothing * math.exp(-z * z / 2) / ROOT_2_PI / error
    mean = square = 0.0
    sums = []
    for parts, sign, among in ((HELPS, 1, shares.helping), (HARMS, -1, shares.harming)):
        before = weights
        for share, size in parts:
            likely, middle, variance = part(sign * seen, error, size)
            weight = among * share * likely
            weights += weight
            mean += sign * weight * middle
            square += weight * (middle * middle + variance)
        sums.append(weights - before)
    if weights < 1e-280:  # far out, where only the difference itself speaks
        return Effect(seen, error * error, float(seen > 0), float(seen < 0))
    mean /= weights
    variance = max(0.0, square / weights - mean * mean)
    return Effect(mean, variance, sums[0] / weights, sums[1] / weights)


@lru_cache(maxsize=256)  # asked for a candidate, for its verdict, and ever after
def after(
    parent: Level, mean: float, runs: int, shares: Shares
) -> tuple[Level, Level, Effect]:
    """(parent, child, change) as they are believed after the child's runs."""
    error = 1 / runs + parent.variance
    seen = mean - parent.mean
    change = effect(seen, math.sqrt(error), shares)
    shared = parent.variance / error
    surprise = shared * (seen - change.mean)
    left = parent.variance * (1 - shared)
    first = parent.mean + surprise
    held = min(parent.high, max(parent.low, first))
    variance = max(SURELY, left + shared**2 * change.variance)
    return (
        Level(held, variance, parent.low, parent.high),
        born(first + change.mean, left + (1 - shared) ** 2 * change.variance + SURELY),
        change,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """Levels, and the rows they follow from."""

    rows: tuple[Row, ...]
    unit: float
    levels: Levels
    shares: Shares


_last = Known(
    (), 0.0, {}, Shares()
)  # rows only ever grow, so most of the work is done already


def levels(rows: Sequence[Row], unit: float) -> Levels:
    """blob -> level. `unit`: the noise's sd, negative where lower scores are better."""
    return known(rows, unit).levels


def known(rows: Sequence[Row], unit: float) -> Known:
    """The same, and the shares."""
    global _last
    rows, last = tuple(rows), _last
    done = len(last.rows)
    if last.unit == unit and rows[:done] == last.rows:
        found, shares = dict(last.levels), last.shares
    else:
        found, shares, done = {}, Shares(), 0
    for row in rows[done:]:
        if row.values and all(map(math.isfinite, row.values)):
            shares = take(found, row, fmean(row.values) / unit, shares)
    _last = Known(rows, unit, found, shares)
    return _last


def take(found: dict[str, Level], row: Row, mean: float, shares: Shares) -> Shares:
    """Let one experiment's runs count."""
    runs = len(row.values)
    if row.blob in found:  # run again under another number
        found[row.blob] = found[row.blob].measured(mean, runs)
    elif row.parent in found:
        parent, child, change = after(found[row.parent], mean, runs, shares)
        found[row.parent], found[row.blob] = parent, child
        return shares.with_one_more(change)
    else:  # a baseline, or from a parent that nobody measured here
        found[row.blob] = born(mean, 1 / runs)
    return shares


def best(found: Levels) -> str | None:
    """The blob that is believed best; the older of two equals."""
    return max(found, key=lambda blob: found[blob].mean, default=None)
