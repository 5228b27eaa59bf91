"""The progress plot of a night, as inline SVG.

Every experiment is a dot, the running best a step line, failures ticks at the bottom
edge: they have no value. Where the noise is measured, kept scores have a bar: the 95 %
interval of the mean of their runs. A champion that was taken back is no step of the
line and drawn hollow; near misses are drawn darker.

The axis fits the middle of the scores; what lies beyond is drawn at the edge as a
triangle and counted, not hidden. Not covered: zooming.
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
    known: Noise | None = None,
    back: Collection[int] = (),
) -> str:
    """The plot of one series; "" when nothing in it was measured.

    `back`: champions that were taken back. Without a known noise there are no bars.
    """
    mine = [row for row in rows if row.series == series]
    values = [row.value for row in mine if row.value is not None]
    if not values:
        return ""
    kept = [row.value for row in mine if row.decision == "keep"]
    low, high = compute_axis_limits(
        values, [value for value in kept if value is not None]
    )
    place = ChartScale(len(mine), low, high)
    reigned = [row if row.number not in back else None for row in mine]
    parts = [
        draw_grid(place),
        draw_best_line(reigned, place),
        draw_error_bars(mine, place, known),
    ]
    step = max(1, len(mine) // MAX_DOTS)
    for at, row in enumerate(mine):
        if row.decision == "keep" or at % step == 0:
            parts.append(draw_experiment(at, row, place, taken_back=row.number in back))
    parts.append(draw_labels(mine, place))
    beyond = sum(not low <= value <= high for value in values)
    words = f"{len(mine)} experiments; {metric}, "
    words += "lower is better" if lower_is_better else "higher is better"
    if known is not None and known.sd > 0:
        words += "; bars: 95 % of a kept mean"
    if beyond:
        words += f"; {beyond} beyond the scale, drawn as triangles"
    if step > 1:
        words += f"; one in {step} shown"
    parts.append(
        f"<text x={WIDTH // 2} y={HEIGHT - 6} text-anchor=middle>{escape(words)}</text>"
    )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='progress'>"
        + "".join(parts)
        + "</svg>"
    )


class ChartScale:
    """Where an experiment and a value are drawn."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.low, self.high = low, high
        self._step = (WIDTH - LEFT - RIGHT) / max(1, count - 1)

    def to_x(self, at: int) -> float:
        return LEFT + 6 + at * (self._step - 12 / max(1, (WIDTH / self._step)))

    def to_y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def compute_axis_limits(
    values: Sequence[float], kept: Sequence[float]
) -> tuple[float, float]:
    """An axis that shows every kept score and the middle four fifths of the others."""
    ordered = sorted(values)
    tenth = len(ordered) // 10
    middle = ordered[tenth : len(ordered) - tenth] or ordered
    low, high = min([*kept, middle[0]]), max([*kept, middle[-1]])
    if kept:  # one wild discard must not flatten the staircase
        reach = 1.5 * (max(kept) - min(kept)) or abs(high) * 0.01 or 1.0
        low = max(low, min(kept) - reach)
        high = min(high, max(kept) + reach)
    margin = 0.06 * (high - low) or abs(high) * 0.01 or 1.0
    return low - margin, high + margin


def draw_grid(place: ChartScale) -> str:
    """Horizontal lines with their values."""
    parts = []
    for tick in range(TICK_COUNT):
        value = place.low + (place.high - place.low) * (tick + 0.5) / TICK_COUNT
        y = place.to_y(value)
        parts.append(
            f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} />"
            f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{format_score(value)}</text>"
        )
    return "".join(parts)


def draw_error_bars(rows: Sequence[Row], place: ChartScale, known: Noise | None) -> str:
    """How far the true score of what was kept may be from its dot."""
    parts = []
    for at, row in enumerate(rows if known is not None and known.sd > 0 else ()):
        if known is None or row.decision != "keep" or row.value is None:
            continue
        half = (
            quantiles.t_quantile_from_normal(quantiles.NORMAL_95, known.degrees)
            * known.sd
        )
        half /= math.sqrt(max(1, row.runs))
        top, floor = place.to_y(place.high), place.to_y(place.low)
        ends = [place.to_y(row.value + side * half) for side in (-1, 1)]
        low, high = (min(floor, max(top, end)) for end in ends)
        x = place.to_x(at)
        parts.append(
            f"<line class=bar x1={x:.1f} x2={x:.1f} y1={low:.1f} y2={high:.1f} />"
        )
    return "".join(parts)


def draw_best_line(rows: Sequence[Row | None], place: ChartScale) -> str:
    """The champion's score over the night, as steps."""
    points: list[str] = []
    y = 0.0
    for at, row in enumerate(rows):
        if row is not None and row.decision == "keep" and row.value is not None:
            if points:
                points.append(f"{place.to_x(at):.1f},{y:.1f}")
            y = place.to_y(row.value)
            points.append(f"{place.to_x(at):.1f},{y:.1f}")
    points.append(f"{place.to_x(len(rows) - 1):.1f},{y:.1f}")
    return f"<polyline class=best points='{' '.join(points)}' />"


def draw_experiment(
    at: int, row: Row, place: ChartScale, *, taken_back: bool = False
) -> str:
    """One experiment; hovering says what it was."""
    x, floor = place.to_x(at), HEIGHT - BOTTOM
    said = format_decision(row, taken_back=taken_back)
    words = f"{row.number} {row.kind or said} {format_score(row.value)} "
    words += f"{format_delta(row.delta)} {to_one_line(row.title)[:80]}{format_ancestors(row.unproven_ancestors)}"
    tip = f"<title>{escape(words)}</title>"
    if row.value is None:
        return (
            f"<line class=failed x1={x:.1f} x2={x:.1f} y1={floor + 2} y2={floor + 10}>"
            f"{tip}</line>"
        )
    if not place.low <= row.value <= place.high:
        up = row.value > place.high
        y = TOP if up else floor
        nose = y - 5 if up else y + 5
        corners = f"{x - 4:.1f},{y} {x + 4:.1f},{y} {x:.1f},{nose}"
        return f"<polygon class=faraway points='{corners}'>{tip}</polygon>"
    size = 5 if row.decision == "keep" else 3
    kind = {"taken back": "back", "unresolved": "near"}.get(said, row.status)
    return (
        f"<circle class={kind} cx={x:.1f} cy={place.to_y(row.value):.1f} r={size}>"
        f"{tip}</circle>"
    )


def draw_labels(rows: Sequence[Row], place: ChartScale) -> str:
    """Names of the largest kept gains, where there is room."""
    kept = [(at, r) for at, r in enumerate(rows) if r.decision == "keep" and r.parent]
    kept.sort(key=lambda pair: abs(pair[1].delta or 0.0), reverse=True)
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for at, row in kept:
        assert row.value is not None
        x, y = place.to_x(at), place.to_y(row.value)
        near = any(abs(x - a) < 190 and abs(y - b) < 16 for a, b in taken)
        if near or len(parts) >= MAX_LABELS:
            continue
        taken.append((x, y))
        words = to_one_line(row.title)
        words = (
            words
            if len(words) <= MAX_LABEL_CHARACTERS
            else words[: MAX_LABEL_CHARACTERS - 1] + "…"
        )
        side = "end" if x > WIDTH - 220 else "start"
        shift = -9 if side == "end" else 9
        parts.append(
            f"<text class=label x={x + shift:.1f} y={y - 7:.1f} text-anchor={side}>"
            f"{escape(words)}</text>"
        )
    return "".join(parts)
