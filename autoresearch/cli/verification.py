"""The commands that test results and mend records: `replicate`, `ablate` ..."""

import time
from pathlib import Path

import click

from autoresearch.cli.ledger_access import read_lower_is_better, read_metric
from autoresearch.cli.screen import stop_on_signals
from autoresearch.cli.terminal import (
    AT_LEAST_ONE,
    EXIT_FAILED,
    json_option,
    print_json,
    print_line,
    print_next_step,
)
from autoresearch.errors import NotReady
from autoresearch.lab.folder import Lab
from autoresearch.records.ledger import Ledger
from autoresearch.reporting.format import format_seconds
from autoresearch.text import format_exact, to_one_line


@click.command(epilog="example: autoresearch replicate --pairs 8")
@click.option(
    "--pairs",
    type=AT_LEAST_ONE,
    default=8,
    show_default=True,
    help="Pairs in the ledger at the end, earlier ones included.",
)
@json_option
def replicate(pairs: int, as_json: bool) -> None:
    """Rerun champion and baseline on fresh seeds. Does the gain hold?"""
    from autoresearch.commands import replicate as command

    lab, pair_count = Lab.find(Path.cwd()), 0
    with stop_on_signals(as_json) as stop:
        started = time.monotonic()
        for pair in command.replicate(lab, pairs, stop):
            pair_count += 1
            each = format_seconds((time.monotonic() - started) / pair_count)
            if as_json:
                continue
            if pair.scores is None:
                print_line(f"seed {pair.seed}: {to_one_line(pair.why)}")
                continue
            baseline, champion = (format_exact(score.value) for score in pair.scores)
            print_line(f"seed {pair.seed}  {baseline} -> {champion}   {each} a pair")
    certificate = command.load_certificate(lab)
    if certificate is None:
        raise NotReady("no pair has finished. Next: autoresearch replicate")
    if as_json:
        print_json(certificate.to_json())
        return
    for line in command.format_replication(read_metric(lab), certificate):
        print_line(line)
    print_next_step("autoresearch report   (now begins with this result)")


@click.command(epilog="example: autoresearch ablate --runs 3")
@click.option(
    "--runs",
    type=AT_LEAST_ONE,
    default=3,
    show_default=True,
    help="Runs of the champion without each change.",
)
@json_option
def ablate(runs: int, as_json: bool) -> None:
    """Measure what each of the champion's changes is worth now.

    Each is removed alone. A removal that does no harm becomes champion.
    """
    from autoresearch.commands.ablate import ablate as ablate_champion
    from autoresearch.commands.ablate import format_ablation

    lab, count = Lab.find(Path.cwd()), 0
    with stop_on_signals(as_json) as stop:
        for result in ablate_champion(lab, runs, stop):
            count += 1
            if as_json:
                print_json(result.to_json())
            else:
                print_line(format_ablation(result))
    if as_json:
        return
    if not count:
        print_line("the champion is the baseline: there is nothing to remove")
    print_next_step("autoresearch show champion | autoresearch replicate")


@click.command("verify-ledger", epilog="example: autoresearch verify-ledger --again 17")
@click.option("--again", type=int, help="Train and score this experiment once more.")
@json_option
def verify_ledger(again: int | None, as_json: bool) -> None:
    """Check that rows, commits and data are still as recorded."""
    from autoresearch.commands.verify_ledger import format_verification, verify

    result = verify(Lab.find(Path.cwd()), again)
    if as_json:
        print_json(result.to_json())
    else:
        for line in format_verification(result):
            print_line(line)
        print_next_step(
            "autoresearch rebuild   (recreates the ledger from git)"
            if result.problems
            else "autoresearch verify-ledger --again N   (measures one once more)"
        )
    if result.problems:
        click.get_current_context().exit(EXIT_FAILED)


@click.command(epilog="example: autoresearch rebuild")
def rebuild() -> None:
    """Recreate the ledger from git, as in a fresh clone."""
    from autoresearch.commands.queue import move_ledger_aside
    from autoresearch.git import Repository
    from autoresearch.records.rebuild import NOT_IN_GIT, rebuild_ledger
    from autoresearch.records.results_tsv import write_results
    from autoresearch.run.session import forget_foreign_code

    lab = Lab.find(Path.cwd())
    Repository(lab.folder).require_usable()
    with lab.hold_lock():
        move_ledger_aside(lab.ledger_path)
        ledger = Ledger(lab.ledger_path)
        count = rebuild_ledger(lab, ledger)
        forget_foreign_code(lab, ledger)
        write_results(lab.results_path, read_metric(lab), ledger.load_rows())
    print_line(f"{count} experiments restored from git, with every score they had")
    print_line(f"not in git, so lost: {NOT_IN_GIT}")
    print_next_step("autoresearch log | autoresearch run")


@click.command("import", epilog="example: autoresearch import their-results.tsv")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def import_file(file: Path, as_json: bool) -> None:
    """Add another lab's results.tsv, as claims not measured here."""
    from autoresearch.commands.import_results import (
        format_import,
        import_to_json,
        insert_claims,
        read_results_file,
    )

    lab = Lab.find(Path.cwd())
    results = read_results_file(file)
    with lab.hold_lock():
        ledger = Ledger(lab.ledger_path, lower_is_better=read_lower_is_better(lab))
        numbers = insert_claims(ledger, results)
        ledger.close()
    if as_json:
        print_json(import_to_json(results, numbers))
        return
    for line in format_import(results, numbers, read_metric(lab)):
        print_line(line)
    print_next_step(f"autoresearch replay --series {results.series} | autoresearch log")
