"""`autoresearch show`: one experiment in full. Also what `log --near` sorts by."""

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

MAX_LOG_CHARACTERS = 20_000


def find_row(ledger: Ledger, which: str) -> Row:
    """The experiment that a number, `champion`, `baseline` or `last` stands for.

    Raises NotReady if it has no verdict yet, LabError for any other word.
    """
    row: Row | None
    if which == "champion":
        row = load_champion_row(ledger)
    elif which == "baseline":
        row = load_baseline_row(ledger)
    elif which == "last":
        row = next(iter(ledger.load_last_rows(1)), None)
    elif which.isdigit():
        row = ledger.load_row(int(which))
    else:
        raise LabError(
            f"{which!r} is not an experiment. Next: autoresearch show N, or champion, "
            "baseline or last"
        )
    if row is None:
        raise NotReady(f"there is no verdict on {which} yet. Next: autoresearch log")
    return row


def explain_missing_verdict(lab: Lab, ledger: Ledger, number: int) -> NotReady:
    """The error for an experiment without a verdict: why, and what to type next."""
    if all(proposal.number != number for proposal in ledger.load_open_proposals()):
        return NotReady(f"there is no experiment {number}. Next: autoresearch log")
    if lab.find_lock_holder() is None:
        why, then = ": nothing is running, so it waits", "autoresearch run"
    elif lab.pause_path.exists():
        why, then = ": the run is paused, so it waits", "autoresearch resume"
    else:
        why, then = " yet", f"autoresearch show {number} --wait 100"
    return NotReady(f"no verdict on experiment {number}{why}. Next: {then}")


def diff_from_parent(ledger: Ledger, row: Row) -> str:
    """What an experiment changed in train.py; "" for a baseline."""
    return diff_sources(ledger, row.parent, row.blob) if row.parent else ""


def diff_sources(ledger: Ledger, parent: str, blob: str) -> str:
    """A unified diff of two sources, by their blobs."""
    before = ledger.load_source(parent).splitlines(keepends=True)
    after = ledger.load_source(blob).splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, "a/train.py", "b/train.py"))


def read_log(lab: Lab, row: Row) -> str:
    """The end of what its last run printed, without terminal escapes."""
    names = sorted(lab.log_folder.glob(f"{row.number}-*.log"))
    if not names:
        return ""
    text = names[-1].read_text(errors="replace")[-MAX_LOG_CHARACTERS:]
    return "\n".join(to_one_line(line) for line in text.splitlines())


def format_experiment(lab: Lab, ledger: Ledger, row: Row, metric: str) -> Iterable[str]:
    """Everything about one experiment, for people: verdict, scores, diffs and log."""
    reversions = {each.reverted_number: each for each in ledger.load_reversions()}
    yield format_verdict(row, reversions)
    if row.evidence == "claimed":
        yield "claimed   imported: not measured here, and its train.py is not here"
    if reversion := reversions.get(row.number):
        why = to_one_line(reversion.why)
        yield f"back      {reversion.restored_number} is champion again: {why}"
    yield from format_result(row, metric)
    if diff := diff_from_parent(ledger, row):
        yield ""
        yield from (strip_control_characters(line) for line in diff.splitlines())
    if (
        row.unproven_ancestors
        and row.against is not None
        and (champion := ledger.load_row(row.against))
    ):
        count = len(row.unproven_ancestors) + 1
        yield ""
        yield f"--- all {count} changes since experiment {row.against} ---"
        diff = diff_sources(ledger, champion.blob, row.blob)
        yield from (strip_control_characters(line) for line in diff.splitlines())
    if log := read_log(lab, row):
        yield ""
        yield "--- what the run printed (not trusted) ---"
        yield log


def format_result(row: Row, metric: str) -> Iterable[str]:
    """What an experiment's row holds, one fact a line, its name in front."""
    yield f"why       {to_one_line(row.why)}"
    if row.reason:
        yield f"idea      {to_one_line(row.reason)}"
    scores = " ".join(map(format_exact, row.values))
    none = "none: ended early" if row.kind == "ended early" else "none: it failed"
    yield f"{metric:<9} {scores or none}"
    against = "nothing: it is a baseline" if row.against is None else str(row.against)
    yield f"against   {against}"
    if row.unproven_ancestors:
        ancestors = ", ".join(map(str, row.unproven_ancestors))
        yield f"stands on {ancestors}: its score includes those changes"
    if row.runs:
        yield (
            f"runs      {row.runs}, {row.seconds:.1f} s trained, "
            f"{format_number(row.memory_gb, '.2f')} GB"
        )
    if row.facts:
        yield "resolved  " + ", ".join(f"{name} {value}" for name, value in row.facts)
    if row.health:
        facts = (f"{name} {value}" for name, value in row.health if value != "")
        yield "health    " + ", ".join(facts).replace("gpu_", "")
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.decided_at))
    yield f"decided   {at}, commit {(row.commit or 'none')[:10]}, series {row.series}"


def strip_control_characters(line: str) -> str:
    """A line of source without terminal escapes; tabs and spaces are kept."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in line)


def rank_discarded(rows: Iterable[Row], *, lower_is_better: bool) -> list[Row]:
    """Discarded experiments: unresolved ones first, each group by its gain."""
    discarded = [
        row
        for row in rows
        if row.status == "discard"
        and row.delta is not None
        and row.evidence == "measured"
    ]
    sign = 1 if lower_is_better else -1
    return sorted(
        discarded,
        key=lambda row: (row.decision != "unresolved", sign * (row.delta or 0)),
    )
