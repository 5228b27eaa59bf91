"""results.tsv: the ledger as people know it. A view; nothing ever reads it back.

Five columns that tools of this kind agree on come first, ours after them. What was
refused or repeated never ran, and stays in the ledger only.
"""

from collections.abc import Iterable
from pathlib import Path

from autoresearch.lab import write_whole
from autoresearch.ledger import IN_LEDGER_ONLY, Row
from autoresearch.notebook import one_line

OURS = ["experiment", "runs", "kind", "delta", "delta_low", "delta_high", "proposed_by"]
STATUS = {"keep": "keep", "discard": "discard", "failed": "crash"}


def header(metric: str) -> str:
    """The first line."""
    columns = ["commit", metric, "memory_gb", "status", "description", *OURS]
    return "\t".join(columns) + "\n"


def line(row: Row) -> str:
    """One experiment; a failure's metric is blank."""
    cells = [
        (row.commit or "")[:7],
        number(row.value, ".6f"),
        number(row.memory_gb, ".1f"),
        STATUS[row.decision],
        one_line(row.title),
        str(row.number),
        str(row.runs),
        row.kind or "",
        number(row.delta, "+.6f"),
        "",  # the bounds need a measured noise, which the greedy policy has not
        "",
        one_line(row.author),
    ]
    return "\t".join(cells) + "\n"


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)


def score(value: float | None) -> str:
    """A score for people: four decimals, or three digits where those would say 0."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 0.1 <= abs(value) < 1e6 else f"{value:.3g}"


def change(delta: float | None) -> str:
    """A difference of scores for people, always with its sign."""
    if delta is None:
        return ""
    return f"{delta:+.4f}" if abs(delta) >= 0.0001 else f"{delta:+.2g}"


def write(path: Path, metric: str, rows: Iterable[Row]) -> None:
    """Write the whole table anew."""
    write_whole(path, header(metric) + "".join(line(row) for row in shown(rows)))


def append(path: Path, row: Row) -> None:
    """Add the newest experiment. A line lost to a crash comes back with `write`."""
    if row.kind not in IN_LEDGER_ONLY:
        with path.open("ab") as file:
            file.write(line(row).encode())


def shown(rows: Iterable[Row]) -> Iterable[Row]:
    """Rows that ran."""
    return (row for row in rows if row.kind not in IN_LEDGER_ONLY)
