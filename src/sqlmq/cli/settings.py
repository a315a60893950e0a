"""The options that every command has, and the queue that they name.

They may stand anywhere on the command line: ``sqlmq --url U topics list`` is ``sqlmq topics list --url U``. What stands
further right wins, and the command line wins over the environment. And the examples that every command's help ends with.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from sqlmq.mq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_URL = "sqlite:///sqlmq.db"
"""Good for trying things: a file where one stands."""

AnyCommand = TypeVar("AnyCommand", bound="Callable[..., Any]")


@dataclass(slots=True)
class Settings:
    """What the shared options said, wherever they stood."""

    url: str | None = None
    schema: str | None = None
    verbosity: int = 0
    is_url_on_command_line: bool = False
    has_logging: bool = False

    def database_url(self) -> str:
        """The database to use; says so on stderr if nobody named one."""
        if self.url is None:
            click.echo(f"Using {DEFAULT_URL}; name another database with --url or SQLMQ_URL.", err=True)
            self.url = DEFAULT_URL
        return self.url

    def open(self, **options: Any) -> MQ:  # noqa: ANN401 - passed on to MQ as they are
        """The queue, with MQ's keyword arguments *options*. To be closed by the caller."""
        return MQ(self.database_url(), schema=self.schema, **options)


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def database_options(command: AnyCommand) -> AnyCommand:
    """Add ``--url``, ``--schema`` and ``--verbose``; what they say is in the Settings of the context."""
    for option in (
        click.option(
            "-v",
            "--verbose",
            "verbosity",
            count=True,
            expose_value=False,
            callback=_keep_verbosity,
            help="Log to stderr what happens, and show tracebacks; twice for more.",
        ),
        click.option(
            "--schema",
            envvar="SQLMQ_SCHEMA",
            show_envvar=True,
            metavar="NAME",
            expose_value=False,
            callback=_keep,
            help="Schema the tables are in, on Postgres; the connection's default if not given.",
        ),
        click.option(
            "--url",
            envvar="SQLMQ_URL",
            show_envvar=True,
            metavar="URL",
            expose_value=False,
            callback=_keep,
            help=f"Database, as postgresql://user@host/name or sqlite:///file.db; {DEFAULT_URL} if not given.",
        ),
    ):
        command = option(command)
    return command


def example(*commands: str) -> str:
    """Return the end of a command's help; the backspace keeps click from joining its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def _keep(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    settings = ctx.ensure_object(Settings)
    name = str(option.name)
    is_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    if value is None or (getattr(settings, name) is not None and not is_typed):
        return
    setattr(settings, name, value)
    if name == "url":
        settings.is_url_on_command_line = is_typed


def _keep_verbosity(ctx: click.Context, _option: click.Parameter, value: int) -> None:
    settings = ctx.ensure_object(Settings)
    settings.verbosity = max(settings.verbosity, value)
    logger = logging.getLogger("sqlmq")
    if not settings.has_logging:
        settings.has_logging = True
        root, handler, level = ctx.find_root(), _ToStderr(), logger.level
        logger.addHandler(handler)
        root.call_on_close(lambda: logger.removeHandler(handler))
        root.call_on_close(lambda: logger.setLevel(level))
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(settings.verbosity, 2)])


class _ToStderr(logging.Handler):
    """Writes to whatever stderr is at that moment; the same thing several times in a row only once."""

    _last = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if text != self._last:
                self._last = text
                click.echo(f"sqlmq: {text}", err=True)
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
