"""The commands that read the ledger: `log`, `show`, `report` and `replay`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoresearch.cli.ledger_access import (
    open_ledger,
    print_program_faults,
    read_lower_is_better,
    read_metric,
)
from autoresearch.cli.terminal import (
    COUNT,
    SECONDS,
    json_option,
    print_json,
    print_line,
    print_next_step,
)
from autoresearch.lab.folder import Lab
from autoresearch.reporting.format import (
    format_verdict,
    load_log_rows,
    load_reverted_champions,
    row_to_json,
)
from autoresearch.reporting.show import (
    diff_from_parent,
    explain_missing_verdict,
    find_row,
    format_experiment,
    rank_discarded,
    read_log,
)

if TYPE_CHECKING:
    from autoresearch.reporting.report_text import Report

POLL_SECONDS = 0.2


@click.command(epilog="example: autoresearch log --kept")
@click.option("--kept", "which", flag_value="kept", help="Only kept experiments.")
@click.option("--failed", "which", flag_value="failed", help="Only failed ones.")
@click.option(
    "--near", "which", flag_value="near", help="Discarded ones, the nearest miss first."
)
@click.option("--last", type=COUNT, default=0, help="Only the last N.")
@json_option
def log(which: str | None, last: int, as_json: bool) -> None:
    """List every experiment, one a line."""
    lab = Lab.find(Path.cwd())
    ledger = open_ledger(lab)
    rows, reverted = load_log_rows(ledger), load_reverted_champions(ledger)
    if which == "kept":
        rows = [row for row in rows if row.decision == "keep"]
    elif which == "failed":
        rows = [row for row in rows if row.decision == "failed"]
    elif which == "near":
        rows = rank_discarded(rows, lower_is_better=read_lower_is_better(lab))
    rows = rows[-last:] if last else rows
    if as_json:
        for row in rows:
            print_json(row_to_json(row, reverted))
        return
    for row in rows:
        print_line(format_verdict(row, reverted))
    print_program_faults(lab)
    print_next_step("autoresearch show N")


@click.command(epilog="example: autoresearch show champion")
@click.argument("which", default="last")
@click.option(
    "--wait", type=SECONDS, default=0.0, help="Wait this many seconds for its verdict."
)
@json_option
def show(which: str, wait: float, as_json: bool) -> None:
    """Show one experiment in full.

    WHICH is a number, champion, baseline or last (the default).
    """
    lab = Lab.find(Path.cwd())
    ledger = open_ledger(lab)
    if which.isdigit():
        deadline = time.monotonic() + wait
        while not ledger.load_row(int(which)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not ledger.load_row(int(which)):
            raise explain_missing_verdict(lab, ledger, int(which))
    row = find_row(ledger, which)
    if as_json:
        found = row_to_json(row, load_reverted_champions(ledger))
        diff, printed = diff_from_parent(ledger, row), read_log(lab, row)
        print_json({**found, "diff": diff, "log": printed})
        return
    for line in format_experiment(lab, ledger, row, read_metric(lab)):
        print_line(line)
    print_program_faults(lab)
    in_git = f"git show autoresearch/{row.number} | " if row.commit else ""
    print_next_step(f"{in_git}autoresearch log")


@click.command(epilog="example: autoresearch report")
@json_option
def report(as_json: bool) -> None:
    """Print the results and write report.html."""
    from autoresearch.reporting.report_json import report_to_json
    from autoresearch.reporting.report_text import list_champion_commands

    lab = Lab.find(Path.cwd())
    built, lines = write_report(lab)
    if as_json:
        print_json(report_to_json(built))
        return
    for line in lines:
        print_line(line)
    print_program_faults(lab)
    print_next_step(" | ".join(["autoresearch run", *list_champion_commands(built)]))


def write_report(lab: Lab) -> tuple["Report", list[str]]:
    """Write report.html. Returns the report and its headline for the terminal."""
    from autoresearch.atomic_file import write_whole
    from autoresearch.reporting.report_html import render_html
    from autoresearch.reporting.report_text import build_report, format_headline

    ledger = open_ledger(lab)
    built = build_report(
        ledger,
        metric=read_metric(lab),
        lab_name=lab.folder.name,
        facts=ledger.load_series_facts(ledger.find_last_series()),
        notices=(),
    )
    page = lab.file_path("report.html")
    lines = [*format_headline(built), *built.proposer_lines]
    if not lab.is_writable:
        return built, [*lines, f"{page} not written: {lab.folder} is read-only"]
    write_whole(page, render_html(built))
    return built, [*lines, f"{page} written"]


@click.command(epilog="example: autoresearch replay --policy greedy")
@click.option("--policy", "name", help="Which policy decides. Default: program.md's.")
@click.option(
    "--series", help="The series, or the first letters of its name. Default: the last."
)
@json_option
def replay(name: str | None, series: str | None, as_json: bool) -> None:
    """Decide a past or imported night again under another policy."""
    from autoresearch.commands.replay import format_replay
    from autoresearch.commands.replay import replay as replay_series
    from autoresearch.policies.registry import load_policy

    lab = Lab.find(Path.cwd())
    program = lab.load_program()
    name = name or program.policy
    policy = load_policy(
        name,
        lower_is_better=read_lower_is_better(lab),
        gain_per_20_added_lines=program.gain_per_20_added_lines,
    )
    result = replay_series(open_ledger(lab), policy, name, series)
    if as_json:
        print_json(result.to_json())
        return
    for line in format_replay(result):
        print_line(line)
    other = "noise-aware" if result.policy == "greedy" else "greedy"
    print_next_step(f"autoresearch show N | autoresearch replay --policy {other}")
