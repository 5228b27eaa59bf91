"""`autoresearch status`: what is running now, the champion, the counts."""

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

MIN_SHARE_FOR_ESTIMATE = 0.05  # of a run; before that its pace does not say the end


def read_live_status(lab: Lab) -> dict[str, Any] | None:
    """What is running at this moment; None if nothing is."""
    if lab.find_lock_holder() is None:
        return None
    try:
        return dict(json.loads(lab.live_status_path.read_text()))
    except (FileNotFoundError, ValueError):
        return {"pid": lab.find_lock_holder(), "runs": [], "notices": [], "until": None}


def build_status(lab: Lab, ledger: Ledger) -> dict[str, Any]:
    """The state of a lab: the contract of `status --json`."""
    rows = {
        "baseline": load_baseline_row(ledger),
        "champion": load_champion_row(ledger),
    }
    reverted = load_reverted_champions(ledger)
    return {
        **ledger.count_experiments(),
        **{name: row_to_json(row) if row else None for name, row in rows.items()},
        "waiting": len(ledger.load_open_proposals()),
        "running": read_live_status(lab),
        "paused": lab.pause_path.exists(),
        "series": ledger.find_last_series(),
        "last": [row_to_json(row, reverted) for row in ledger.load_last_rows(5)],
    }


def load_champion_row(ledger: Ledger) -> Row | None:
    """The champion's row; None before a baseline."""
    champion = ledger.champion
    return ledger.load_row(champion.number) if champion else None


def load_baseline_row(ledger: Ledger) -> Row | None:
    """The current series' baseline; None before it has a verdict."""
    number = ledger.find_first_keep(ledger.find_last_series())
    return ledger.load_row(number) if number is not None else None


def format_status(metric: str, status: Mapping[str, Any]) -> list[str]:
    """`build_status` for people."""
    champion, baseline = status["champion"], status["baseline"]
    lines = [format.format_counts(status)]
    if status["claimed"]:
        lines.append(f"{status['claimed']} more were imported, not measured here")
    if champion and baseline:
        before, after = (text.format_score(r["value"]) for r in (baseline, champion))
        which = f"experiment {champion['experiment']}: {champion['title']}"
        lines.append(f"{metric}  {before} -> {after}   champion is {which}")
    for row in status["last"]:
        score = text.format_score(row["value"]) or row["kind"]
        lines.append(
            f"{row['experiment']:>4} {row['verdict']:<10} {score:<14} "
            f"{format_delta(row['delta']):>8}  {row['title']}"
            + results_tsv.format_ancestors(row["on_top_of"])
        )
    if status["waiting"]:
        lines.append(f"{status['waiting']} waiting")
    if status["paused"]:
        lines.append("paused: nothing new starts before autoresearch resume")
    return lines + format_live_status(status["running"])


def format_live_status(live: Mapping[str, Any] | None) -> list[str]:
    """`read_live_status` for people."""
    if live is None:
        return ["not running"]
    lines = [format_run(run) for run in live["runs"]]
    lines += [f"note: {to_one_line(notice)}" for notice in live["notices"]]
    return lines or ["between two experiments"]


def estimate_seconds_left(seconds: float, share: float) -> float | None:
    """How long a run will go on training; None if it is done or has hardly started.

    The first step compiles and warms up: by its pace, a run of 4 s would take 24 min.
    """
    return (
        seconds * (1 - share) / share if MIN_SHARE_FOR_ESTIMATE <= share < 1 else None
    )


def format_run(run: Mapping[str, Any]) -> str:
    """One current run: phase, progress bar, loss, speed, time left, title."""
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
    """The program.md in force, as seen from outside the running session."""

    program: Program
    text: str
    fault: str  # why the one in the folder is not in force; "": it is


def load_active_program(lab: Lab, ledger: Ledger) -> ActiveProgram:
    """program.md as it is in the folder, or the last recorded one that is valid.

    Raises LabError, about the one in the folder, if no recorded one is valid either.
    """
    text = lab.read_file("program.md")
    try:
        return ActiveProgram(program.parse_program(text), text, "")
    except LabError as error:
        for recorded in queries.load_programs(ledger):
            with suppress(LabError):
                parsed = program.parse_program(recorded)
                return ActiveProgram(parsed, recorded, str(error))
        raise


def find_program_faults(lab: Lab) -> list[str]:
    """What is wrong with program.md, one sentence each; empty if it is fine."""
    try:
        text = lab.read_file("program.md")
        program.parse_program(text)
    except LabError as error:
        return [f"{error}; the last good program.md stays in force"]
    ignored = program.find_ignored_settings(text)
    return [ignored] if ignored else []
