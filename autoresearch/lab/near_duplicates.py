"""Near-duplicates: proposals that hardly differ from an earlier one.

Compared with every earlier experiment of the series on the same train.py, by any
proposer: the same constants, each within 2 % of what was tried; or the same new lines
of code except for layout and comments. Exact repeats are found in the ledger. Not
covered: the same idea in different code; and an idea tried on an older champion, or in
another series, which may be worth trying now.
"""

import re
from collections.abc import Iterable, Sequence

from autoresearch.lab import source_diff

RELATIVE_TOLERANCE = 0.02  # of the larger of two values
COMMENT = re.compile(r"\s+#.*$|^\s*#.*$")


def find_near_duplicate(
    source: str, parent: str, siblings: Iterable[tuple[int, str]]
) -> int | None:
    """Find the first of `siblings` (number, train.py) that `source` nearly repeats.

    All are changes of the train.py `parent`. None: it is new.
    """
    old, new = source_diff.trim_common_ends(parent, source)
    olds, news = source_diff.parse_assignments(old), source_diff.parse_assignments(new)
    moved = changed_constants(olds, news)
    added = strip_comments(new)
    for number, theirs in siblings:
        was, now = source_diff.trim_common_ends(parent, theirs)
        if moved:
            constants = changed_constants(
                source_diff.parse_assignments(was), source_diff.parse_assignments(now)
            )
            same = constants is not None and are_nearly_equal(moved, constants)
        else:
            same = (
                bool(added)
                and added == strip_comments(now)
                and strip_comments(old) == strip_comments(was)
            )
        if same:
            return number
    return None


def changed_constants(
    olds: dict[str, str] | None, news: dict[str, str] | None
) -> dict[str, str] | None:
    """Return the constants that differ; None if other code differs, or nothing."""
    if olds is None or news is None or olds.keys() != news.keys():
        return None
    return {name: value for name, value in news.items() if olds[name] != value} or None


def are_nearly_equal(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Whether two changes set the same constants to nearly the same values."""
    return ours.keys() == theirs.keys() and all(
        is_nearly_equal(ours[name], theirs[name]) for name in ours
    )


def is_nearly_equal(one: str, other: str) -> bool:
    """Whether two spellings are nearly the same number, or the same word."""
    a, b = source_diff.parse_spelling(one), source_diff.parse_spelling(other)
    if a is None or b is None:
        return one == other
    if a.is_integer() and b.is_integer() and max(abs(a), abs(b)) < 100:
        return a == b  # 49 and 50 layers are different models
    if 0.5 < a < 1 and 0.5 < b < 1:
        a, b = 1 - a, 1 - b  # betas: the distance to 1 is compared
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def strip_comments(lines: Sequence[str]) -> tuple[str, ...]:
    """Remove comments and layout from lines of code."""
    plain = ("".join(COMMENT.sub("", line).split()) for line in lines)
    return tuple(line for line in plain if line)
