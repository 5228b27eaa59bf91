"""What `status`, `log` and `show` say: from the ledger to plain values and lines.

The values are the `--json` contract; the lines are for people. Reads only.
"""

import difflib
import time
from collections.abc import Iterable

from autoresearch.errors import LabError, NotReady
from autoresearch.experiment import Row
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger
from autoresearch.reporting.format import format_verdict
from autoresearch.reporting.status import load_baseline_row, load_champion_row
from autoresearch.text import format_exact, format_number, to_one_line

STALE_SECONDS = 20.0  # a note of what runs, with nobody writing it
MAX_LOG_CHARACTERS = 20_000


def find_row(ledger: Ledger, which: str) -> Row:
    """The experiment that `show` was asked for; NotYet, or LabError for no name."""
    found: Row | None
    if which == "champion":
        found = load_champion_row(ledger)
    elif which == "baseline":
        found = load_baseline_row(ledger)
    elif which == "last":
        found = next(iter(ledger.load_last_rows(1)), None)
    elif which.isdigit():
        found = ledger.load_row(int(which))
    else:
        raise LabError(
            f"{which!r} is no experiment. Next: autoresearch show N, or champion, "
            "baseline or last"
        )
    if found is None:
        raise NotReady(f"there is no verdict on {which} yet. Next: autoresearch log")
    return found


def explain_missing_verdict(lab: Lab, ledger: Ledger, number: int) -> NotReady:
    """Why there is no verdict on an experiment, and what to type."""
    if all(proposal.number != number for proposal in ledger.load_open_proposals()):
        return NotReady(f"there is no experiment {number}. Next: autoresearch log")
    if lab.find_lock_holder() is None:
        why, then = "; nothing runs now, so it waits", "autoresearch run"
    elif lab.pause_path.exists():
        why, then = "; the night is paused, so it waits", "autoresearch resume"
    else:
        why, then = " yet", f"autoresearch show {number} --wait 100"
    return NotReady(f"no verdict on experiment {number}{why}. Next: {then}")


def diff_from_parent(ledger: Ledger, row: Row) -> str:
    """What an experiment changed in train.py."""
    return diff_sources(ledger, row.parent, row.blob) if row.parent else ""


def diff_sources(ledger: Ledger, parent: str, blob: str) -> str:
    """What lies between two train.py."""
    before = ledger.load_source(parent).splitlines(keepends=True)
    after = ledger.load_source(blob).splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, "a/train.py", "b/train.py"))


def read_log(lab: Lab, row: Row) -> str:
    """What its last run printed, stripped of anything a terminal would obey."""
    names = sorted(lab.log_folder.glob(f"{row.number}-*.log"))
    if not names:
        return ""
    text = names[-1].read_text(errors="replace")[-MAX_LOG_CHARACTERS:]
    return "\n".join(to_one_line(line) for line in text.splitlines())


def format_experiment(lab: Lab, ledger: Ledger, row: Row, metric: str) -> Iterable[str]:
    """One experiment with diff, scores, verdict and log."""
    back = {one.reverted_number: one for one in ledger.load_reversions()}
    yield format_verdict(row, back)
    if row.evidence == "claimed":
        yield "claimed   by somebody else: not measured here, its train.py is not here"
    if taken := back.get(row.number):
        yield f"back      {taken.restored_number} reigns again: {to_one_line(taken.why)}"
    yield f"why       {to_one_line(row.why)}"
    if row.reason:
        yield f"idea      {to_one_line(row.reason)}"
    values = " ".join(map(format_exact, row.values))
    nothing = "none: it was ended early" if row.kind == "ended early" else ""
    yield f"{metric:<9} {values or nothing or 'none: it failed'}"
    against = "nothing, it is a baseline" if row.against is None else str(row.against)
    yield f"against   {against}"
    if row.unproven_ancestors:
        yield f"stands on {', '.join(map(str, row.unproven_ancestors))}: its score is of all of them"
    if row.runs:
        yield (
            f"runs      {row.runs}, {row.seconds:.1f} s trained, "
            f"{format_number(row.memory_gb, '.2f')} GB"
        )
    if row.facts:
        yield "resolved  " + ", ".join(f"{key} {value}" for key, value in row.facts)
    if row.health:
        words = (f"{key} {value}" for key, value in row.health if value != "")
        yield "health    " + ", ".join(words).replace("gpu_", "")
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.decided_at))
    yield f"decided   {at}, commit {(row.commit or 'none')[:10]}, series {row.series}"
    if changed := diff_from_parent(ledger, row):
        yield ""
        yield from (strip_control_characters(line) for line in changed.splitlines())
    if (
        row.unproven_ancestors
        and row.against is not None
        and (rival := ledger.load_row(row.against))
    ):
        yield ""
        yield f"--- all {len(row.unproven_ancestors) + 1} changes since experiment {row.against} ---"
        whole = diff_sources(ledger, rival.blob, row.blob)
        yield from (strip_control_characters(line) for line in whole.splitlines())
    if log := read_log(lab, row):
        yield ""
        yield "--- what the run printed (not trusted) ---"
        yield log


def strip_control_characters(line: str) -> str:
    """A line of source, without terminal escapes but with its indentation."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def rank_discarded(rows: Iterable[Row], *, lower_is_better: bool) -> list[Row]:
    """Discarded experiments: near misses first, then the others, each by its gain."""
    missed = [
        row
        for row in rows
        if row.status == "discard"
        and row.delta is not None
        and row.evidence == "measured"
    ]
    sign = 1 if lower_is_better else -1
    return sorted(
        missed, key=lambda row: (row.decision != "unresolved", sign * (row.delta or 0))
    )
