"""The command `autoresearch`: its group, its help and its exit codes.

Exit codes: 0 done or kept, 2 your input, 3 too soon, 4 discarded, 5 failed
(docs/how-it-works.md). Every command ends by saying what to type next. The commands
decide nothing themselves: `commands` and the rooms below it do.
"""

import errno
from typing import Any

import click

from autoresearch import __version__
from autoresearch.cli import (
    lab_setup,
    proposals,
    reports,
    session_control,
    verification,
)
from autoresearch.cli.terminal import EXIT_TOO_SOON, EXIT_USER_ERROR
from autoresearch.errors import LabError, NotReady

# Operating system errors that a person can fix. Any other OSError is our bug.
USER_FIXABLE_ERRNOS = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)

DAILY_COMMANDS = (  # in the order of a day
    lab_setup.new,
    lab_setup.check,
    session_control.run,
    proposals.try_file,
    reports.log,
    reports.report,
    verification.replicate,
)
MORE_COMMANDS = (
    lab_setup.demo,
    lab_setup.prepare,
    session_control.status,
    session_control.stop,
    session_control.pause,
    session_control.resume,
    reports.show,
    proposals.context,
    proposals.guide,
    proposals.mcp,
    verification.ablate,
    reports.replay,
    verification.import_file,
    verification.verify_ledger,
    verification.rebuild,
)


class CommandGroup(click.Group):
    """Commands in a fixed order; a user's mistake is one sentence and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Two lists: the commands of a day, then all others."""
        width = max(map(len, self.commands))
        for title, commands in (("Commands", DAILY_COMMANDS), ("More", MORE_COMMANDS)):
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (
                            str(command.name).ljust(width),
                            command.get_short_help_str(formatter.width - width),
                        )
                        for command in commands
                    ]
                )

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
            path = f"{error.filename}: " if error.filename else ""
            click.echo(
                f"autoresearch: {path}{error.strerror}. Next: make it writable or free "
                "some space, or git clone the lab to another folder",
                err=True,
            )
            ctx.exit(EXIT_USER_ERROR)


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoresearch")
def main() -> None:
    """Let an agent improve your train.py overnight, and learn which gains are real.

    \b
    autoresearch demo                     everything at once, offline, on a CPU
    autoresearch new lab && cd lab        a lab of your own
    autoresearch prepare && autoresearch check && autoresearch run --hours 8
    autoresearch report                   in the morning
    """


for command in (*DAILY_COMMANDS, *MORE_COMMANDS):
    main.add_command(command)
