"""`autoresearch import`: a foreign results.tsv as experiments that somebody claims.

The five columns that tools of this kind agree on: commit, the metric, memory_gb, status
(keep, discard or crash), description; further ones are passed over. Each row becomes an
experiment with the evidence `claimed`, in a series of the file's own.

Promises: a claim is never champion, never seen by a policy or a proposer, never in
results.tsv; the same file is imported once; a row that cannot be read is left out and
named by its line; the chain of rows stays whole.

Not covered: the train.py behind a claim, which the file has not (a note stands in its
place); `rebuild`, because claims are in the ledger only and never in git.
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
MAX_SKIPPED_SHOWN = 20  # lines named one by one on a terminal
FIRST_COLUMN, LAST_COLUMNS = "commit", ("memory_gb", "status", "description")
DECISION_BY_STATUS: dict[str, Decision] = {
    "keep": "keep",
    "discard": "discard",
    "crash": "failed",
}


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line that was left out, and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class ForeignResults:
    """A foreign results.tsv, read."""

    name: str
    digest: str  # sha256 of its bytes
    metric: str
    claims: tuple[ClaimedResult, ...]
    skipped: tuple[SkippedLine, ...]

    @property
    def series(self) -> str:
        """What its experiments are compared within, and nothing else."""
        return self.claimed_series.hash

    @property
    def claimed_series(self) -> ClaimedSeries:
        """What goes into the ledger."""
        return ClaimedSeries(self.name, self.digest, self.metric, self.claims)


def read_results_file(path: Path) -> ForeignResults:
    """A file -> claims, or LabError when it is no such file."""
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
            f"{path} is no results.tsv: its first line has to begin with commit, the "
            "metric, memory_gb, status, description, with tabs between"
        )
    found = list(parse_lines(lines[1:]))
    read = tuple(line for line in found if isinstance(line, ClaimedResult))
    odd = tuple(line for line in found if isinstance(line, SkippedLine))
    if not read:
        first = f" (line {odd[0].line}: {odd[0].why})" if odd else ""
        raise LabError(f"{path} has no row that can be read{first}")
    digest = hashlib.sha256(body).hexdigest()
    metric = to_one_line(head[1])[:MAX_TEXT_CHARACTERS]
    return ForeignResults(
        to_one_line(path.name)[:MAX_TEXT_CHARACTERS], digest, metric, read, odd
    )


def parse_lines(lines: list[str]) -> Iterator[ClaimedResult | SkippedLine]:
    """Every line that says something; the header was line 1."""
    for number, line in enumerate(lines, 2):
        cells = line.rstrip("\r").split("\t")
        if not line.strip():
            continue
        if len(cells) < 5:
            yield SkippedLine(number, f"{len(cells)} columns, not 5")
            continue
        try:
            yield parse_claim(number, cells)
        except ValueError as error:
            yield SkippedLine(number, str(error))


def parse_claim(number: int, cells: list[str]) -> ClaimedResult:
    """One line, or ValueError."""
    commit, score, memory, status, title = (
        to_one_line(cell).strip() for cell in cells[:5]
    )
    if status not in DECISION_BY_STATUS:
        raise ValueError(
            f"status {status[:20]!r} is none of {', '.join(DECISION_BY_STATUS)}"
        )
    value = None
    if status != "crash":
        value = parse_finite(score, "score")
        if value == 0:
            raise ValueError(f"a score of 0, and yet {status}")
    gigabytes = parse_finite(memory or "0", "memory_gb")
    words = title[:MAX_TEXT_CHARACTERS] or "(no description)"
    return ClaimedResult(
        number, commit[:40], value, gigabytes, DECISION_BY_STATUS[status], words
    )


def parse_finite(cell: str, what: str) -> float:
    """A finite number, or ValueError."""
    try:
        found = float(cell)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{what} {cell[:20]!r} is no number")
    return found


def insert_claims(ledger: Ledger, file: ForeignResults) -> list[int]:
    """File -> ledger; the numbers its experiments got. LabError: it is there already.

    Whoever calls this holds the lab's lock, as there is one writer of verdicts.
    """
    return claims.insert_claims(ledger, file.claimed_series)


def import_to_json(file: ForeignResults, numbers: list[int]) -> dict[str, Any]:
    """The `--json` contract of `import`."""
    return {
        "file": file.name,
        "sha256": file.digest,
        "series": file.series,
        "metric": file.metric,
        "experiments": numbers,
        "kept": sum(claim.decision == "keep" for claim in file.claims),
        "left_out": [{"line": odd.line, "why": odd.why} for odd in file.skipped],
    }


def format_import(file: ForeignResults, numbers: list[int], metric: str) -> list[str]:
    """The same for people."""
    kept = sum(claim.decision == "keep" for claim in file.claims)
    said = [
        f"{len(numbers)} claimed experiments ({kept} kept) in series {file.series}, "
        f"numbers {numbers[0]} to {numbers[-1]}"
    ]
    said += [
        f"line {odd.line} left out: {odd.why}"
        for odd in file.skipped[:MAX_SKIPPED_SHOWN]
    ]
    if len(file.skipped) > MAX_SKIPPED_SHOWN:
        said.append(f"... {len(file.skipped) - MAX_SKIPPED_SHOWN} more lines left out")
    if file.metric != metric:
        said.append(
            f"note: they measure {file.metric!r}, this lab {metric!r}; which direction "
            "is better is taken from this lab"
        )
    said.append(
        "They are in the ledger only, not in git: after autoresearch rebuild, import "
        "the file again"
    )
    return said
