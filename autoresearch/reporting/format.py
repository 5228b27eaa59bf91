"""How verdicts, counts and durations are written."""

from collections.abc import Collection, Mapping
from typing import Any

from autoresearch import text
from autoresearch.experiment import Row
from autoresearch.records import results_tsv
from autoresearch.records.ledger import Ledger
from autoresearch.text import format_delta, to_one_line

MAX_REASON_CHARACTERS = 120  # letters of why something failed, where it has a line only
DECIMAL_BELOW_SECONDS = 60.0  # below this, seconds are shown with a decimal


def format_counts(found: Mapping[str, int]) -> str:
    """`Ledger.counts` for people: experiments and runs, and what became of them."""
    words = [
        f"{found['kept']} kept",
        f"{found['baselines']} to begin with",
        *([f"{found['taken_back']} taken back"] if found["taken_back"] else []),
        f"{found['discarded']} discarded",
        *([f"{found['unresolved']} unresolved"] if found["unresolved"] else []),
        *([f"{found['ended_early']} ended early"] if found["ended_early"] else []),
        f"{found['failed']} failed",
    ]
    made = f"{found['experiments']} experiments in {found['runs']} runs"
    return f"{made}: {', '.join(words)}"


def row_to_json(row: Row, back: Collection[int] = ()) -> dict[str, Any]:
    """One experiment, as `--json` shows it. `back`: who was taken back."""
    return {
        "experiment": row.number,
        "decision": row.status,
        "verdict": results_tsv.format_decision(row, taken_back=row.number in back),
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


def format_verdict(row: Row, back: Collection[int] = ()) -> str:
    """One experiment on one line of the terminal. `back`: who was taken back."""
    word = results_tsv.format_decision(row, taken_back=row.number in back)
    score = text.format_score(row.value) or (row.kind or "")
    if row.runs > 1:
        score += f" ({row.runs} runs)"
    delta = format_delta(row.delta)
    title = results_tsv.format_description(row)
    if row.evidence == "claimed":
        title = f"{row.status}: {title}"
    elif row.decision == "failed":
        title = f"{title} ({to_one_line(row.why.partition(': ')[2])[:MAX_REASON_CHARACTERS]})"
    who = to_one_line(row.author)
    return f"{row.number:>4} {word:<10} {score:<16} {delta:>8}  {who:<10} {title}"


def load_reverted_champions(ledger: Ledger) -> frozenset[int]:
    """Champions that turned out worse, by experiment."""
    return frozenset(back.reverted_number for back in ledger.load_reversions())


def load_log_rows(ledger: Ledger) -> list[Row]:
    """Every experiment for `log`: what others claim first, then what was measured."""
    return [*ledger.load_claimed_rows(), *ledger.load_rows()]


def format_rate(per_second: float) -> str:
    """308k, 1.2M."""
    if per_second >= 1e6:
        return f"{per_second / 1e6:.2f}M"
    return f"{per_second / 1e3:.0f}k" if per_second >= 1e3 else f"{per_second:.0f}"


def format_duration(seconds: float) -> str:
    """0:42, 12:05, 7:31:00."""
    whole = int(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def format_seconds(seconds: float) -> str:
    """4.2 s, 12:05, 7:31:00."""
    return (
        f"{seconds:.1f} s"
        if seconds < DECIMAL_BELOW_SECONDS
        else format_duration(seconds)
    )
