"""results.tsv: the ledger as a table. A view; nothing ever reads it back.

The five columns that tools of this kind agree on come first, ours after them. Proposals
that were refused or duplicates never ran and are left out, and so are imported claims.

`delta_low` and `delta_high` are a 95 % interval of the true difference, for an
experiment picked at random: for one picked for its good score the difference is smaller
(the report says by how much). `write_results` fills them in, because the noise of the
whole session is known there; `append_result` leaves them blank.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autoresearch.atomic_file import write_whole
from autoresearch.experiment import Noise, Row
from autoresearch.records.ledger import LEDGER_ONLY_KINDS
from autoresearch.stats import noise, quantiles
from autoresearch.text import format_exact, format_number, to_one_line

EXTRA_COLUMNS = [
    "experiment",
    "runs",
    "kind",
    "delta",
    "delta_low",
    "delta_high",
    "proposed_by",
]
STATUS_WORDS = {"keep": "keep", "discard": "discard", "failed": "crash"}


def format_header(metric: str) -> str:
    """The header line."""
    columns = ["commit", metric, "memory_gb", "status", "description", *EXTRA_COLUMNS]
    return "\t".join(columns) + "\n"


DeltaInterval = tuple[float, float]
MAX_ANCESTORS_LISTED = 4  # more are counted, not listed
CLOCK_RESOLUTION_SECONDS = 1.0  # a verdict's time is truncated to whole seconds


def format_row(row: Row, bounds: DeltaInterval | None = None) -> str:
    """One line; the metric of a failure and unknown bounds are blank."""
    low, high = bounds or (None, None)
    cells = [
        (row.commit or "")[:7],
        "" if row.value is None else format_exact(row.value),
        format_number(row.memory_gb, ".1f"),
        STATUS_WORDS[row.status],
        format_description(row),
        str(row.number),
        str(row.runs),
        row.kind or "",
        "" if row.delta is None else format_exact(row.delta, "+"),
        "" if low is None else format_exact(low, "+"),
        "" if high is None else format_exact(high, "+"),
        to_one_line(row.author),
    ]
    return "\t".join(cells) + "\n"


def format_description(row: Row) -> str:
    """The title, and the unproven experiments whose changes are in its score too."""
    return to_one_line(row.title) + format_ancestors(row.unproven_ancestors)


def format_ancestors(numbers: Sequence[int]) -> str:
    """` (on top of 1 and 3)`; "" for none."""
    words = [str(number) for number in numbers]
    if len(words) > MAX_ANCESTORS_LISTED:
        words = [f"{len(words)} others"]
    return f" (on top of {' and '.join(words)})" if words else ""


def write_results(path: Path, metric: str, rows: Iterable[Row]) -> None:
    """Write the whole table, replacing the file atomically."""
    rows = tuple(rows)
    intervals = compute_delta_intervals(rows)
    lines = (
        format_row(row, intervals.get(row.number)) for row in drop_ledger_only(rows)
    )
    write_whole(path, format_header(metric) + "".join(lines))


def append_result(path: Path, row: Row) -> None:
    """Append the newest experiment. `write_results` restores a line lost to a crash."""
    if row.kind not in LEDGER_ONLY_KINDS:
        with path.open("ab") as file:
            file.write(format_row(row).encode())


def drop_ledger_only(rows: Iterable[Row]) -> Iterable[Row]:
    """The rows of experiments that ran."""
    return (row for row in rows if row.kind not in LEDGER_ONLY_KINDS)


def compute_delta_intervals(rows: Sequence[Row]) -> Mapping[int, DeltaInterval]:
    """The 95 % interval of every delta, by experiment, where the noise is known.

    From the runs that both sides had at the time of the verdict.
    """
    by_series: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        by_series.setdefault(row.series, []).append(row.values)
    noises = {
        series: noise.estimate_pooled_noise(values)
        for series, values in by_series.items()
    }
    by_number = {row.number: row for row in rows}
    intervals = {}
    for row in rows:
        known = noises[row.series]
        if row.delta is None or row.against not in by_number or known is None:
            continue
        half = compute_half_width(known, row, by_number[row.against])
        intervals[row.number] = (row.delta - half, row.delta + half)
    return intervals


def compute_half_width(known: Noise, row: Row, rival: Row) -> float:
    """Half the width of the 95 % interval of a difference of two means."""
    until = row.decided_at + CLOCK_RESOLUTION_SECONDS
    counts = [max(1, sum(at <= until for at in side.when)) for side in (row, rival)]
    error = known.sd * math.sqrt(sum(1 / count for count in counts))
    return error * quantiles.t_quantile_from_normal(quantiles.NORMAL_95, known.degrees)


def format_decision(row: Row, *, taken_back: bool = False) -> str:
    """A verdict in one or two words, for every view. taken_back: it was reverted."""
    if row.evidence == "claimed":
        return "claimed"
    if row.kind == "ended early":
        return "ended"
    if row.decision == "keep" and row.against is None:
        return "baseline"
    if taken_back:
        return "taken back"
    return row.decision
