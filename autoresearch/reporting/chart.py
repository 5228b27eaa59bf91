"""The progress chart of a series, as inline SVG.

Every experiment is a dot and the champion's score a step line. Failures have no value:
they are ticks at the bottom edge. Where the noise is known, kept scores have a bar: the
95 % interval of the mean of their runs. A reverted champion is a hollow dot and no step
of the line; near misses are darker.

The axis fits the middle of the scores. Scores beyond it are drawn at the edge as
triangles and counted in the caption.

Not covered: zooming.
"""

import math
from collections.abc import Collection, Sequence
from html import escape

from autoresearch.experiment import Noise, Row
from autoresearch.records.results_tsv import format_ancestors, format_decision
from autoresearch.stats import quantiles
from autoresearch.text import format_delta, format_score, to_one_line

WIDTH, HEIGHT = 1000, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 18, 46
MAX_DOTS = 3000
MAX_LABELS = 9
MAX_LABEL_CHARACTERS = 26
TICK_COUNT = 5


def draw_progress_chart(
    rows: Sequence[Row],
    series: str,
    metric: str,
    *,
    lower_is_better: bool,
    noise: Noise | None = None,
    reverted: Collection[int] = (),
) -> str:
    """The chart of one series as an <svg> element; "" if nothing in it has a score.

    `noise`: None draws no error bars. `reverted`: numbers of reverted champions.
    """
    rows = [row for row in rows if row.series == series]
    values = [row.value for row in rows if row.value is not None]
    if not values:
        return ""
    kept = [row.value for row in rows if row.decision == "keep"]
    low, high = compute_axis_limits(
        values, [value for value in kept if value is not None]
    )
    scale = ChartScale(len(rows), low, high)
    confirmed = [row if row.number not in reverted else None for row in rows]
    parts = [
        draw_grid(scale),
        draw_best_line(confirmed, scale),
        draw_error_bars(rows, scale, noise),
    ]
    step = max(1, len(rows) // MAX_DOTS)
    for index, row in enumerate(rows):
        if row.decision == "keep" or index % step == 0:
            is_reverted = row.number in reverted
            parts.append(draw_experiment(index, row, scale, is_reverted=is_reverted))
    parts.append(draw_labels(rows, scale))
    direction = "lower is better" if lower_is_better else "higher is better"
    caption = [f"{len(rows)} experiments", f"{metric}, {direction}"]
    if noise is not None and noise.sd > 0:
        caption.append("bars: 95 % interval of a kept mean")
    if beyond := sum(not low <= value <= high for value in values):
        caption.append(f"{beyond} beyond the scale, drawn as triangles")
    if step > 1:
        caption.append(f"one dot in {step} shown")
    parts.append(
        f"<text x={WIDTH // 2} y={HEIGHT - 6} text-anchor=middle>"
        f"{escape('; '.join(caption))}</text>"
    )
    head = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='progress'>"
    return f"{head}{''.join(parts)}</svg>"


class ChartScale:
    """Maps an experiment's index and a value to coordinates."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.low, self.high = low, high
        self._step = (WIDTH - LEFT - RIGHT) / max(1, count - 1)

    def to_x(self, index: int) -> float:
        return LEFT + 6 + index * (self._step - 12 / max(1, (WIDTH / self._step)))

    def to_y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def compute_axis_limits(
    values: Sequence[float], kept: Sequence[float]
) -> tuple[float, float]:
    """(low, high) that show every kept score and the middle 80 % of the others."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    middle = ordered[tenth : len(ordered) - tenth] or ordered
    low, high = min([*kept, middle[0]]), max([*kept, middle[-1]])
    if kept:  # an outlier among the discards must not flatten the line
        reach = 1.5 * (max(kept) - min(kept)) or abs(high) * 0.01 or 1.0
        low = max(low, min(kept) - reach)
        high = min(high, max(kept) + reach)
    margin = 0.06 * (high - low) or abs(high) * 0.01 or 1.0
    return low - margin, high + margin


def draw_grid(scale: ChartScale) -> str:
    """Horizontal lines with their values."""
    parts = []
    for tick in range(TICK_COUNT):
        value = scale.low + (scale.high - scale.low) * (tick + 0.5) / TICK_COUNT
        y = scale.to_y(value)
        label = format_score(value)
        parts.append(
            f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} />"
            f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{label}</text>"
        )
    return "".join(parts)


def draw_error_bars(rows: Sequence[Row], scale: ChartScale, noise: Noise | None) -> str:
    """The 95 % t intervals of kept means, cut to the axis."""
    if noise is None or noise.sd == 0:
        return ""
    t = quantiles.t_quantile_from_normal(quantiles.NORMAL_95, noise.degrees)
    top, floor = scale.to_y(scale.high), scale.to_y(scale.low)
    parts = []
    for index, row in enumerate(rows):
        if row.decision != "keep" or row.value is None:
            continue
        half = t * noise.sd / math.sqrt(max(1, row.runs))
        ends = [scale.to_y(row.value + side * half) for side in (-1, 1)]
        low, high = (min(floor, max(top, end)) for end in ends)
        x = scale.to_x(index)
        parts.append(
            f"<line class=bar x1={x:.1f} x2={x:.1f} y1={low:.1f} y2={high:.1f} />"
        )
    return "".join(parts)


def draw_best_line(rows: Sequence[Row | None], scale: ChartScale) -> str:
    """The champion's score over the series, as steps. None: a row that is no step."""
    points: list[str] = []
    y = 0.0
    for index, row in enumerate(rows):
        if row is not None and row.decision == "keep" and row.value is not None:
            if points:
                points.append(f"{scale.to_x(index):.1f},{y:.1f}")
            y = scale.to_y(row.value)
            points.append(f"{scale.to_x(index):.1f},{y:.1f}")
    points.append(f"{scale.to_x(len(rows) - 1):.1f},{y:.1f}")
    return f"<polyline class=best points='{' '.join(points)}' />"


def draw_experiment(
    index: int, row: Row, scale: ChartScale, *, is_reverted: bool = False
) -> str:
    """One experiment, with a tooltip that describes it."""
    x, floor = scale.to_x(index), HEIGHT - BOTTOM
    verdict = format_decision(row, taken_back=is_reverted)
    title = to_one_line(row.title)[:80] + format_ancestors(row.unproven_ancestors)
    tooltip = f"{row.number} {row.kind or verdict} {format_score(row.value)} "
    tooltip += f"{format_delta(row.delta)} {title}"
    tip = f"<title>{escape(tooltip)}</title>"
    if row.value is None:
        return (
            f"<line class=failed x1={x:.1f} x2={x:.1f} y1={floor + 2} y2={floor + 10}>"
            f"{tip}</line>"
        )
    if not scale.low <= row.value <= scale.high:
        is_above = row.value > scale.high
        y = TOP if is_above else floor
        tip_y = y - 5 if is_above else y + 5
        corners = f"{x - 4:.1f},{y} {x + 4:.1f},{y} {x:.1f},{tip_y}"
        return f"<polygon class=faraway points='{corners}'>{tip}</polygon>"
    size = 5 if row.decision == "keep" else 3
    kind = {"taken back": "back", "unresolved": "near"}.get(verdict, row.status)
    return (
        f"<circle class={kind} cx={x:.1f} cy={scale.to_y(row.value):.1f} r={size}>"
        f"{tip}</circle>"
    )


def draw_labels(rows: Sequence[Row], scale: ChartScale) -> str:
    """Titles of the largest kept gains, where there is room."""
    kept = [(i, row) for i, row in enumerate(rows) if row.decision == "keep"]
    kept = [(index, row) for index, row in kept if row.parent]  # without baselines
    kept.sort(key=lambda pair: abs(pair[1].delta or 0.0), reverse=True)
    parts: list[str] = []
    used: list[tuple[float, float]] = []
    for index, row in kept:
        assert row.value is not None
        x, y = scale.to_x(index), scale.to_y(row.value)
        overlaps = any(abs(x - a) < 190 and abs(y - b) < 16 for a, b in used)
        if overlaps or len(parts) >= MAX_LABELS:
            continue
        used.append((x, y))
        title = to_one_line(row.title)
        if len(title) > MAX_LABEL_CHARACTERS:
            title = title[: MAX_LABEL_CHARACTERS - 1] + "…"
        side = "end" if x > WIDTH - 220 else "start"
        shift = -9 if side == "end" else 9
        parts.append(
            f"<text class=label x={x + shift:.1f} y={y - 7:.1f} text-anchor={side}>"
            f"{escape(title)}</text>"
        )
    return "".join(parts)
