"""The command ``sqlmq`` itself: its subcommands, what their errors look like, and its exit codes."""

from __future__ import annotations

import sys
import traceback
from signal import SIGINT
from typing import Any

import click

# Under other names, so that `sqlmq.cli.commands.consume` is the module and not the command in it.
from sqlmq.cli.commands.consume import consume as consume_command
from sqlmq.cli.commands.db import database as database_command
from sqlmq.cli.commands.delayed import delayed as delayed_command
from sqlmq.cli.commands.doctor import doctor as doctor_command
from sqlmq.cli.commands.groups import groups as groups_command
from sqlmq.cli.commands.lag import lag as lag_command
from sqlmq.cli.commands.maintain import maintain as maintain_command
from sqlmq.cli.commands.metrics import metrics as metrics_command
from sqlmq.cli.commands.parked import parked as parked_command
from sqlmq.cli.commands.produce import produce as produce_command
from sqlmq.cli.commands.tail import tail as tail_command
from sqlmq.cli.commands.top import top as top_command
from sqlmq.cli.commands.topics import topics as topics_command
from sqlmq.cli.commands.verify import verify as verify_command
from sqlmq.cli.demo.command import demo as demo_command
from sqlmq.cli.output import escape_what_stdout_cannot_encode, forget_stdout
from sqlmq.cli.run.command import run as run_command
from sqlmq.cli.settings import Settings, database_options, example
from sqlmq.errors import SqlmqError


class Commands(click.Group):
    """Turns errors into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        """Run the command. A SqlmqError ends it with exit code 1."""
        escape_what_stdout_cannot_encode()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader closed the pipe, as in `sqlmq topics list | head -1`.
            forget_stdout()
            ctx.exit(0)
        except KeyboardInterrupt as interrupt:
            click.echo(err=True)
            ctx.exit(128 + getattr(interrupt, "signal_number", SIGINT))
        except SqlmqError as error:
            raise _failure(ctx, str(error)) from error
        except ExceptionGroup as group:
            ours, others = group.split(SqlmqError)
            if ours is None or others is not None:
                raise
            raise _failure(ctx, "\n".join(map(str, _leaves(ours)))) from group
        return result


_EXIT_CODES = """

\b
Exit codes:
  0    success
  1    an error; one line on stderr names it (-v shows the traceback)
  2    the command line is wrong
  3    `sqlmq db check`: the tables are missing, too old or too new; `sqlmq lag`: too far behind
  10+  `sqlmq doctor`: the code of the worst problem
  0-3  `sqlmq verify`: the verdict; 64 if the input cannot be read
  130  ended by Ctrl-C, in good order (143: by SIGTERM); `sqlmq run`: ended at once by a second signal"""


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example(
        "echo hello | sqlmq produce greetings",
        "sqlmq consume greetings --group readers --timeout 1",
        "sqlmq groups describe readers",
    )
    + _EXIT_CODES,
)
@click.version_option(package_name="sqlmq", message="sqlmq %(version)s")
@database_options
def main() -> None:
    """A message queue that lives in the SQL database you already have.

    Topics have partitions, and partitions have messages with offsets. The consumers of a group share the partitions and
    commit their positions. `sqlmq demo` shows all of this in ten seconds.

    The options that all commands have may stand before or after the command.
    """


for command in (
    consume_command,
    database_command,
    delayed_command,
    demo_command,
    doctor_command,
    groups_command,
    lag_command,
    maintain_command,
    metrics_command,
    parked_command,
    produce_command,
    run_command,
    tail_command,
    top_command,
    topics_command,
    verify_command,
):
    main.add_command(command)


def _failure(ctx: click.Context, message: str) -> click.ClickException:
    if ctx.ensure_object(Settings).verbosity:
        traceback.print_exc()
    return click.ClickException(message)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]
