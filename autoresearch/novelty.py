"""Near-duplicates: a proposal that differs from an earlier one by next to nothing.

Compared with every earlier experiment of the series on the same train.py, whoever
proposed it: the same constants, each within 2 % of what was tried; or the same new
lines of code but for layout and comments. Exact repeats are the ledger's (`same_code`).
Not covered: the same idea in other words; and an idea tried on an older champion, or in
another series, which may be worth it now.
"""

import re
from collections.abc import Sequence

from autoresearch import context
from autoresearch.ledger import Ledger

CLOSE = 0.02  # of the larger of two values
COMMENT = re.compile(r"\s+#.*$|^\s*#.*$")


def near_twin(ledger: Ledger, source: str, parent: str) -> str:
    """What it nearly repeats, in a few words; "" when it is new."""
    before = ledger.source(parent)
    old, new = context.middle(before, source)
    olds, news = context.assigned(old), context.assigned(new)
    moved = changed(olds, news)
    added = bare(new)
    for row in reversed(ledger.rows()):
        if row.parent != parent or row.kind in ("refused", "duplicate"):
            continue
        if ledger.series and row.series != ledger.series:
            continue  # under other terms it may be worth it
        was, now = context.middle(before, ledger.source(row.blob))
        if moved:
            theirs = changed(context.assigned(was), context.assigned(now))
            same = theirs is not None and close(moved, theirs)
        else:
            same = bool(added) and added == bare(now) and bare(old) == bare(was)
        if same:
            return f"next to nothing apart from experiment {row.number}"
    return ""


def changed(
    olds: dict[str, str] | None, news: dict[str, str] | None
) -> dict[str, str] | None:
    """The constants that differ; None when something else does, or nothing."""
    if olds is None or news is None or olds.keys() != news.keys():
        return None
    return {name: value for name, value in news.items() if olds[name] != value} or None


def close(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Whether two changes set the same constants to nearly the same values."""
    return ours.keys() == theirs.keys() and all(
        alike(ours[name], theirs[name]) for name in ours
    )


def alike(one: str, other: str) -> bool:
    """Whether two spellings mean nearly the same number, or the same word."""
    a, b = context.as_number(one), context.as_number(other)
    if a is None or b is None:
        return one == other
    if a.is_integer() and b.is_integer() and max(abs(a), abs(b)) < 100:
        return a == b  # 49 and 50 layers are two models
    if 0.5 < a < 1 and 0.5 < b < 1:
        a, b = 1 - a, 1 - b  # betas: what counts is the distance to one
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))


def bare(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines of code without comments and layout."""
    plain = ("".join(COMMENT.sub("", line).split()) for line in lines)
    return tuple(line for line in plain if line)
