"""End a hopeless run early, on the learning curve that train.py reports.

The final score is predicted by least squares from the loss so far and from the score of
the parent train.py on the same seed; the regression is fitted to this series' finished
runs. A run is ended when it would still miss what it has to beat if the prediction were
off by more than any past run's. Where losses have not predicted scores so far, no run
is ended.

Promises: off until MIN_FINISHED_RUNS runs of this series have finished. The losses come
from train.py and are not trusted, but they can only end its own run, never win. A
random tenth of the runs that would be ended, which train.py cannot know, is exempt and
runs on: so the rate of false prunes is estimated without bias (Horvitz and Thompson
1952) and shown with an interval. Pruned runs are never used to fit the regression;
exempt ones are.

Intermediate losses say little when a run's schedule differs from the others': a slower
decay looks bad until the end. So a change that touches the schedule is never ended
early, and its runs are not used for the fit.

Not covered: changes of the loss itself (weights, smoothing). Only the residual scatter
protects them, so the first such change may be ended wrongly; the exempt tenth shows it.
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

# Shares of the budget at which a run is tested. Few: each test can be wrong.
LOOK_SHARES = (0.1, 0.2, 0.3, 0.45, 0.6)
LOSS_WINDOW_SHARE = 0.08  # of the budget, over which the reported losses are averaged
MIN_FINISHED_RUNS = 9  # finished runs with a curve
PRUNE_Z = 3.0  # normal deviate of the prediction: one in a thousand
PREDICTIVE_Z = 3.0  # standard errors of the slope that losses need to be predictive
EXEMPT_SHARE = 0.1  # of the runs that would be ended
MAX_CURVE_POINTS = 4096  # of a curve; more are thinned out

# A word of a constant's or variable's name that shapes a schedule.
SCHEDULE_PATTERN = re.compile(
    r"progress|sched|warm|cool|decay|anneal|(^|_|\b)(lr|rate|momentum|betas?|batch)"
    r"(_|\b|$)|learning",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that was not ended early."""

    curve: Curve
    score: float
    touches_schedule: bool  # whether its change touches the schedule
    parent_score: float | None  # of its parent on that seed; None: not measured


@dataclass(frozen=True, slots=True)
class FalsePruneRate:
    """The rate of false prunes, estimated from exempt runs."""

    share: float  # of ended runs that would have been better than the bar
    low: float  # 95 % interval
    high: float
    spared: int
    killed: int


class Pruner:
    """Follows one run's losses and decides when it is hopeless.

    An exempt run is followed too: what would have ended it is in `exempted`.
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
        """Forget the run, which starts over."""
        self.exempted = None
        self._window.clear()
        self._samples.clear()

    @property
    def curve(self) -> Curve:
        """The mean loss before each look, which later runs are compared with."""
        return tuple(self._samples)

    def __call__(self, share: float, loss: float | None) -> PruneDecision | None:
        """Take a reported loss at a share of the budget; None: run on."""
        if loss is None or len(self._samples) == len(LOOK_SHARES):
            return None
        look, ended = LOOK_SHARES[len(self._samples)], None
        if share >= look:
            mean = compute_window_loss(tuple(self._window), look)
            self._window.clear()
            # Without a report in the window the look is skipped.
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
    """A curve from the points that train.py reported: finite, ordered, bounded.

    Points whose progress does not increase, or whose loss is not finite, are left out.
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
    """Whether to end a run at this point of its curve; call it once at every look.

    bar: the score that the candidate has to beat. parent: the score of its parent on
    this seed. None: run on.
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
    """Linear regression of the final score on loss and parent's score."""

    mean: tuple[float, float, float]  # of loss, parent's score, final score
    slope: tuple[float, float]
    # Inverse of the scatter matrix of loss and parent's score around their means:
    # loss loss, loss parent, parent parent.
    inverse_scatter: tuple[float, float, float]
    residual_sd: float
    count: int
    degrees_of_freedom: int
    max_overprediction: float  # most that a past run ended below its prediction
    max_underprediction: float  # most that one ended above it

    def is_predictive(self, *, lower_is_better: bool) -> bool:
        """Whether better losses predict better scores significantly."""
        slope = self.slope[0] if lower_is_better else -self.slope[0]
        return slope > PREDICTIVE_Z * self.residual_sd * math.sqrt(
            self.inverse_scatter[0]
        )

    def predict(self, loss: float, parent: float) -> tuple[float, float]:
        """(predicted score, standard error of a single run's score around it)."""
        x, z = loss - self.mean[0], parent - self.mean[1]
        a, b, c = self.inverse_scatter
        lever = 1 + 1 / self.count + a * x * x + 2 * b * x * z + c * z * z
        predicted = self.mean[2] + self.slope[0] * x + self.slope[1] * z
        return predicted, self.residual_sd * math.sqrt(lever)


def fit_least_squares(
    points: Sequence[tuple[float, float, float]],
) -> ScoreRegression | None:
    """Fit (loss, parent's score, final score) of past runs; None: all losses are equal.

    With a single parent, or parents collinear with losses, only losses are used.
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
    else:
        inverse, slope = (1 / xx, 0.0, 0.0), (xy / xx, 0.0)
    left = [y - slope[0] * x - slope[1] * z for x, z, y in off]
    degrees = len(points) - (3 if inverse[2] else 2)
    sd = math.sqrt(sum(o * o for o in left) / max(1, degrees))
    return ScoreRegression(
        (mean[0], mean[1], mean[2]), slope, inverse, sd, len(points), degrees,
        -min(left), max(left),
    )  # fmt: skip


def curve_to_json(curve: Curve) -> str | None:
    """A curve as JSON, with null for nan; None: there is no curve."""
    points = [(at, loss if math.isfinite(loss) else None) for at, loss in curve]
    return json.dumps(points) if points else None


def curve_from_json(text: str) -> Curve:
    """A curve from its JSON."""
    points = json.loads(text)
    return tuple((at, math.nan if loss is None else loss) for at, loss in points)


def is_exempt(seed: int, number: int) -> bool:
    """Whether an experiment is exempt from early stopping. train.py cannot know."""
    digest = hashlib.sha256(f"spared:{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:6], "little") < EXEMPT_SHARE * 2**48


def estimate_false_prunes(
    spared_won: Sequence[bool], killed: int
) -> FalsePruneRate | None:
    """The false-prune rate from exempt runs: whether each beat its bar after all.

    Unbiased, as exempt runs are a random sample. The interval is Wilson's (1927). None:
    there was no exempt run.
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
    """Whether a changed line names something that shapes the schedule."""
    changed = difflib.ndiff(parent.splitlines(), source.splitlines())
    return any(
        line[:2] in ("+ ", "- ") and SCHEDULE_PATTERN.search(line) for line in changed
    )
