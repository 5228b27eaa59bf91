"""What differs between two versions of train.py."""

import re
from collections.abc import Sequence

from autoresearch.lab import constants

ASSIGNMENT = re.compile(
    r"^([A-Z][A-Z0-9_]*)[ \t]*(?::[^=\n]+)?=[ \t]*(.+?)[ \t]*(?:#.*)?$"
)


def parse_spelling(spelling: str) -> float | None:
    """A constant's spelling as a number; None when it is none."""
    try:
        return constants.parse_number(spelling.rstrip(","))
    except (ValueError, OverflowError):
        return None


def parse_assignments(lines: Sequence[str]) -> dict[str, str] | None:
    """NAME -> spelling, where lines are all assignments to capital names; else None."""
    found = {}
    for line in lines:
        match = ASSIGNMENT.match(line)
        if match:
            found[match[1]] = match[2][:40]
        elif line.strip() and not line.lstrip().startswith("#"):
            return None
    return found


def trim_common_ends(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines between the common beginning and the common end of two texts."""
    head = common_prefix_length(before, after)
    head = before.rfind("\n", 0, head) + 1
    most = min(len(before), len(after)) - head
    tail = common_suffix_length(before, after, most)
    cut_at = before.find("\n", len(before) - tail) if tail else -1
    tail = len(before) - cut_at if cut_at >= 0 else 0
    return before[head : len(before) - tail].split("\n"), after[
        head : len(after) - tail
    ].split("\n")


def common_prefix_length(a: str, b: str) -> int:
    """How many characters two texts begin with in common, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        half = (low + high + 1) // 2
        if a[low:half] == b[low:half]:
            low = half
        else:
            high = half - 1
    return low


def common_suffix_length(a: str, b: str, most: int) -> int:
    """How many characters two texts end with in common, at most so many."""
    low, high = 0, most
    while low < high:
        half = (low + high + 1) // 2
        if a[len(a) - half : len(a) - low] == b[len(b) - half : len(b) - low]:
            low = half
        else:
            high = half - 1
    return low
