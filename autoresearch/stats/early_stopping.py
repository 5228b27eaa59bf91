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
LOOK_SHARES = (0.1, 0.2, 0.3, 0.45, 0.6)
LOSS_WINDOW_SHARE = 0.08  # of the budget, over which the reported losses are averaged
MIN_FINISHED_RUNS = 9  # finished runs with a curve
PRUNE_Z = 3.0  # normal deviate of the prediction: one in a thousand
PREDICTIVE_Z = 3.0  # standard errors that losses have to tell of scores at all
EXEMPT_SHARE = 0.1  # share of the would-be-killed that run on
MAX_CURVE_POINTS = 4096  # of a curve; more are thinned out

# A word of a constant's or variable's name that shapes a schedule.
SCHEDULE_PATTERN = re.compile(
    r"progress|sched|warm|cool|decay|anneal|(^|_|\b)(lr|rate|momentum|betas?|batch)"
    r"(_|\b|$)|learning",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that came to its end."""

    curve: Curve
    score: float
    touches_schedule: bool  # whether its change touches the schedule
    parent_score: (
        float | None
    )  # what its parent scored on that seed; None: nobody knows


@dataclass(frozen=True, slots=True)
class FalsePruneRate:
    """What the spared tenth says of those that were ended."""

    share: float  # of ended runs that would have been better than the bar
    low: float  # 95 % interval
    high: float
    spared: int
    killed: int


class Pruner:
    """Follows one run's losses, and says when it is hopeless.

    A run that a coin spares is followed too: what would have ended it is in `spared`.
    """

    def __init__(
        self,
        past: Sequence[FinishedRun],
        bar: float,
        parent: float | None,
        *,
        schedule: bool,
        spare: bool,
        lower_is_better: bool,
    ) -> None:
        self.touches_schedule = schedule
        self.exempted: PruneDecision | None = None  # None: nothing would have ended it
        self._finished_runs, self._bar, self._is_exempt = past, bar, spare
        self._parent_score = parent
        self._lower_is_better = lower_is_better
        self._window: list[tuple[float, float]] = []
        self._samples: list[tuple[float, float]] = []

    def reset(self) -> None:
        """The run is made again from its start."""
        self.exempted = None
        self._window.clear()
        self._samples.clear()

    @property
    def curve(self) -> Curve:
        """The mean loss before each look: all that later runs are compared with."""
        return tuple(self._samples)

    def __call__(self, share: float, loss: float | None) -> PruneDecision | None:
        """The run says it lost `loss` at this share of its budget: may it end?"""
        if loss is None or len(self._samples) == len(LOOK_SHARES):
            return None
        look, ended = LOOK_SHARES[len(self._samples)], None
        if share >= look:
            mean = compute_window_loss(tuple(self._window), look)
            self._window.clear()
            # Without a report in time the look is skipped: a curve ends there.
            self._samples.append((look, math.nan if mean is None else mean))
            ended = self._decide()
        if len(self._window) < MAX_CURVE_POINTS:
            self._window.append((share, loss))
        return ended

    def _decide(self) -> PruneDecision | None:
        found = decide_pruning(
            self.curve,
            self._finished_runs,
            self._bar,
            self._parent_score,
            schedule=self.touches_schedule,
            lower_is_better=self._lower_is_better,
        )
        if found is None or self.exempted is not None:
            return None
        if self._is_exempt:
            self.exempted = found
            return None
        return found


def normalize_curve(points: Sequence[tuple[float, float]]) -> Curve:
    """What train.py reported -> a curve: finite, ordered, bounded.

    A progress that goes back, or a loss that is no number, is left out.
    """
    kept: list[tuple[float, float]] = []
    for progress, loss in points:
        ordered = not kept or progress > kept[-1][0]
        if math.isfinite(loss) and 0 <= progress <= 1 and ordered:
            kept.append((progress, loss))
    step = -(-len(kept) // MAX_CURVE_POINTS) or 1
    return tuple(kept[::step])


def compute_window_loss(curve: Curve, progress: float) -> float | None:
    """The mean loss over the window that ends at `progress`; None: no report in it."""
    seen = [
        loss for at, loss in curve if progress - LOSS_WINDOW_SHARE <= at <= progress
    ]
    mean = fmean(seen) if seen else math.nan
    return mean if math.isfinite(mean) else None


def decide_pruning(
    curve: Curve,
    past: Sequence[FinishedRun],
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
    look = max(
        (look for look in LOOK_SHARES if curve and look <= curve[-1][0]), default=None
    )
    if look is None or schedule or parent is None:
        return None
    here = compute_window_loss(curve, look)
    known = [
        (loss, run.parent_score, run.score)
        for run in past
        if not run.touches_schedule
        and run.parent_score is not None
        and (loss := compute_window_loss(run.curve, look)) is not None
    ]
    if here is None or len(known) < MIN_FINISHED_RUNS:
        return None
    fit = fit_least_squares(known)
    if fit is None or not fit.is_predictive(lower_is_better=lower_is_better):
        return None
    predicted, error = fit.predict(here, parent)
    worse = predicted - bar if lower_is_better else bar - predicted
    surprise = fit.max_overprediction if lower_is_better else fit.max_underprediction
    if error <= 0 or worse <= surprise:
        return None  # a past run was mispredicted by more than this
    if (
        quantiles.normal_quantile_from_t(worse / error, fit.degrees_of_freedom)
        < PRUNE_Z
    ):
        return None
    return PruneDecision(look, predicted, error, bar)


@dataclass(frozen=True, slots=True)
class ScoreRegression:
    """(loss, parent's score) -> final score, by least squares."""

    mean: tuple[float, float, float]  # of loss, parent's score, final score
    slope: tuple[float, float]
    # Inverse of the matrix of squares and products of loss and parent, around the mean.
    inverse_scatter: tuple[float, float, float]  # loss loss, loss parent, parent parent
    residual_sd: float  # of the scatter
    count: int
    degrees_of_freedom: int
    max_overprediction: (
        float  # how much the luckiest past run ended below its prediction
    )
    max_underprediction: float  # how much one ended above it

    def is_predictive(self, *, lower_is_better: bool) -> bool:
        """Whether lower losses did end better, beyond doubt."""
        slope = self.slope[0] if lower_is_better else -self.slope[0]
        return slope > PREDICTIVE_Z * self.residual_sd * math.sqrt(
            self.inverse_scatter[0]
        )

    def predict(self, loss: float, parent: float) -> tuple[float, float]:
        """(predicted score, standard error of one run around it)."""
        x, z = loss - self.mean[0], parent - self.mean[1]
        a, b, c = self.inverse_scatter
        lever = 1 + 1 / self.count + a * x * x + 2 * b * x * z + c * z * z
        predicted = self.mean[2] + self.slope[0] * x + self.slope[1] * z
        return predicted, self.residual_sd * math.sqrt(lever)


def fit_least_squares(
    points: Sequence[tuple[float, float, float]],
) -> ScoreRegression | None:
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
    return ScoreRegression(
        (mean[0], mean[1], mean[2]), slope, inverse, sd, len(points), degrees,
        -min(left), max(left),
    )  # fmt: skip


def curve_to_json(curve: Curve) -> str | None:
    """A curve as JSON, which has no nan; None: there is no curve."""
    points = [(at, loss if math.isfinite(loss) else None) for at, loss in curve]
    return json.dumps(points) if points else None


def curve_from_json(text: str) -> Curve:
    """The curve again."""
    points = json.loads(text)
    return tuple((at, math.nan if loss is None else loss) for at, loss in points)


def is_exempt(seed: int, number: int) -> bool:
    """Whether this experiment runs on although it is hopeless. train.py cannot know."""
    digest = hashlib.sha256(f"spared:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:6], "little") < EXEMPT_SHARE * 2**48


def estimate_false_prunes(
    spared_won: Sequence[bool], killed: int
) -> FalsePruneRate | None:
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
    return FalsePruneRate(share, low, high, count, killed)


def touches_schedule(parent: str, source: str) -> bool:
    """Whether a changed line names anything that shapes the schedule."""
    changed = difflib.ndiff(parent.splitlines(), source.splitlines())
    return any(
        line[:2] in ("+ ", "- ") and SCHEDULE_PATTERN.search(line) for line in changed
    )
