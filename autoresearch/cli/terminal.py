"""Exit codes, option types and output lines that the commands share."""

import json
import math
from typing import Any

import click

from autoresearch.lab.program import MAX_HOURS

EXIT_OK, EXIT_USER_ERROR, EXIT_TOO_SOON, EXIT_DISCARDED, EXIT_FAILED = 0, 2, 3, 4, 5


class FiniteFloatRange(click.FloatRange):
    """A number within bounds. NaN passes click's own comparison, so it is rejected."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


HOURS = FiniteFloatRange(0, MAX_HOURS)
SECONDS = FiniteFloatRange(0, 3600 * MAX_HOURS)
DOLLARS = FiniteFloatRange(0, 1e9)
COUNT, AT_LEAST_ONE = click.IntRange(0, 10**9), click.IntRange(1, 10**9)
SEED = click.IntRange(0, 2**63 - 1)  # what the ledger can hold
PORT = click.IntRange(1, 65535)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_line(line: str = "") -> None:
    """Print one line."""
    click.echo(line)


def print_json(value: object) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value))


def print_next_step(command: str) -> None:
    """Print what to type next."""
    print_line(f"Next: {command}")
