"""End a hopeless run early, on the learning curve that train.py reports.

The final score is predicted from the loss so far by what this ledger's finished runs
show, with the scatter they show. A run ends when even a prediction that is wrong by
more than any before would leave it worse than what it has to beat.

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

from autoresearch import noise
from autoresearch.experiment import Curve, Hopeless

# When a run is looked at, as a share of its budget. Few looks: each is a chance to err.
LOOKS = (0.15, 0.25, 0.4, 0.55, 0.7)
WINDOW = 0.08  # of the budget, over which the reported losses are averaged
FEWEST = 12  # finished runs with a curve
SURE_Z = 2.9  # normal deviate of the prediction: two in a thousand
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
        *,
        schedule: bool,
        spare: bool,
        lower_is_better: bool,
    ) -> None:
        self.schedule = schedule
        self.spared: Hopeless | None = None  # None: nothing would have ended it
        self._past, self._bar, self._spare = past, bar, spare
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

    def __call__(self, share: float, loss: float | None) -> Hopeless | None:
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

    def _judged(self) -> Hopeless | None:
        found = hopeless(
            self.curve,
            self._past,
            self._bar,
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
    *,
    schedule: bool,
    lower_is_better: bool,
) -> Hopeless | None:
    """Whether a run that has come this far may end: ask at every look, not between.

    `bar` is the score that the candidate has to beat to be of any use. None: run on.
    """
    look = max((look for look in LOOKS if curve and look <= curve[-1][0]), default=None)
    if look is None or schedule:
        return None
    here = loss_at(curve, look)
    known = [
        (loss, run.score)
        for run in past
        if not run.schedule and (loss := loss_at(run.curve, look)) is not None
    ]
    if here is None or len(known) < FEWEST:
        return None
    fit = line(known)
    if fit is None:
        return None
    predicted, error = fit.at(here)
    worse = predicted - bar if lower_is_better else bar - predicted
    surprise = fit.worst if lower_is_better else fit.best
    if error <= 0 or worse <= surprise:
        return None  # a past run was mispredicted by more than this
    if noise.as_normal(worse / error, fit.degrees) < SURE_Z:
        return None
    return Hopeless(look, predicted, error, bar)


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through (loss, final score), by least squares."""

    start: float
    slope: float
    middle: float  # mean loss
    width: float  # sum of squared distances from it
    sd: float  # of the scatter
    count: int
    worst: float  # how much the luckiest past run ended below its prediction
    best: float  # how much one ended above it

    @property
    def degrees(self) -> int:
        return self.count - 2

    def at(self, loss: float) -> tuple[float, float]:
        """(predicted score, standard error of one run around it)."""
        lever = 1 + 1 / self.count + (loss - self.middle) ** 2 / self.width
        return self.start + self.slope * loss, self.sd * math.sqrt(lever)


def line(points: Sequence[tuple[float, float]]) -> Line | None:
    """The fit; None: all losses equal, or better losses end worse."""
    middle, mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    width = sum((x - middle) ** 2 for x, _ in points)
    if width <= 0:
        return None
    slope = sum((x - middle) * (y - mean) for x, y in points) / width
    start = mean - slope * middle
    off = [y - start - slope * x for x, y in points]
    sd = math.sqrt(sum(o * o for o in off) / max(1, len(points) - 2))
    return Line(start, slope, middle, width, sd, len(points), -min(off), max(off))


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
    share, z = sum(spared_won) / count, noise.NORMAL_95
    grown = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / grown
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / grown
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return FalseKills(share, low, high, count, killed)


def touches_schedule(parent: str, source: str) -> bool:
    """Whether a changed line names anything that shapes the schedule."""
    changed = difflib.ndiff(parent.splitlines(), source.splitlines())
    return any(line[:2] in ("+ ", "- ") and SCHEDULE.search(line) for line in changed)
