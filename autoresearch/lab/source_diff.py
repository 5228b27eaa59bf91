"""Differences between two versions of train.py."""

import re
from collections.abc import Sequence

from autoresearch.lab import constants

ASSIGNMENT = re.compile(
    r"^([A-Z][A-Z0-9_]*)[ \t]*(?::[^=\n]+)?=[ \t]*(.+?)[ \t]*(?:#.*)?$"
)


def parse_spelling(spelling: str) -> float | None:
    """Parse a constant's spelling as a number; None: it is not one."""
    try:
        return constants.parse_number(spelling.rstrip(","))
    except (ValueError, OverflowError):
        return None


def parse_assignments(lines: Sequence[str]) -> dict[str, str] | None:
    """Return NAME -> spelling if all lines assign to capital names; else None."""
    assignments = {}
    for line in lines:
        match = ASSIGNMENT.match(line)
        if match:
            assignments[match[1]] = match[2][:40]
        elif line.strip() and not line.lstrip().startswith("#"):
            return None
    return assignments


def trim_common_ends(before: str, after: str) -> tuple[list[str], list[str]]:
    """Return the lines between the common start and the common end of two texts."""
    head = common_prefix_length(before, after)
    head = before.rfind("\n", 0, head) + 1
    most = min(len(before), len(after)) - head
    tail = common_suffix_length(before, after, most)
    cut_at = before.find("\n", len(before) - tail) if tail else -1
    tail = len(before) - cut_at if cut_at >= 0 else 0
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    return old.split("\n"), new.split("\n")


def common_prefix_length(a: str, b: str) -> int:
    """Count the characters at the start that two texts share, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        half = (low + high + 1) // 2
        if a[low:half] == b[low:half]:
            low = half
        else:
            high = half - 1
    return low


def common_suffix_length(a: str, b: str, most: int) -> int:
    """Count the characters at the end that two texts share, at most `most`."""
    low, high = 0, most
    while low < high:
        half = (low + high + 1) // 2
        if a[len(a) - half : len(a) - low] == b[len(b) - half : len(b) - low]:
            low = half
        else:
            high = half - 1
    return low
