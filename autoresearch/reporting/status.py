"""`autoresearch status`: what runs now, the champion, the counts."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autoresearch import text
from autoresearch.errors import LabError
from autoresearch.experiment import Row
from autoresearch.lab import program
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import Program
from autoresearch.records import queries, results_tsv
from autoresearch.records.ledger import Ledger
from autoresearch.reporting import format
from autoresearch.reporting.format import (
    format_rate,
    format_seconds,
    load_reverted_champions,
    row_to_json,
)
from autoresearch.text import format_delta, to_one_line

MIN_SHARE_FOR_ESTIMATE = 0.05  # of a run, from which on its pace says when it ends


def read_live_status(lab: Lab) -> dict[str, Any] | None:
    """What runs at this moment; None when no night is on."""
    if lab.find_lock_holder() is None:
        return None
    try:
        found = json.loads(lab.live_status_path.read_text())
    except (FileNotFoundError, ValueError):
        return {"pid": lab.find_lock_holder(), "runs": [], "notices": [], "until": None}
    return dict(found)


def build_status(lab: Lab, ledger: Ledger) -> dict[str, Any]:
    """How the lab stands, as `status --json` shows it."""
    rows = {
        "baseline": load_baseline_row(ledger),
        "champion": load_champion_row(ledger),
    }
    back = load_reverted_champions(ledger)
    return {
        **ledger.count_experiments(),
        **{name: row_to_json(row) if row else None for name, row in rows.items()},
        "waiting": len(ledger.load_open_proposals()),
        "running": read_live_status(lab),
        "paused": lab.pause_path.exists(),
        "series": ledger.find_last_series(),
        "last": [row_to_json(row, back) for row in ledger.load_last_rows(5)],
    }


def load_champion_row(ledger: Ledger) -> Row | None:
    """The champion's row; None before a baseline."""
    champion = ledger.champion
    return ledger.load_row(champion.number) if champion else None


def load_baseline_row(ledger: Ledger) -> Row | None:
    """What the present series started from; None before it did."""
    number = ledger.find_first_keep(ledger.find_last_series())
    return ledger.load_row(number) if number is not None else None


def format_status(metric: str, found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    champion, baseline = found["champion"], found["baseline"]
    lines = [format.format_counts(found)]
    if found["claimed"]:
        lines.append(
            f"{found['claimed']} more are claimed by others, measured by nobody"
        )
    if champion and baseline:
        first, best = (text.format_score(row["value"]) for row in (baseline, champion))
        which = f"experiment {champion['experiment']}: {champion['title']}"
        lines.append(f"{metric}  {first} -> {best}   champion is {which}")
    for row in found["last"]:
        score = text.format_score(row["value"]) or row["kind"]
        lines.append(
            f"{row['experiment']:>4} {row['verdict']:<10} {score:<14} "
            f"{format_delta(row['delta']):>8}  {row['title']}"
            + results_tsv.format_ancestors(row["on_top_of"])
        )
    if found["waiting"]:
        lines.append(f"{found['waiting']} waiting")
    if found["paused"]:
        lines.append("paused: nothing new begins before autoresearch resume")
    return lines + format_live_status(found["running"])


def format_live_status(found: Mapping[str, Any] | None) -> list[str]:
    """What runs now, for people."""
    if found is None:
        return ["not running"]
    lines = [format_run(run) for run in found["runs"]]
    lines += [f"note: {to_one_line(notice)}" for notice in found["notices"]]
    return lines or ["between two experiments"]


def estimate_seconds_left(seconds: float, share: float) -> float | None:
    """How long a run will still train; None: it is done, or has hardly begun.

    The first step compiles and warms up: a run of 4 s seemed to need 24 minutes.
    """
    return (
        seconds * (1 - share) / share if MIN_SHARE_FOR_ESTIMATE <= share < 1 else None
    )


def format_run(run: Mapping[str, Any]) -> str:
    """One run in hand."""
    share = float(run["share"])
    done = round(20 * share)
    bar = "#" * done + "." * (20 - done)
    parts = [f"{run['experiment']:>4} {run['phase']:<8} [{bar}] {share:4.0%}"]
    if run["loss"] is not None:
        parts.append(f"loss {run['loss']:.3f}")
    if run["tokens"] and run["seconds"]:
        parts.append(f"{format_rate(run['tokens'] / run['seconds'])} tok/s")
    if (left := estimate_seconds_left(run["seconds"], share)) is not None:
        parts.append(f"{format_seconds(left)} left")
    parts.append(to_one_line(str(run["title"])))
    return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class ActiveProgram:
    """The program.md that holds now, for whoever is not the night itself."""

    program: Program
    text: str
    fault: str  # why it is not the one in the folder; "" if it is


def load_active_program(lab: Lab, ledger: Ledger) -> ActiveProgram:
    """program.md as it stands, or the last one on record that can be read.

    LabError where there is none: what is wrong with the one in the folder.
    """
    text = lab.read_file("program.md")
    try:
        return ActiveProgram(program.parse_program(text), text, "")
    except LabError as error:
        for old in queries.load_programs(ledger):
            with suppress(LabError):
                return ActiveProgram(program.parse_program(old), old, str(error))
        raise


def find_program_faults(lab: Lab) -> list[str]:
    """What is wrong with program.md, as every view says it; nothing if it is fine."""
    try:
        text = lab.read_file("program.md")
        program.parse_program(text)
    except LabError as error:
        return [f"{error}; the last good program.md stays in force"]
    doubt = program.find_ignored_settings(text)
    return [doubt] if doubt else []
