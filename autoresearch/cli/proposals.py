"""The commands for people and agents who propose: `try`, `context`, `guide`, `mcp`."""

import time
from pathlib import Path

import click

from autoresearch.cli.ledger_access import open_ledger
from autoresearch.cli.terminal import (
    EXIT_DISCARDED,
    EXIT_FAILED,
    EXIT_OK,
    PORT,
    SECONDS,
    json_option,
    print_json,
    print_line,
    print_next_step,
)
from autoresearch.commands.queue import queue_file
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger
from autoresearch.reporting.format import format_verdict, row_to_json
from autoresearch.reporting.show import explain_missing_verdict
from autoresearch.reporting.status import load_active_program
from autoresearch.text import to_one_line

POLL_SECONDS = 0.2


@click.command(
    "try", epilog='example: autoresearch try my_train.py "gated MLP" --wait 900'
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("title")
@click.option("--by", default="", help="Your name. Default: your login.")
@click.option("--reason", default="", help="Why it might help.")
@click.option(
    "--wait", type=SECONDS, default=0.0, help="Wait this many seconds for the verdict."
)
@json_option
def try_file(
    file: Path, title: str, by: str, reason: str, wait: float, as_json: bool
) -> None:
    """Queue your own train.py as the next experiment.

    Returns at once, unless --wait is given; then the exit code is 0 if it was kept, 4
    if discarded, 5 if failed, 3 if there is no verdict yet.
    """
    lab = Lab.find(Path.cwd())
    lab.require_writable()
    ledger = open_ledger(lab)
    number, minutes = queue_file(lab, ledger, file, title, by, reason)
    if wait:
        wait_for_verdict(lab, ledger, number, wait, as_json)
    elif as_json:
        print_json({"experiment": number, "minutes": minutes})
    else:
        print_queued(lab, number, minutes)


def print_queued(lab: Lab, number: int, minutes: float) -> None:
    """Print when a queued experiment will have its verdict."""
    when = f"its verdict will come in about {minutes:.0f} min"
    if lab.find_lock_holder() is None:
        when = "nothing is running, so it waits for autoresearch run"
    elif lab.pause_path.exists():
        when = "the run is paused, so it waits for autoresearch resume"
    print_line(f"experiment {number} is queued; {when}")
    print_next_step(f"autoresearch show {number} --wait 100")


def wait_for_verdict(
    lab: Lab, ledger: Ledger, number: int, seconds: float, as_json: bool
) -> None:
    """Wait for a verdict, print it, and exit with its code. Raises NotReady."""
    deadline = time.monotonic() + seconds
    while (row := ledger.load_row(number)) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if row is None:
        raise explain_missing_verdict(lab, ledger, number)
    if as_json:
        print_json(row_to_json(row))
    else:
        print_line(format_verdict(row))
        if row.decision != "failed":  # the verdict's own line has the reason
            print_line(f"     {to_one_line(row.why)}")
        print_next_step(
            f"autoresearch show {number} | the next idea: autoresearch try ..."
        )
    code = {"keep": EXIT_OK, "discard": EXIT_DISCARDED, "failed": EXIT_FAILED}
    click.get_current_context().exit(code[row.status])


@click.command(epilog="example: autoresearch context | less")
def context() -> None:
    """Print what every proposer reads.

    That is program.md, the train.py to start from, and all that was tried so far.
    """
    from autoresearch.commands.mcp import LabTools

    print_line(LabTools(Lab.find(Path.cwd())).read_context())


@click.command(epilog="example: autoresearch guide")
def guide() -> None:
    """Tell coding agents, step by step, how to propose here."""
    from autoresearch.proposers import agent_guide

    lab = Lab.find(Path.cwd())
    running, paused = lab.find_lock_holder() is not None, lab.pause_path.exists()
    if lab.ledger_path.exists():
        program = load_active_program(lab, open_ledger(lab)).program
    else:
        program = lab.load_program()
    print_line(agent_guide.write_guide(program, running=running, paused=paused))
    print_next_step("autoresearch context" if running else "autoresearch run")


@click.command(epilog="example: autoresearch mcp my-lab --http 8765")
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option(
    "--by",
    default="mcp",
    show_default=True,
    help="The proposer's name in the ledger.",
)
@click.option(
    "--http", "port", type=PORT, help="Serve on this loopback port instead of stdio."
)
def mcp(folder: Path, by: str, port: int | None) -> None:
    """Serve the lab to clients of the Model Context Protocol."""
    from autoresearch.commands.mcp import (
        load_or_create_token,
        require_free_port,
        serve_http,
        serve_stdio,
    )

    lab = Lab.find(folder)
    if port is None:
        serve_stdio(lab, by)
        return
    load_or_create_token(lab)
    require_free_port(port)
    print_line(
        f"http://127.0.0.1:{port}/mcp, token in {lab.state_folder / 'mcp-token'}"
    )
    print_next_step(
        "give your client this address and the header Authorization: Bearer TOKEN"
    )
    serve_http(lab, by, port)
