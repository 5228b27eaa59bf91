"""How verdicts, counts and durations are written."""

from collections.abc import Collection, Mapping
from typing import Any

from autoresearch import text
from autoresearch.experiment import Row
from autoresearch.records import results_tsv
from autoresearch.records.ledger import Ledger
from autoresearch.text import format_delta, to_one_line

MAX_REASON_CHARACTERS = 120  # of why an experiment failed, on its one line
DECIMAL_BELOW_SECONDS = 60.0  # below this, seconds are shown with a decimal


def format_counts(counts: Mapping[str, int]) -> str:
    """`Ledger.count_experiments` for people: experiments, runs and their verdicts."""
    verdicts = [
        f"{counts['kept']} kept",
        pluralize(counts["baselines"], "baseline"),
        *([f"{counts['taken_back']} taken back"] if counts["taken_back"] else []),
        f"{counts['discarded']} discarded",
        *([f"{counts['unresolved']} unresolved"] if counts["unresolved"] else []),
        *([f"{counts['ended_early']} ended early"] if counts["ended_early"] else []),
        f"{counts['failed']} failed",
    ]
    total = f"{counts['experiments']} experiments in {counts['runs']} runs"
    return f"{total}: {', '.join(verdicts)}"


def pluralize(count: int, noun: str) -> str:
    """`1 idea`, `2 ideas`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def row_to_json(row: Row, reverted: Collection[int] = ()) -> dict[str, Any]:
    """One experiment in the form of `--json`. `reverted`: numbers of champions."""
    return {
        "experiment": row.number,
        "decision": row.status,
        "verdict": results_tsv.format_decision(row, taken_back=row.number in reverted),
        "why": to_one_line(row.why),
        "kind": row.kind,
        "value": row.value,
        "delta": row.delta,
        "against": row.against,
        "runs": row.runs,
        "values": list(row.values),
        "title": to_one_line(row.title),
        "on_top_of": list(row.unproven_ancestors),
        "reason": row.reason,
        "proposed_by": to_one_line(row.author),
        "commit": row.commit,
        "ran": row.blob,
        "program": row.program,
        "series": row.series,
        "seconds": row.seconds,
        "memory_gb": row.memory_gb,
        "facts": dict(row.facts),
        "health": dict(row.health),
        "evidence": row.evidence,
        "decided_at": row.decided_at,
    }


def format_verdict(row: Row, reverted: Collection[int] = ()) -> str:
    """One experiment on one line of the terminal. `reverted`: numbers of champions."""
    verdict = results_tsv.format_decision(row, taken_back=row.number in reverted)
    score = text.format_score(row.value) or (row.kind or "")
    if row.runs > 1:
        score += f" ({row.runs} runs)"
    delta = format_delta(row.delta)
    title = results_tsv.format_description(row)
    if row.evidence == "claimed":
        title = f"{row.status}: {title}"
    elif row.decision == "failed":
        reason = to_one_line(row.why.partition(": ")[2])[:MAX_REASON_CHARACTERS]
        title = f"{title} ({reason})"
    author = to_one_line(row.author)
    return f"{row.number:>4} {verdict:<10} {score:<16} {delta:>8}  {author:<10} {title}"


def load_reverted_champions(ledger: Ledger) -> frozenset[int]:
    """The experiments that were champion and later turned out worse."""
    return frozenset(each.reverted_number for each in ledger.load_reversions())


def load_log_rows(ledger: Ledger) -> list[Row]:
    """Every experiment for `log`: imported claims first, then measured ones."""
    return [*ledger.load_claimed_rows(), *ledger.load_rows()]


def format_rate(per_second: float) -> str:
    """`308k`, `1.20M`."""
    if per_second >= 1e6:
        return f"{per_second / 1e6:.2f}M"
    return f"{per_second / 1e3:.0f}k" if per_second >= 1e3 else f"{per_second:.0f}"


def format_duration(seconds: float) -> str:
    """`0:42`, `12:05`, `7:31:00`."""
    whole = int(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def format_seconds(seconds: float) -> str:
    """`4.2 s`, `12:05`, `7:31:00`."""
    return (
        f"{seconds:.1f} s"
        if seconds < DECIMAL_BELOW_SECONDS
        else format_duration(seconds)
    )
