"""What a session shows while it runs: verdicts, a progress line, reactions to signals.

A closed terminal does not end a session: output then goes to run.log only.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from autoresearch.cli.terminal import print_line
from autoresearch.commands.queue import describe_lost_runs
from autoresearch.experiment import Candidate, Row
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger
from autoresearch.reporting.format import (
    format_duration,
    format_seconds,
    format_verdict,
    row_to_json,
)
from autoresearch.reporting.status import estimate_seconds_left, format_run
from autoresearch.sandbox.process import StopFlag
from autoresearch.text import to_one_line

if TYPE_CHECKING:
    from autoresearch.measure.workbench import RunProgress
    from autoresearch.run.session import LiveStatus, SessionOptions

RUN_REDRAW_SECONDS = 0.2
STAGE_REDRAW_SECONDS = 0.1
CLEAR_LINE = "\r\x1b[2K"


class LiveScreen:
    """Verdicts as permanent lines, and the current run as a line that is redrawn."""

    def __init__(self, lab: Lab, as_json: bool) -> None:
        self._json = as_json
        self._live = sys.stdout.isatty() and not as_json
        self._drawn_at = 0.0
        self._progress_line = ""
        self._progress: RunProgress | None = None  # None: no run has started
        self._lab = lab
        self._log = lab.state_folder / "run.log"

    def print_session_start(
        self, ledger: Ledger, now: "LiveStatus", options: "SessionOptions"
    ) -> None:
        """When the session ends, its notices, and the experiments it resumes."""
        if now.ends_at is not None:
            end = f"until {time.strftime('%H:%M', time.localtime(now.ends_at))}"
        elif options.experiments is not None:
            end = f"for {options.experiments} experiments"
        else:
            end = "until you stop it"
        self.print_line(
            f"running {end}. You may close this terminal; to see the run again: "
            "autoresearch status --follow"
        )
        for notice in now.notices:
            self.print_notice(notice)
        for proposal in ledger.load_open_proposals():
            title = to_one_line(proposal.title)
            self.print_line(f"resuming experiment {proposal.number}: {title}")

    def print_verdict(self, row: Row) -> None:
        """Print one verdict as a permanent line."""
        if self._json:
            words = json.dumps(row_to_json(row))
            self._write_to_terminal(f"{words}\n")
            self._append_to_log(words)
        else:
            self._progress_line = ""  # the run it showed has ended
            self.print_line(format_verdict(row))

    def print_notice(self, notice: str) -> None:
        """Print a note for the person who started the session."""
        self.print_line(f"note: {to_one_line(notice)}")

    def describe_time_left(self) -> str:
        """The current run's remaining training time; "" where it is not known."""
        if self._progress is None:
            return ""
        left = estimate_seconds_left(self._progress.seconds, self._progress.share)
        return "" if left is None else f" (about {format_seconds(left)} left)"

    def describe_lost_runs(self) -> str:
        """What stopping now would lose."""
        return describe_lost_runs(self._lab)

    def show_progress(self, candidate: Candidate, progress: "RunProgress") -> None:
        """Redraw the current run's line, at most five times a second."""
        self._progress = progress
        if not self._live or time.monotonic() - self._drawn_at < RUN_REDRAW_SECONDS:
            return
        self._drawn_at = time.monotonic()
        run = {
            "experiment": candidate.proposal.number,
            "title": candidate.proposal.title,
            "phase": progress.phase,
            "share": progress.share,
            "loss": progress.loss,
            "tokens": progress.tokens,
            "seconds": progress.seconds,
        }
        width = max(20, shutil.get_terminal_size().columns - 1)
        self._progress_line = format_run(run)[:width]
        self._write_to_terminal(f"{CLEAR_LINE}{self._progress_line}")

    def print_line(self, line: str) -> None:
        """Print a permanent line above the progress line, and append it to run.log."""
        self._append_to_log(line)
        if self._json:
            self._write_to_terminal(f"{line}\n", error=True)
        elif self._live:
            self._write_to_terminal(f"{CLEAR_LINE}{line}\n{self._progress_line}")
        else:
            self._write_to_terminal(f"{line}\n")

    def _append_to_log(self, line: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _write_to_terminal(self, text: str, *, error: bool = False) -> None:
        """Write to stdout or stderr. One that is gone is written to no more.

        A closed window, a lost connection or a pipe without a reader ends no session;
        run.log has every line.
        """
        name = "stderr" if error else "stdout"
        stream = getattr(sys, name)
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            self._live = False
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


class ProgressBar:
    """Progress of `prepare`: one line a stage, redrawn where stdout is a terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._started_at = 0.0
        self._drawn_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage, self._started_at = stage, time.monotonic()
            self._drawn_at = self._started_at  # a quick stage draws nothing
        seconds = time.monotonic() - self._started_at
        share = done / total if total else 1.0
        if not sys.stdout.isatty():
            if share >= 1:
                print_line(f"     {to_one_line(stage)}: {seconds:.1f} s")
            return
        if share < 1 and time.monotonic() - self._drawn_at < STAGE_REDRAW_SECONDS:
            return
        self._drawn_at = time.monotonic()
        left = format_duration(seconds * (1 - share) / share) if share else "?"
        end = "\n" if share >= 1 else ""
        timing = f"{seconds:.1f} s" if share >= 1 else f"{left} left"
        click.echo(
            f"{CLEAR_LINE}     {to_one_line(stage)} {share:4.0%}  {timing}{end}",
            nl=False,
        )


@contextmanager
def stop_session_on_signals(stop: StopFlag, screen: LiveScreen) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops after the current experiment, a second one now.

    SIGHUP (a closed terminal) is ignored.
    """

    def request_stop(number: int, frame: FrameType | None) -> None:
        if stop.soon:
            stop.now = True
            lost = screen.describe_lost_runs() or "no run is lost"
            screen.print_line(f"stopping now; {lost}")
        else:
            stop.soon = True
            screen.print_line(
                "stopping after the current experiment: its run"
                f"{screen.describe_time_left()} and any further runs that its verdict "
                "needs. Press Ctrl-C again to stop now and lose those runs"
            )

    old = {
        name: signal.signal(name, request_stop)
        for name in (signal.SIGINT, signal.SIGTERM)
    }
    old[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for name, previous in old.items():
            signal.signal(name, previous)


@contextmanager
def stop_on_signals(as_json: bool) -> Iterator[StopFlag]:
    """A flag that the first SIGINT or SIGTERM sets to `soon`, a second one to `now`."""
    stop = StopFlag()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.now, stop.soon = stop.soon, True
        if not as_json:
            print_line(
                "stopping after the runs in progress; finished results are kept. "
                "Press Ctrl-C again to stop now"
            )

    old = {
        name: signal.signal(name, request_stop)
        for name in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for name, previous in old.items():
            signal.signal(name, previous)
