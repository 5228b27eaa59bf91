"""The command line: arguments in, text out. Decisions are made below this file.

Commands are listed in the order of a day. Exit codes: 0 done or kept, 2 your input,
3 too soon, 4 discarded, 5 failed (docs/how-it-works.md). Every command ends by saying
what to type next.
"""

import atexit
import errno
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from autoresearch import __version__
from autoresearch.commands import queue
from autoresearch.errors import LabError, NotReady
from autoresearch.experiment import Candidate, Row
from autoresearch.lab import constants
from autoresearch.lab.folder import Lab
from autoresearch.lab.program import MAX_HOURS
from autoresearch.measure.workbench import RunProgress
from autoresearch.records.ledger import Ledger, copy_ledger
from autoresearch.reporting import format
from autoresearch.reporting import show as views
from autoresearch.reporting import status as status_view
from autoresearch.reporting.format import format_counts
from autoresearch.run import session
from autoresearch.sandbox.process import StopFlag
from autoresearch.text import format_exact, to_one_line

if TYPE_CHECKING:
    from autoresearch.reporting.report_text import Report

EXIT_OK, EXIT_USER_ERROR, EXIT_TOO_SOON, EXIT_DISCARDED, EXIT_FAILED = 0, 2, 3, 4, 5
# What the machine refuses and a human can mend; any other OSError is our mistake.
USER_FIXABLE_ERRNOS = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)


class FiniteFloatRange(click.FloatRange):
    """A number within bounds; nan is within none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = float(super().convert(value, param, ctx))
        if math.isnan(found):
            self.fail(f"{value} is not a number.", param, ctx)
        return found


HOURS = FiniteFloatRange(0, MAX_HOURS)
SECONDS = FiniteFloatRange(0, 3600 * MAX_HOURS)
DOLLARS = FiniteFloatRange(0, 1e9)
COUNT, AT_LEAST_ONE = click.IntRange(0, 10**9), click.IntRange(1, 10**9)
SEED = click.IntRange(0, 2**63 - 1)  # what the ledger can hold
PORT = click.IntRange(1, 65535)


class CommandGroup(click.Group):
    """Commands in the order of a day, and one clear sentence for a human's mistake."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NotReady as error:
            click.echo(f"autoresearch: {error}", err=True)
            ctx.exit(EXIT_TOO_SOON)
        except LabError as error:
            click.echo(f"autoresearch: {error}", err=True)
            ctx.exit(EXIT_USER_ERROR)
        except OSError as error:
            if error.errno not in USER_FIXABLE_ERRNOS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            click.echo(
                f"autoresearch: {where}{error.strerror}. Next: make it a place that "
                "you may write to, or copy the lab to one (git clone)",
                err=True,
            )
            ctx.exit(EXIT_USER_ERROR)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoresearch")
def main() -> None:
    """Let something improve your train.py overnight, and learn which gains are real.

    \b
    autoresearch demo                     everything at once, offline, on a CPU
    autoresearch new lab && cd lab        a lab of your own
    autoresearch prepare && autoresearch check && autoresearch run --hours 8
    autoresearch report                   in the morning
    """


def print_line(line: str = "") -> None:
    """One line of output."""
    click.echo(line)


def print_json(found: object) -> None:
    """One JSON object on one line."""
    click.echo(json.dumps(found))


def print_next_step(words: str) -> None:
    """What to type next."""
    print_line(f"Next: {words}")


json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")


@main.command(epilog="example: autoresearch new lab --text tinystories --vocab 4096")
@click.argument("lab", type=click.Path(path_type=Path))
@click.option(
    "--text",
    help="python, fineweb-edu, climbmix, tinystories, or a PATH of "
    ".txt, .jsonl or .parquet. Default: python.",
)
@click.option("--vocab", type=int, help="Size of the BPE vocabulary. Default: profile.")
@click.option(
    "--profile",
    type=click.Choice(["cpu", "gpu", "gpu24", "gpu12", "gpu8", "gpu4", "demo"]),
    help="Sizes of model and data. Default: by the memory of the GPU, else cpu.",
)
@click.option(
    "--kind", type=click.Choice(["gpt", "line"]), default="gpt", show_default=True
)
def new(
    lab: Path, text: str | None, vocab: int | None, profile: str | None, kind: str
) -> None:
    """Make a lab: a folder with prepare.py, train.py and program.md, under git."""
    from autoresearch.commands import new as founding

    for line in founding.create_lab(lab, kind, text, vocab, profile):
        print_line(line)
    print_next_step(f"cd {shlex.quote(str(lab))} && autoresearch prepare")


@main.command(epilog="example: autoresearch prepare")
def prepare() -> None:
    """Fetch the text, train the tokenizer, tokenise, split and seal. Twice is fine."""
    from autoresearch.git import Repository
    from autoresearch.lab import apparatus

    lab = Lab.find(Path.cwd())
    Repository(lab.folder).require_usable()
    found = apparatus.load_apparatus(lab, Repository(lab.folder))
    begun = time.monotonic()
    found.prepare_data(ProgressBar())
    took = time.monotonic() - begun
    print_line(f"sealed {found.load_fingerprint()}   ({took:.1f} s)")
    print_next_step("autoresearch check")


@main.command(epilog="example: autoresearch check --proposer search")
@click.option("--proposer", multiple=True, help="As in program.md. Repeatable.")
@click.option(
    "--hours", type=HOURS, default=8.0, show_default=True, help="Forecast for."
)
@json_option
def check(proposer: tuple[str, ...], hours: float, as_json: bool) -> None:
    """Try everything once in at most 90 s, and forecast the night."""
    from autoresearch.commands import check as checking

    lab = Lab.find(Path.cwd())
    found = checking.check(lab, proposer, hours)
    if as_json:
        print_json(found.to_json())
        return
    for line in found.to_lines():
        print_line(line)
    print_program_faults(lab)
    if found.has_ready_proposer:
        print_next_step(f"autoresearch run --hours {hours:g}")
        return
    print_next_step("mend what is said of the proposers, then autoresearch check")
    click.get_current_context().exit(EXIT_TOO_SOON)


@main.command(epilog="example: autoresearch run --hours 8 --proposer search")
@click.option("--experiments", type=COUNT, help="Stop after so many. Default: no end.")
@click.option("--hours", type=HOURS, help="Begin none after this. Default: no end.")
@click.option("--proposer", multiple=True, help="Instead of program.md's. Repeatable.")
@click.option("--seed", type=SEED, help="Of all runs. Default: from the series.")
@click.option("--dollars", type=DOLLARS, help="Models may cost this. Default: nothing.")
@json_option
def run(
    experiments: int | None,
    hours: float | None,
    proposer: tuple[str, ...],
    seed: int | None,
    dollars: float | None,
    as_json: bool,
) -> None:
    """Propose, train, measure, keep or discard, until you say stop."""
    lab = Lab.find(Path.cwd())
    options = session.SessionOptions(experiments, hours, proposer, seed, dollars)
    last = run_session(lab, options, as_json)
    if not as_json:
        print_line(last)
        print_next_step("autoresearch report | git log --oneline | autoresearch run")


def run_session(lab: Lab, options: session.SessionOptions, as_json: bool) -> str:
    """Run until it is over, printing verdicts; the closing line."""
    from autoresearch.loop import research

    stop = StopFlag()
    screen = LiveScreen(lab, as_json)
    with (
        stop_session_on_signals(stop, screen),
        session.open_session(lab, options, stop) as (opened, now),
    ):
        books = opened.recorder
        screen.print_session_start(books.ledger, now, options)
        now.listener, now.reader = screen.show_progress, screen.print_notice
        for row in research(opened):
            now.finish_experiment(row.number)
            screen.print_verdict(row)
        counts = books.ledger.count_experiments()
        books.write_results()  # with the intervals that the whole night tells
    word = "stopped" if stop.soon or stop.now else "done"
    return f"{word}, so far {format_counts(counts)}"


class LiveScreen:
    """Verdicts as lines that stay, and the run in hand as a line that changes."""

    def __init__(self, lab: Lab, as_json: bool) -> None:
        self._json = as_json
        self._live = sys.stdout.isatty() and not as_json
        self._drawn_at = 0.0
        self._progress_line = ""
        self._progress: RunProgress | None = None  # None: nothing ran yet
        self._lab = lab
        self._log = lab.state_folder / "run.log"

    def print_session_start(
        self, ledger: Ledger, now: session.LiveStatus, options: session.SessionOptions
    ) -> None:
        """How the night starts."""
        if now.ends_at is not None:
            until = time.strftime("%H:%M", time.localtime(now.ends_at))
            words = f"until {until}"
        else:
            most = options.experiments
            words = "until you say stop" if most is None else f"{most} experiments"
        self.print_line(
            f"{words}. You may close this terminal; autoresearch status --follow "
            "comes back."
        )
        for words in now.notices:
            self.print_notice(words)
        for proposal in ledger.load_open_proposals():
            title = to_one_line(proposal.title)
            self.print_line(f"going on with experiment {proposal.number}: {title}")

    def print_verdict(self, row: Row) -> None:
        """A line that stays."""
        if self._json:
            print_json(format.row_to_json(row))
            self._append_to_log(json.dumps(format.row_to_json(row)))
        else:
            self.print_line(format.format_verdict(row))

    def print_notice(self, words: str) -> None:
        """Something the human should know."""
        self.print_line(f"note: {to_one_line(words)}")

    def describe_time_left(self) -> str:
        """How long the run in hand will still train, as far as it says."""
        if self._progress is None:
            return ""
        left = status_view.estimate_seconds_left(
            self._progress.seconds, self._progress.share
        )
        return (
            "" if left is None else f", about {format.format_seconds(left)} of training"
        )

    def describe_lost_runs(self) -> str:
        """What stopping now loses."""
        return queue.describe_lost_runs(self._lab)

    def show_progress(self, candidate: Candidate, progress: RunProgress) -> None:
        """The run in hand, at most five times a second."""
        self._progress = progress
        if not self._live or time.monotonic() - self._drawn_at < 0.2:
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
        width = max(20, os.get_terminal_size().columns - 1)
        self._progress_line = status_view.format_run(run)[:width]
        self._write_to_terminal(f"\r\x1b[2K{self._progress_line}")

    def print_line(self, line: str) -> None:
        """A line above the one that changes; to the log as well."""
        self._append_to_log(line)
        if self._json:
            click.echo(line, err=True)
            return
        self._write_to_terminal(
            f"\r\x1b[2K{line}\n{self._progress_line}" if self._live else f"{line}\n"
        )

    def _append_to_log(self, line: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _write_to_terminal(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            # The terminal was closed. The night goes on; run.log has every line.
            self._live = False
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def stop_session_on_signals(stop: StopFlag, screen: LiveScreen) -> Iterator[None]:
    """Ctrl-C ends the night after the run in hand, a second one now; a closed
    terminal ends nothing."""

    def heard(number: int, frame: FrameType | None) -> None:
        if stop.soon:
            stop.now = True
            what = screen.describe_lost_runs() or "nothing is in hand"
            screen.print_line(f"stopping now; {what}")
        else:
            stop.soon = True
            screen.print_line(
                f"stopping after the experiment in hand: its run{screen.describe_time_left()}, and "
                "further runs if its verdict needs them; once more stops now and "
                "loses those"
            )

    old = {name: signal.signal(name, heard) for name in (signal.SIGINT, signal.SIGTERM)}
    old[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)


@main.command(epilog="example: autoresearch status --follow")
@click.option("--follow", is_flag=True, help="Stay, and show the live view.")
@json_option
def status(follow: bool, as_json: bool) -> None:
    """How the lab stands, and what runs at this moment."""
    lab = Lab.find(Path.cwd())
    metric = read_metric(lab)
    ledger = open_ledger(lab)
    while True:
        found = status_view.build_status(lab, ledger)
        if as_json:
            print_json(found)
        else:
            if follow and sys.stdout.isatty():
                click.clear()
            for line in status_view.format_status(metric, found):
                print_line(line)
            print_program_faults(lab, (found["running"] or {}).get("notices", ()))
        if not follow or found["running"] is None:
            break
        time.sleep(1.0)
    if not as_json:
        then = "run" if found["running"] is None else "stop"
        print_next_step(f"autoresearch log | autoresearch report | autoresearch {then}")


@main.command(epilog="example: autoresearch stop")
@click.option("--now", is_flag=True, help="Do not wait for the experiment.")
def stop(now: bool) -> None:
    """End the night after the experiment in hand, or now, which loses its runs."""
    lab = Lab.find(Path.cwd())
    holder = lab.find_lock_holder()
    if holder is None:
        raise NotReady(f"nothing runs in {lab.folder}. Next: autoresearch run")
    lost = queue.describe_lost_runs(lab)
    os.kill(holder, signal.SIGTERM)
    if now:
        time.sleep(0.2)
        os.kill(holder, signal.SIGTERM)
    if now:
        print_line(f"process {holder} stops now" + (f"; {lost}" if lost else ""))
    else:
        print_line(f"process {holder} stops after the experiment in hand, all its runs")
    print_next_step("autoresearch status --follow")


@main.command(epilog="example: autoresearch pause")
def pause() -> None:
    """Begin no new run until `resume`; the run in hand goes on to its verdict."""
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    lab.pause_path.touch()
    runs = lab.find_lock_holder() is not None
    print_line(
        "paused: the run in hand goes on to its verdict, and nothing new begins"
        if runs
        else "paused: nothing runs here now, and a night would begin nothing"
    )
    print_next_step("autoresearch resume")


@main.command(epilog="example: autoresearch resume")
def resume() -> None:
    """Go on after `pause`."""
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    lab.pause_path.unlink(missing_ok=True)
    runs = lab.find_lock_holder() is not None
    print_line(
        "the night goes on" if runs else "not paused any more; nothing runs here now"
    )
    print_next_step("autoresearch status --follow" if runs else "autoresearch run")


@main.command(epilog="example: autoresearch guide")
def guide() -> None:
    """For coding agents: how to propose here, step by step."""
    from autoresearch.proposers import agent_guide

    lab = Lab.find(Path.cwd())
    running, paused = lab.find_lock_holder() is not None, lab.pause_path.exists()
    if lab.ledger_path.exists():
        program = status_view.load_active_program(lab, open_ledger(lab)).program
    else:
        program = lab.load_program()
    print_line(agent_guide.write_guide(program, running=running, paused=paused))
    print_next_step("autoresearch context" if running else "autoresearch run")


@main.command(epilog="example: autoresearch context | less")
def context() -> None:
    """What every proposer reads: program.md, train.py, and all that was tried."""
    from autoresearch.commands import mcp as serving

    lab = Lab.find(Path.cwd())
    print_line(serving.LabTools(lab).read_context())


@main.command(epilog="example: autoresearch mcp my-lab --http 8765")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--by", default="mcp", help="Who proposes, as the ledger names it.")
@click.option("--http", "port", type=PORT, help="On this port of loopback, not stdio.")
def mcp(folder: Path, by: str, port: int | None) -> None:
    """Serve the lab to clients of the Model Context Protocol."""
    from autoresearch.commands import mcp as serving

    lab = Lab.find(folder)
    if port is None:
        serving.serve_stdio(lab, by)
        return
    serving.load_or_create_token(lab)
    serving.require_free_port(port)
    print_line(
        f"http://127.0.0.1:{port}/mcp, token in {lab.state_folder / 'mcp-token'}"
    )
    print_next_step(
        "in your client, that address and the header Authorization: Bearer TOKEN"
    )
    serving.serve_http(lab, by, port)


@main.command(epilog="example: autoresearch log --kept")
@click.option("--kept", "which", flag_value="kept", help="Only what was kept.")
@click.option("--failed", "which", flag_value="failed", help="Only what failed.")
@click.option("--near", "which", flag_value="near", help="The nearest misses first.")
@click.option("--last", type=COUNT, default=0, help="Only the last so many.")
@json_option
def log(which: str | None, last: int, as_json: bool) -> None:
    """Every experiment, one a line."""
    lab = Lab.find(Path.cwd())
    ledger = open_ledger(lab)
    rows, back = format.load_log_rows(ledger), format.load_reverted_champions(ledger)
    if which == "kept":
        rows = [row for row in rows if row.decision == "keep"]
    elif which == "failed":
        rows = [row for row in rows if row.decision == "failed"]
    elif which == "near":
        rows = views.rank_discarded(rows, lower_is_better=read_lower_is_better(lab))
    rows = rows[-last:] if last else rows
    if as_json:
        for row in rows:
            print_json(format.row_to_json(row, back))
        return
    for row in rows:
        print_line(format.format_verdict(row, back))
    print_program_faults(lab)
    print_next_step("autoresearch show N")


@main.command(epilog="example: autoresearch show champion")
@click.argument("which", default="last")
@click.option("--wait", type=SECONDS, default=0.0, help="Seconds, for its verdict.")
@json_option
def show(which: str, wait: float, as_json: bool) -> None:
    """One experiment, whole. WHICH is a number, champion, baseline or last."""
    lab = Lab.find(Path.cwd())
    ledger = open_ledger(lab)
    deadline = time.monotonic() + wait
    while (
        which.isdigit()
        and not ledger.load_row(int(which))
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    if which.isdigit() and not ledger.load_row(int(which)):
        raise views.explain_missing_verdict(lab, ledger, int(which))
    row = views.find_row(ledger, which)
    if as_json:
        log = views.read_log(lab, row)
        told = format.row_to_json(row, format.load_reverted_champions(ledger))
        print_json({**told, "diff": views.diff_from_parent(ledger, row), "log": log})
        return
    for line in views.format_experiment(lab, ledger, row, read_metric(lab)):
        print_line(line)
    print_program_faults(lab)
    in_git = f"git show autoresearch/{row.number} | " if row.commit else ""
    print_next_step(f"{in_git}autoresearch log")


@main.command(
    "try", epilog='example: autoresearch try my_train.py "gated MLP" --wait 900'
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("title")
@click.option("--by", default="", help="Your name. Default: your login.")
@click.option("--reason", default="", help="Why it might help.")
@click.option(
    "--wait", type=SECONDS, default=0.0, help="Seconds to wait for the verdict."
)
@json_option
def try_file(
    file: Path, title: str, by: str, reason: str, wait: float, as_json: bool
) -> None:
    """Queue your own train.py as the next experiment, and return at once."""
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    ledger = open_ledger(lab)
    number, minutes = queue.queue_file(lab, ledger, file, title, by, reason)
    if not wait:
        if as_json:
            print_json({"experiment": number, "minutes": minutes})
            return
        when = f"a verdict in about {minutes:.0f} min"
        if lab.find_lock_holder() is None:
            when = "nothing runs now, so it waits for autoresearch run"
        elif lab.pause_path.exists():
            when = "the night is paused, so it waits for autoresearch resume"
        print_line(f"experiment {number} is queued; {when}")
        print_next_step(f"autoresearch show {number} --wait 100")
        return
    deadline = time.monotonic() + wait
    while (row := ledger.load_row(number)) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if row is None:
        raise views.explain_missing_verdict(lab, ledger, number)
    if as_json:
        print_json(format.row_to_json(row))
    else:
        print_line(format.format_verdict(row))
        if row.decision != "failed":  # there the line says it
            print_line(f"     {to_one_line(row.why)}")
        print_next_step(
            f"autoresearch show {number} | the next idea: autoresearch try ..."
        )
    code = {"keep": EXIT_OK, "discard": EXIT_DISCARDED, "failed": EXIT_FAILED}[
        row.status
    ]
    click.get_current_context().exit(code)


@main.command(epilog="example: autoresearch report")
@json_option
def report(as_json: bool) -> None:
    """What was found: on the terminal, and as one self-contained HTML page."""
    from autoresearch.reporting import report_json, report_text

    lab = Lab.find(Path.cwd())
    built, lines = write_report(lab)
    if as_json:
        print_json(report_json.report_to_json(built))
        return
    for line in lines:
        print_line(line)
    print_program_faults(lab)
    print_next_step(
        " | ".join(["autoresearch run", *report_text.list_champion_commands(built)])
    )


def write_report(lab: Lab) -> tuple["Report", list[str]]:
    """Write report.html; what is in it, and the headline for the terminal."""
    from autoresearch.atomic_file import write_whole
    from autoresearch.reporting import report_html as reporting
    from autoresearch.reporting import report_text

    ledger = open_ledger(lab)
    built = report_text.build_report(
        ledger,
        metric=read_metric(lab),
        lab_name=lab.folder.name,
        facts=ledger.load_series_facts(ledger.find_last_series()),
        notices=(),
    )
    page = lab.file_path("report.html")
    lines = [*report_text.format_headline(built), *built.proposer_lines]
    if not lab.is_writable:
        return built, [*lines, f"{page} not written: {lab.folder} is read-only."]
    write_whole(page, reporting.render_html(built))
    return built, [*lines, f"{page} written."]


@main.command(epilog="example: autoresearch replay --policy greedy")
@click.option("--policy", "name", help="Who decides again. Default: program.md's.")
@click.option("--series", help="Which night, or how its name begins. Default: last.")
@json_option
def replay(name: str | None, series: str | None, as_json: bool) -> None:
    """Decide a recorded or imported night again under another policy."""
    from autoresearch.commands import replay as replaying

    lab = Lab.find(Path.cwd())
    program = lab.load_program()
    name = name or program.policy
    from autoresearch.policies import registry as policy_registry

    judge = policy_registry.load_policy(
        name,
        lower_is_better=read_lower_is_better(lab),
        gain_per_20_added_lines=program.gain_per_20_added_lines,
    )
    found = replaying.replay(open_ledger(lab), judge, name, series)
    if as_json:
        print_json(found.to_json())
        return
    for line in replaying.format_replay(found):
        print_line(line)
    other = "noise-aware" if found.policy == "greedy" else "greedy"
    print_next_step(f"autoresearch show N | autoresearch replay --policy {other}")


@main.command("import", epilog="example: autoresearch import their-results.tsv")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_file(file: Path, as_json: bool) -> None:
    """Take somebody's results.tsv into the ledger, as claims that nobody measured."""
    from autoresearch.commands import import_results

    lab = Lab.find(Path.cwd())
    found = import_results.read_results_file(file)
    with lab.hold_lock():
        ledger = Ledger(lab.ledger_path, lower_is_better=read_lower_is_better(lab))
        numbers = import_results.insert_claims(ledger, found)
        ledger.close()
    if as_json:
        print_json(import_results.import_to_json(found, numbers))
        return
    for line in import_results.format_import(found, numbers, read_metric(lab)):
        print_line(line)
    print_next_step(f"autoresearch replay --series {found.series} | autoresearch log")


@main.command(epilog="example: autoresearch replicate --pairs 8")
@click.option(
    "--pairs",
    type=AT_LEAST_ONE,
    default=8,
    show_default=True,
    help="In the ledger at the end.",
)
@json_option
def replicate(pairs: int, as_json: bool) -> None:
    """Champion against baseline on fresh seeds: does the gain come again?"""
    from autoresearch.commands import replicate as replication

    lab, made = Lab.find(Path.cwd()), 0
    with stop_on_signals(as_json) as stop:
        begun = time.monotonic()
        for pair in replication.replicate(lab, pairs, stop):
            made += 1
            each = (time.monotonic() - begun) / made
            if as_json:
                continue
            if pair.scores is None:
                print_line(f"seed {pair.seed}: {to_one_line(pair.why)}")
                continue
            first, best = pair.scores
            gained = f"{format_exact(first.value)} -> {format_exact(best.value)}"
            print_line(
                f"seed {pair.seed}  {gained}   {format.format_seconds(each)} a pair"
            )
    found = replication.load_certificate(lab)
    if found is None:
        raise NotReady("no pair was finished. Next: autoresearch replicate")
    if as_json:
        print_json(found.to_json())
        return
    for line in replication.format_replication(read_metric(lab), found):
        print_line(line)
    print_next_step("autoresearch report   (it stands on top there)")


@main.command(epilog="example: autoresearch ablate --runs 3")
@click.option(
    "--runs",
    type=AT_LEAST_ONE,
    default=3,
    show_default=True,
    help="Of the champion without it.",
)
@json_option
def ablate(runs: int, as_json: bool) -> None:
    """What is each change in the champion worth now, and which can go?"""
    from autoresearch.commands import ablate as ablation

    lab, count = Lab.find(Path.cwd()), 0
    with stop_on_signals(as_json) as stop:
        for found in ablation.ablate(lab, runs, stop):
            count += 1
            if as_json:
                print_json(found.to_json())
            else:
                print_line(ablation.format_ablation(found))
    if as_json:
        return
    if not count:
        print_line("the champion is the baseline: there is nothing to take out")
    print_next_step("autoresearch show champion | autoresearch replicate")


@contextmanager
def stop_on_signals(as_json: bool) -> Iterator[StopFlag]:
    """A Stop that Ctrl-C sets: once after what is in hand, twice now."""
    stop = StopFlag()

    def heard(number: int, frame: FrameType | None) -> None:
        stop.now, stop.soon = stop.soon, True
        if not as_json:
            print_line("stopping; what is done stays. Once more stops now")

    old = {name: signal.signal(name, heard) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)


@main.command(epilog="example: autoresearch rebuild")
def rebuild() -> None:
    """Make the ledger anew from refs/autoresearch/*, as in a fresh clone."""
    from autoresearch.git import Repository
    from autoresearch.records import rebuild as rebuild_view
    from autoresearch.records import results_tsv
    from autoresearch.run import session

    lab = Lab.find(Path.cwd())
    Repository(lab.folder).require_usable()
    with lab.hold_lock():
        queue.move_ledger_aside(lab.ledger_path)
        ledger = Ledger(lab.ledger_path)
        count = rebuild_view.rebuild_ledger(lab, ledger)
        session.forget_foreign_code(lab, ledger)
        results_tsv.write_results(
            lab.results_path, read_metric(lab), ledger.load_rows()
        )
    print_line(
        f"{count} experiments came back from git, with every score of their verdicts"
    )
    print_line(f"not in git, so not here any more: {rebuild_view.NOT_IN_GIT}")
    print_next_step("autoresearch log | autoresearch run")


@main.command("verify-ledger", epilog="example: autoresearch verify-ledger --again 17")
@click.option("--again", type=int, help="Train and score this experiment once more.")
@json_option
def verify_ledger(again: int | None, as_json: bool) -> None:
    """Is everything still as it was recorded? Rows, commits, apparatus."""
    from autoresearch.commands import verify_ledger as verifying

    found = verifying.verify(Lab.find(Path.cwd()), again)
    if as_json:
        print_json(found.to_json())
    else:
        for line in verifying.format_verification(found):
            print_line(line)
        print_next_step(
            "autoresearch rebuild   (the ledger anew from git)"
            if found.problems
            else "autoresearch verify-ledger --again N   (measure one once more)"
        )
    if found.problems:
        click.get_current_context().exit(EXIT_FAILED)


@main.command(epilog="example: autoresearch demo my-demo")
@click.argument("folder", type=click.Path(path_type=Path), default="autoresearch-demo")
@click.option("--experiments", type=COUNT, default=8, show_default=True)
def demo(folder: Path, experiments: int) -> None:
    """The whole loop in a few minutes: offline, on a CPU, on real text."""
    from autoresearch.commands import new as founding
    from autoresearch.devices import discovery
    from autoresearch.git import Repository
    from autoresearch.lab.apparatus import load_apparatus
    from autoresearch.measure.workbench import host_paths
    from autoresearch.sandbox import selftest

    with tempfile.TemporaryDirectory() as place:
        walls, missed = selftest.find_best_backend(
            host_paths(Lab(Path(place))), discovery.discover_devices()[0]
        )
    print_line(f"1/4  a lab in {folder}: three files under git")
    for line in founding.create_lab(folder, "gpt", None, None, "demo", walls.level):
        print_line(f"     {line}")
    print_line(f"     cage        {walls.level}" + (f"; {missed}" if missed else ""))
    lab = Lab.find(folder)
    print_line(
        "2/4  prepare: Python's own source code, a BPE tokenizer, three sealed splits"
    )
    load_apparatus(lab, Repository(lab.folder)).prepare_data(ProgressBar())
    print_line(
        f"3/4  the loop: a baseline, then {experiments} experiments of the optimiser"
    )
    run_session(
        lab, session.SessionOptions(experiments=experiments, seed=1), as_json=False
    )
    print_line("4/4  the morning after")
    print_line()
    print_line("$ git log --oneline")
    print_line(Repository(lab.folder).read_log(20))
    print_line()
    print_line("$ column -t results.tsv")
    print_line(lab.results_path.read_text().rstrip())
    print_line()
    print_line("$ autoresearch report")
    for line in write_report(lab)[1]:
        print_line(line)
    print_next_step(
        f"open {shlex.quote(str(lab.file_path('report.html')))} | "
        f"cd {shlex.quote(str(folder))} && autoresearch show champion | "
        "autoresearch new lab"
    )


class ProgressBar:
    """Progress of `prepare`: one line per stage, redrawn where there is a terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._started_at = 0.0
        self._drawn_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage, self._started_at = stage, time.monotonic()
        seconds = time.monotonic() - self._started_at
        share = done / total if total else 1.0
        if not sys.stdout.isatty():
            if share >= 1:
                print_line(f"     {to_one_line(stage)}: {seconds:.1f} s")
            return
        if share < 1 and time.monotonic() - self._drawn_at < 0.1:
            return
        self._drawn_at = time.monotonic()
        left = format.format_duration(seconds * (1 - share) / share) if share else "?"
        end = "\n" if share >= 1 else ""
        words = f"{seconds:.1f} s" if share >= 1 else f"{left} left"
        click.echo(
            f"\r\x1b[2K     {to_one_line(stage)} {share:4.0%}  {words}{end}", nl=False
        )


def print_program_faults(lab: Lab, said: Sequence[str] = ()) -> None:
    """What is wrong with program.md, unless that was said."""
    for words in status_view.find_program_faults(lab):
        if words not in said:
            print_line(f"note: {words}")


def open_ledger(lab: Lab) -> Ledger:
    """The lab's ledger, or NotYet. Where nothing can be written, a copy to read."""
    if not lab.ledger_path.exists():
        raise NotReady(f"{lab.folder} has no ledger yet. Next: autoresearch run")
    path = lab.ledger_path
    if not lab.is_writable:
        place = tempfile.mkdtemp(prefix="autoresearch-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        path = copy_ledger(path, Path(place))
    return Ledger(path, lower_is_better=read_lower_is_better(lab))


def read_prepare_literal(lab: Lab, name: str, default: Any) -> Any:
    """A constant of prepare.py, read without running it: views must be fast."""
    return constants.read_literal(lab.read_file("prepare.py"), name, default)


def read_metric(lab: Lab) -> str:
    """What the lab measures."""
    return str(read_prepare_literal(lab, "METRIC", "metric"))


def read_lower_is_better(lab: Lab) -> bool:
    """In which direction the metric is better."""
    return bool(read_prepare_literal(lab, "LOWER_IS_BETTER", True))
