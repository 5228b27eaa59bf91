"""End a hopeless run early, on the learning curve that train.py reports.

The final score is predicted from the loss so far, and from what the train.py that it
started from scored on that seed, by what this ledger's finished runs show, with the
scatter they show. A run ends when even a prediction that is wrong by more than any
before would leave it worse than what it has to beat. Where losses told nothing of
scores so far, no run is ended.

Promises: off until FEWEST runs of this series have finished. train.py's losses are
claims, but they can only end its own run, never win. A tenth of the runs that would
have been ended, drawn by a coin that train.py cannot see, run on: so the rate of false
kills is estimated without bias (Horvitz and Thompson 1952) and shown with an interval.
Killed runs are never evidence for the model; the spared tenth is.

The losses of a run under way say little when its schedule differs from the others': a
slower decay looks bad until the end. So a change that touches the schedule is never
ended early, and never taught from.

Not covered: changes of the loss itself (weights, smoothing). They are ended by no rule
but the scatter, so until the ledger has seen one they may be ended wrongly; the spared
tenth shows it.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autoresearch.experiment import Curve, PruneDecision
from autoresearch.stats import quantiles

# When a run is looked at, as a share of its budget. Few looks: each is a chance to err.
LOOKS = (0.1, 0.2, 0.3, 0.45, 0.6)
WINDOW = 0.08  # of the budget, over which the reported losses are averaged
FEWEST = 9  # finished runs with a curve
SURE_Z = 3.0  # normal deviate of the prediction: one in a thousand
FORETELLS_Z = 3.0  # standard errors that losses have to tell of scores at all
SPARED = 0.1  # share of the would-be-killed that run on
MOST_POINTS = 4096  # of a curve; more are thinned out

# A word of a constant's or variable's name that shapes a schedule.
SCHEDULE = re.compile(
    r"progress|sched|warm|cool|decay|anneal|(^|_|\b)(lr|rate|momentum|betas?|batch)"
    r"(_|\b|$)|learning",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end."""

    curve: Curve
    score: float
    schedule: bool  # whether its change touches the schedule
    parent: float | None  # what its parent scored on that seed; None: nobody knows


@dataclass(frozen=True, slots=True)
class FalseKills:
    """What the spared tenth says of those that were ended."""

    share: float  # of ended runs that would have been better than the bar
    low: float  # 95 % interval
    high: float
    spared: int
    killed: int


class Outlook:
    """Follows one run's losses, and says when it is hopeless.

    A run that a coin spares is followed too: what would have ended it is in `spared`.
    """

    def __init__(
        self,
        past: Sequence[Finished],
        bar: float,
        parent: float | None,
        *,
        schedule: bool,
        spare: bool,
        lower_is_better: bool,
    ) -> None:
        self.schedule = schedule
        self.spared: PruneDecision | None = None  # None: nothing would have ended it
        self._past, self._bar, self._spare = past, bar, spare
        self._parent = parent
        self._lower_is_better = lower_is_better
        self._window: list[tuple[float, float]] = []
        self._samples: list[tuple[float, float]] = []

    def forget(self) -> None:
        """The run is made again from its start."""
        self.spared = None
        self._window.clear()
        self._samples.clear()

    @property
    def curve(self) -> Curve:
        """The mean loss before each look: all that later runs are compared with."""
        return tuple(self._samples)

    def __call__(self, share: float, loss: float | None) -> PruneDecision | None:
        """The run says it lost `loss` at this share of its budget: may it end?"""
        if loss is None or len(self._samples) == len(LOOKS):
            return None
        look, ended = LOOKS[len(self._samples)], None
        if share >= look:
            mean = loss_at(tuple(self._window), look)
            self._window.clear()
            # Without a report in time the look is skipped: a curve ends there.
            self._samples.append((look, math.nan if mean is None else mean))
            ended = self._judged()
        if len(self._window) < MOST_POINTS:
            self._window.append((share, loss))
        return ended

    def _judged(self) -> PruneDecision | None:
        found = hopeless(
            self.curve,
            self._past,
            self._bar,
            self._parent,
            schedule=self.schedule,
            lower_is_better=self._lower_is_better,
        )
        if found is None or self.spared is not None:
            return None
        if self._spare:
            self.spared = found
            return None
        return found


def tidy(points: Sequence[tuple[float, float]]) -> Curve:
    """What train.py reported -> a curve: finite, ordered, bounded.

    A progress that goes back, or a loss that is no number, is left out.
    """
    kept: list[tuple[float, float]] = []
    for progress, loss in points:
        ordered = not kept or progress > kept[-1][0]
        if math.isfinite(loss) and 0 <= progress <= 1 and ordered:
            kept.append((progress, loss))
    step = -(-len(kept) // MOST_POINTS) or 1
    return tuple(kept[::step])


def loss_at(curve: Curve, progress: float) -> float | None:
    """The mean loss over the window that ends at `progress`; None: no report in it."""
    seen = [loss for at, loss in curve if progress - WINDOW <= at <= progress]
    mean = fmean(seen) if seen else math.nan
    return mean if math.isfinite(mean) else None


def hopeless(
    curve: Curve,
    past: Sequence[Finished],
    bar: float,
    parent: float | None,
    *,
    schedule: bool,
    lower_is_better: bool,
) -> PruneDecision | None:
    """Whether a run that has come this far may end: ask at every look, not between.

    `bar` is the score that the candidate has to beat to be of any use, `parent` that of
    the train.py it started from. None: run on.
    """
    look = max((look for look in LOOKS if curve and look <= curve[-1][0]), default=None)
    if look is None or schedule or parent is None:
        return None
    here = loss_at(curve, look)
    known = [
        (loss, run.parent, run.score)
        for run in past
        if not run.schedule
        and run.parent is not None
        and (loss := loss_at(run.curve, look)) is not None
    ]
    if here is None or len(known) < FEWEST:
        return None
    fit = plane(known)
    if fit is None or not fit.foretells(lower_is_better=lower_is_better):
        return None
    predicted, error = fit.at(here, parent)
    worse = predicted - bar if lower_is_better else bar - predicted
    surprise = fit.worst if lower_is_better else fit.best
    if error <= 0 or worse <= surprise:
        return None  # a past run was mispredicted by more than this
    if quantiles.as_normal(worse / error, fit.degrees) < SURE_Z:
        return None
    return PruneDecision(look, predicted, error, bar)


@dataclass(frozen=True, slots=True)
class Plane:
    """(loss, parent's score) -> final score, by least squares."""

    mean: tuple[float, float, float]  # of loss, parent's score, final score
    slope: tuple[float, float]
    # Inverse of the matrix of squares and products of loss and parent, around the mean.
    inverse: tuple[float, float, float]  # loss loss, loss parent, parent parent
    sd: float  # of the scatter
    count: int
    degrees: int
    worst: float  # how much the luckiest past run ended below its prediction
    best: float  # how much one ended above it

    def foretells(self, *, lower_is_better: bool) -> bool:
        """Whether lower losses did end better, beyond doubt."""
        slope = self.slope[0] if lower_is_better else -self.slope[0]
        return slope > FORETELLS_Z * self.sd * math.sqrt(self.inverse[0])

    def at(self, loss: float, parent: float) -> tuple[float, float]:
        """(predicted score, standard error of one run around it)."""
        x, z = loss - self.mean[0], parent - self.mean[1]
        a, b, c = self.inverse
        lever = 1 + 1 / self.count + a * x * x + 2 * b * x * z + c * z * z
        predicted = self.mean[2] + self.slope[0] * x + self.slope[1] * z
        return predicted, self.sd * math.sqrt(lever)


def plane(points: Sequence[tuple[float, float, float]]) -> Plane | None:
    """The fit; None: all losses equal.

    While there was one parent only, its children differ from it as their losses do.
    """
    mean = tuple(fmean(column) for column in zip(*points, strict=True))
    off = [(x - mean[0], z - mean[1], y - mean[2]) for x, z, y in points]
    xx, xz, zz, xy, zy = (
        sum(p[i] * p[j] for p in off)
        for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2))
    )
    whole = xx * zz - xz * xz
    if xx <= 0:
        return None
    if whole > 1e-9 * xx * zz:
        inverse = (zz / whole, -xz / whole, xx / whole)
        slope = ((zz * xy - xz * zy) / whole, (xx * zy - xz * xy) / whole)
    else:  # one parent, or parents in step with losses
        inverse, slope = (1 / xx, 0.0, 0.0), (xy / xx, 0.0)
    left = [y - slope[0] * x - slope[1] * z for x, z, y in off]
    degrees = len(points) - (3 if inverse[2] else 2)
    sd = math.sqrt(sum(o * o for o in left) / max(1, degrees))
    return Plane(
        (mean[0], mean[1], mean[2]), slope, inverse, sd, len(points), degrees,
        -min(left), max(left),
    )  # fmt: skip


def packed(curve: Curve) -> str | None:
    """A curve as JSON, which has no nan; None: there is no curve."""
    points = [(at, loss if math.isfinite(loss) else None) for at, loss in curve]
    return json.dumps(points) if points else None


def unpacked(text: str) -> Curve:
    """The curve again."""
    points = json.loads(text)
    return tuple((at, math.nan if loss is None else loss) for at, loss in points)


def spared(seed: int, number: int) -> bool:
    """Whether this experiment runs on although it is hopeless. train.py cannot know."""
    digest = hashlib.sha256(f"spared:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:6], "little") < SPARED * 2**48


def false_kills(spared_won: Sequence[bool], killed: int) -> FalseKills | None:
    """The estimate from the spared tenth: did each beat its bar after all?

    Unbiased, as the coin is fair. The interval is Wilson's (1927). None: none spared.
    """
    count = len(spared_won)
    if not count:
        return None
    share, z = sum(spared_won) / count, quantiles.NORMAL_95
    grown = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / grown
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / grown
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return FalseKills(share, low, high, count, killed)


def touches_schedule(parent: str, source: str) -> bool:
    """Whether a changed line names anything that shapes the schedule."""
    changed = difflib.ndiff(parent.splitlines(), source.splitlines())
    return any(line[:2] in ("+ ", "- ") and SCHEDULE.search(line) for line in changed)
