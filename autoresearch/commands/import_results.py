"""`autoresearch import`: add a foreign results.tsv to the ledger as claimed results.

Reads the five columns that tools of this kind share: commit, the metric, memory_gb,
status (keep, discard or crash) and description; further columns are ignored. Each row
becomes an experiment with the evidence `claimed`, in a series of the file's own.

Promises: a claim never becomes champion, is never shown to a policy or a proposer, and
is never in results.tsv; the same file is imported once; an unreadable row is skipped
and reported by its line number; the hash chain stays valid.

Not covered: the train.py behind a claim, which the file does not contain (a note takes
its place); `rebuild`, because claims are in the ledger only, never in git.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoresearch.errors import LabError
from autoresearch.experiment import Decision
from autoresearch.records import claims
from autoresearch.records.claims import ClaimedResult, ClaimedSeries
from autoresearch.records.ledger import Ledger
from autoresearch.text import to_one_line

MAX_FILE_BYTES = 4 << 20
MAX_TEXT_CHARACTERS = 200
MAX_SKIPPED_SHOWN = 20  # lines listed one by one on a terminal
FIRST_COLUMN, LAST_COLUMNS = "commit", ("memory_gb", "status", "description")
DECISION_BY_STATUS: dict[str, Decision] = {
    "keep": "keep",
    "discard": "discard",
    "crash": "failed",
}


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line that could not be read, and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class ForeignResults:
    """The contents of a foreign results.tsv."""

    name: str
    digest: str  # sha256 of its bytes
    metric: str
    claims: tuple[ClaimedResult, ...]
    skipped: tuple[SkippedLine, ...]

    @property
    def series(self) -> str:
        """The series of its experiments: they are compared with each other only."""
        return self.claimed_series.hash

    @property
    def claimed_series(self) -> ClaimedSeries:
        """What goes into the ledger."""
        return ClaimedSeries(self.name, self.digest, self.metric, self.claims)


def read_results_file(path: Path) -> ForeignResults:
    """Parse a foreign results.tsv. Raises LabError for any other file."""
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
        if len(body) > MAX_FILE_BYTES:
            raise LabError(f"{path} is larger than 4 MB. Next: split it")
        lines = body.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise LabError(f"{path} is not UTF-8 text. Next: save it as such") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    head = lines[0].rstrip("\r").split("\t")
    if len(head) < 5 or head[0] != FIRST_COLUMN or tuple(head[2:5]) != LAST_COLUMNS:
        raise LabError(
            f"{path} is not a results.tsv: its first line must be commit, the metric, "
            "memory_gb, status and description, separated by tabs"
        )
    parsed = list(parse_lines(lines[1:]))
    claimed = tuple(line for line in parsed if isinstance(line, ClaimedResult))
    skipped = tuple(line for line in parsed if isinstance(line, SkippedLine))
    if not claimed:
        first = f" (line {skipped[0].line}: {skipped[0].why})" if skipped else ""
        raise LabError(f"{path} has no readable row{first}")
    digest = hashlib.sha256(body).hexdigest()
    metric = to_one_line(head[1])[:MAX_TEXT_CHARACTERS]
    return ForeignResults(
        to_one_line(path.name)[:MAX_TEXT_CHARACTERS], digest, metric, claimed, skipped
    )


def parse_lines(lines: list[str]) -> Iterator[ClaimedResult | SkippedLine]:
    """Every line that is not empty. The first one is line 2 of the file."""
    for number, line in enumerate(lines, 2):
        cells = line.rstrip("\r").split("\t")
        if not line.strip():
            continue
        if len(cells) < 5:
            yield SkippedLine(number, f"{len(cells)} columns instead of 5")
            continue
        try:
            yield parse_claim(number, cells)
        except ValueError as error:
            yield SkippedLine(number, str(error))


def parse_claim(number: int, cells: list[str]) -> ClaimedResult:
    """Parse one line. Raises ValueError saying what is wrong with it."""
    commit, score, memory, status, title = (
        to_one_line(cell).strip() for cell in cells[:5]
    )
    if status not in DECISION_BY_STATUS:
        raise ValueError(
            f"status {status[:20]!r} is not one of {', '.join(DECISION_BY_STATUS)}"
        )
    value = None
    if status != "crash":
        value = parse_finite(score, "score")
        if value == 0:
            raise ValueError(f"a score of 0 with status {status}")
    gigabytes = parse_finite(memory or "0", "memory_gb")
    title = title[:MAX_TEXT_CHARACTERS] or "(no description)"
    return ClaimedResult(
        number, commit[:40], value, gigabytes, DECISION_BY_STATUS[status], title
    )


def parse_finite(cell: str, what: str) -> float:
    """Parse a finite number. Raises ValueError."""
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} {cell[:20]!r} is not a number")
    return number


def insert_claims(ledger: Ledger, file: ForeignResults) -> list[int]:
    """Write a file's claims into the ledger; returns the numbers of its experiments.

    The caller holds the lab's lock. Raises LabError if the file was imported before.
    """
    return claims.insert_claims(ledger, file.claimed_series)


def import_to_json(file: ForeignResults, numbers: list[int]) -> dict[str, Any]:
    """The contract of `import --json`."""
    return {
        "file": file.name,
        "sha256": file.digest,
        "series": file.series,
        "metric": file.metric,
        "experiments": numbers,
        "kept": sum(claim.decision == "keep" for claim in file.claims),
        "left_out": [{"line": line.line, "why": line.why} for line in file.skipped],
    }


def format_import(file: ForeignResults, numbers: list[int], metric: str) -> list[str]:
    """The same for people."""
    kept = sum(claim.decision == "keep" for claim in file.claims)
    lines = [
        f"{len(numbers)} claimed experiments ({kept} kept) in series {file.series}, "
        f"numbers {numbers[0]} to {numbers[-1]}"
    ]
    lines += [
        f"line {line.line} skipped: {line.why}"
        for line in file.skipped[:MAX_SKIPPED_SHOWN]
    ]
    if len(file.skipped) > MAX_SKIPPED_SHOWN:
        lines.append(f"... {len(file.skipped) - MAX_SKIPPED_SHOWN} more lines skipped")
    if file.metric != metric:
        lines.append(
            f"note: the file measures {file.metric!r}, this lab {metric!r}; this lab's "
            "direction (lower or higher is better) is used"
        )
    lines.append(
        "Claims are in the ledger only, not in git: after autoresearch rebuild, import "
        "the file again"
    )
    return lines
