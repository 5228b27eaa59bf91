"""The commands that run and steer a session: `run`, `status`, `stop`, `pause` ..."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autoresearch.cli.ledger_access import (
    open_ledger,
    print_program_faults,
    read_metric,
)
from autoresearch.cli.screen import LiveScreen, stop_session_on_signals
from autoresearch.cli.terminal import (
    COUNT,
    DOLLARS,
    HOURS,
    SEED,
    json_option,
    print_json,
    print_line,
    print_next_step,
)
from autoresearch.commands.queue import describe_lost_runs
from autoresearch.errors import NotReady
from autoresearch.lab.folder import Lab
from autoresearch.reporting.format import format_counts
from autoresearch.reporting.status import build_status, format_status
from autoresearch.sandbox.process import StopFlag

if TYPE_CHECKING:
    from autoresearch.run.session import SessionOptions


@click.command(epilog="example: autoresearch run --hours 8 --proposer search")
@click.option(
    "--experiments",
    type=COUNT,
    help="Stop after this many. Default: program.md's, or no limit.",
)
@click.option(
    "--hours",
    type=HOURS,
    help="Start none after this. Default: program.md's, or no limit.",
)
@click.option("--proposer", multiple=True, help="Instead of program.md's. Repeatable.")
@click.option(
    "--seed", type=SEED, help="Base seed of all runs. Default: from the series."
)
@click.option(
    "--dollars", type=DOLLARS, help="What models may cost. Default: program.md's, or 0."
)
@json_option
def run(
    experiments: int | None,
    hours: float | None,
    proposer: tuple[str, ...],
    seed: int | None,
    dollars: float | None,
    as_json: bool,
) -> None:
    """Propose, train, score, keep or discard, until stopped."""
    from autoresearch.run.session import SessionOptions

    lab = Lab.find(Path.cwd())
    options = SessionOptions(experiments, hours, proposer, seed, dollars)
    summary = run_session(lab, options, as_json)
    if not as_json:
        print_line(summary)
        print_next_step("autoresearch report | git log --oneline | autoresearch run")


def run_session(lab: Lab, options: "SessionOptions", as_json: bool) -> str:
    """Run a session to its end, printing verdicts. Returns the closing line."""
    from autoresearch.loop import research
    from autoresearch.run.session import open_session

    stop = StopFlag()
    screen = LiveScreen(lab, as_json)
    with (
        stop_session_on_signals(stop, screen),
        open_session(lab, options, stop) as (session, now),
    ):
        recorder = session.recorder
        screen.print_session_start(recorder.ledger, now, options)
        now.listener, now.reader = screen.show_progress, screen.print_notice
        for row in research(session):
            now.finish_experiment(row.number)
            screen.print_verdict(row)
        counts = recorder.ledger.count_experiments()
        recorder.write_results()  # the intervals now rest on every run of the session
    how = "stopped" if stop.soon or stop.now else "done"
    return f"{how}; in total {format_counts(counts)}"


@click.command(epilog="example: autoresearch status --follow")
@click.option("--follow", is_flag=True, help="Refresh until the run ends.")
@json_option
def status(follow: bool, as_json: bool) -> None:
    """Show what runs now, the champion and the last verdicts."""
    lab = Lab.find(Path.cwd())
    metric = read_metric(lab)
    ledger = open_ledger(lab)
    while True:
        found = build_status(lab, ledger)
        if as_json:
            print_json(found)
        else:
            if follow and sys.stdout.isatty():
                click.clear()
            for line in format_status(metric, found):
                print_line(line)
            print_program_faults(lab, (found["running"] or {}).get("notices", ()))
        if not follow or found["running"] is None:
            break
        time.sleep(1.0)
    if not as_json:
        then = "run" if found["running"] is None else "stop"
        print_next_step(f"autoresearch log | autoresearch report | autoresearch {then}")


@click.command(epilog="example: autoresearch stop")
@click.option("--now", is_flag=True, help="At once: the experiment loses its runs.")
def stop(now: bool) -> None:
    """Stop after the current experiment, or at once with --now."""
    lab = Lab.find(Path.cwd())
    holder = lab.find_lock_holder()
    if holder is None:
        raise NotReady(f"nothing is running in {lab.folder}. Next: autoresearch run")
    lost = describe_lost_runs(lab)
    os.kill(holder, signal.SIGTERM)
    if now:
        time.sleep(0.2)
        os.kill(holder, signal.SIGTERM)
        print_line(f"process {holder} stops now" + (f"; {lost}" if lost else ""))
    else:
        print_line(
            f"process {holder} stops after the current experiment and all its runs"
        )
    print_next_step("autoresearch status --follow")


@click.command(epilog="example: autoresearch pause")
def pause() -> None:
    """Start no new experiment until `resume`.

    The current one continues to its verdict.
    """
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    lab.pause_path.touch()
    print_line(
        "paused: the current run continues to its verdict; no new one will start"
        if lab.find_lock_holder() is not None
        else "paused: nothing is running here now, and a new run would only wait"
    )
    print_next_step("autoresearch resume")


@click.command(epilog="example: autoresearch resume")
def resume() -> None:
    """Continue after `pause`."""
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    lab.pause_path.unlink(missing_ok=True)
    is_running = lab.find_lock_holder() is not None
    print_line("resumed" if is_running else "no longer paused; nothing is running here")
    print_next_step(
        "autoresearch status --follow" if is_running else "autoresearch run"
    )
