"""The commands that set a lab up: `new`, `prepare`, `check` and `demo`."""

import shlex
import tempfile
import time
from pathlib import Path

import click

from autoresearch.cli.ledger_access import print_program_faults
from autoresearch.cli.reports import write_report
from autoresearch.cli.screen import ProgressBar
from autoresearch.cli.session_control import run_session
from autoresearch.cli.terminal import (
    COUNT,
    EXIT_TOO_SOON,
    HOURS,
    json_option,
    print_json,
    print_line,
    print_next_step,
)
from autoresearch.git import Repository
from autoresearch.lab.folder import Lab


@click.command(epilog="example: autoresearch new lab --text tinystories --vocab 4096")
@click.argument("lab", type=click.Path(path_type=Path))
@click.option(
    "--text",
    help="python, fineweb-edu, climbmix, tinystories, or a PATH of .txt, .jsonl or "
    ".parquet. Default: python.",
)
@click.option(
    "--vocab", type=int, help="Size of the BPE vocabulary. Default: the profile's."
)
@click.option(
    "--profile",
    type=click.Choice(["cpu", "gpu", "gpu24", "gpu12", "gpu8", "gpu4", "demo"]),
    help="Sizes of model and data. Default: chosen by the GPU's memory, or cpu.",
)
@click.option(
    "--kind",
    type=click.Choice(["gpt", "line"]),
    default="gpt",
    show_default=True,
    help="A language model, or a line fit that needs no data.",
)
def new(
    lab: Path, text: str | None, vocab: int | None, profile: str | None, kind: str
) -> None:
    """Create a lab: prepare.py, train.py and program.md, under git."""
    from autoresearch.commands.new import create_lab

    for line in create_lab(lab, kind, text, vocab, profile):
        print_line(line)
    print_next_step(f"cd {shlex.quote(str(lab))} && autoresearch prepare")


@click.command(epilog="example: autoresearch prepare")
def prepare() -> None:
    """Fetch the text, train the tokenizer, split and seal.

    Running it again changes nothing.
    """
    from autoresearch.lab.apparatus import load_apparatus

    lab = Lab.find(Path.cwd())
    repository = Repository(lab.folder)
    repository.require_usable()
    apparatus = load_apparatus(lab, repository)
    started = time.monotonic()
    apparatus.prepare_data(ProgressBar())
    seconds = time.monotonic() - started
    print_line(f"sealed {apparatus.load_fingerprint()}   ({seconds:.1f} s)")
    print_next_step("autoresearch check")


@click.command(epilog="example: autoresearch check --proposer search")
@click.option("--proposer", multiple=True, help="Instead of program.md's. Repeatable.")
@click.option(
    "--hours", type=HOURS, default=8.0, show_default=True, help="Length of the night."
)
@json_option
def check(proposer: tuple[str, ...], hours: float, as_json: bool) -> None:
    """Try everything once, in at most 90 s, and forecast the night.

    Also reads config.toml, which holds what belongs to you or this machine and not to a
    lab. It lies in $XDG_CONFIG_HOME/autoresearch (by default ~/.config/autoresearch)
    and has one setting: pool = "local" (the default), or the name of an installed
    plugin that runs experiments elsewhere.
    """
    from autoresearch.commands.check import check as check_lab

    lab = Lab.find(Path.cwd())
    result = check_lab(lab, proposer, hours)
    if as_json:
        print_json(result.to_json())
        return
    for line in result.to_lines():
        print_line(line)
    print_program_faults(lab)
    if result.has_ready_proposer:
        print_next_step(f"autoresearch run --hours {hours:g}")
        return
    print_next_step("fix the proposer errors above, then run: autoresearch check")
    click.get_current_context().exit(EXIT_TOO_SOON)


@click.command(epilog="example: autoresearch demo my-demo")
@click.argument("folder", type=click.Path(path_type=Path), default="autoresearch-demo")
@click.option(
    "--experiments",
    type=COUNT,
    default=8,
    show_default=True,
    help="Besides the baseline.",
)
def demo(folder: Path, experiments: int) -> None:
    """Run the whole loop in a few minutes: offline, on a CPU."""
    from autoresearch.commands.new import create_lab
    from autoresearch.lab.apparatus import load_apparatus
    from autoresearch.run.session import SessionOptions

    level, missing = find_cage_level()
    print_line(f"1/4  a lab in {folder}: three files under git")
    for line in create_lab(folder, "gpt", None, None, "demo", level):
        print_line(f"     {line}")
    print_line(f"     cage        {level}" + (f"; {missing}" if missing else ""))
    lab = Lab.find(folder)
    print_line(
        "2/4  the data: Python's own source code, a BPE tokenizer, three sealed splits"
    )
    load_apparatus(lab, Repository(lab.folder)).prepare_data(ProgressBar())
    print_line(
        f"3/4  the loop: a baseline, then {experiments} experiments by the optimiser"
    )
    run_session(lab, SessionOptions(experiments=experiments, seed=1), as_json=False)
    print_line("4/4  the results")
    print_results(lab)
    print_next_step(
        f"open {shlex.quote(str(lab.file_path('report.html')))} | "
        f"cd {shlex.quote(str(folder))} && autoresearch show champion | "
        "autoresearch new lab"
    )


def find_cage_level() -> tuple[str, str]:
    """The strongest sandbox level of this machine, and why no stronger one works."""
    from autoresearch.devices.discovery import discover_devices
    from autoresearch.measure.workbench import host_paths
    from autoresearch.sandbox.selftest import find_best_backend

    with tempfile.TemporaryDirectory() as place:
        backend, missing = find_best_backend(
            host_paths(Lab(Path(place))), discover_devices()[0]
        )
    return backend.level, missing


def print_results(lab: Lab) -> None:
    """What a night leaves: git log, results.tsv and the report."""
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
