"""The options that every command has, the queue that they name, and the examples at the end of every command's help.

The options may stand anywhere on the command line: ``sqlmq --url U topics list`` is ``sqlmq topics list --url U``. The
rightmost one wins, and the command line wins over the environment.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from sqlmq.database.engines import read_url
from sqlmq.dialects import with_application_name
from sqlmq.errors import SqlmqError
from sqlmq.model.config import MQConfig
from sqlmq.mq import MQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

DEFAULT_URL = "sqlite:///sqlmq.db"
"""A file in the current directory, for first tries."""

AnyCommand = TypeVar("AnyCommand", bound="Callable[..., Any]")


@dataclass(slots=True)
class Settings:
    """The values of the shared options, from any place on the command line."""

    url: str | None = None
    schema: str | None = None
    verbosity: int = 0
    is_url_on_command_line: bool = False
    log_handler: logging.Handler | None = None

    def given_url(self) -> str | None:
        """Return the URL that was given; None if none was. Raises click.UsageError for an empty one."""
        if self.url == "":
            fact = "--url is empty" if self.is_url_on_command_line else "SQLMQ_URL is set, but empty"
            message = f"{fact}. Give the URL of the database, or none: then it is {DEFAULT_URL}."
            raise click.UsageError(message)
        return self.url

    def database_url(self) -> str:
        """Return the URL of the database. If none was given, use the default and name it on stderr."""
        url = self.given_url()
        if url is None:
            click.echo(f"Using {DEFAULT_URL}; name another database with --url or SQLMQ_URL.", err=True)
            url = self.url = DEFAULT_URL
        return url

    def named_url(self) -> URL:
        """Return the URL of the database, with the name of this command for the server's list of connections."""
        return with_application_name(read_url(self.database_url()), _command_name(click.get_current_context()))

    def environment(self) -> dict[str, str]:
        """Return the settings as environment variables for a child process.

        A URL may have a password, and all users of the machine can read command lines.
        """
        return {"SQLMQ_URL": self.database_url()} | ({"SQLMQ_SCHEMA": self.schema} if self.schema else {})

    def log_in_short(self, *, is_wanted: bool) -> None:
        """Start or stop logging to stderr in the short format of commands that end soon."""
        logger = logging.getLogger("sqlmq")
        if self.log_handler is not None:
            logger.removeHandler(self.log_handler)
            if is_wanted:
                logger.addHandler(self.log_handler)

    def open(self, **options: Any) -> MQ:  # noqa: ANN401 - passed on to MQ as they are
        """Open the MQ with the keyword arguments *options*. The caller closes it."""
        url = self.named_url()
        try:
            return MQ(url, schema=self.schema, **options)
        except SqlmqError:
            raise
        except ValueError as error:
            raise click.ClickException(str(error)) from error


pass_settings = click.make_pass_decorator(Settings, ensure=True)


def database_options(command: AnyCommand) -> AnyCommand:
    """Add ``--url``, ``--schema`` and ``--verbose``. Their values are in the Settings of the context."""
    for option in (
        click.option(
            "-v",
            "--verbose",
            "verbosity",
            count=True,
            expose_value=False,
            callback=_keep_verbosity,
            help="Log events to stderr, and show tracebacks; twice for more.",
        ),
        click.option(
            "--schema",
            envvar="SQLMQ_SCHEMA",
            show_envvar=True,
            metavar="NAME",
            expose_value=False,
            callback=_keep,
            help="Schema of the tables, on Postgres. Default: the connection's default schema.",
        ),
        click.option(
            "--url",
            envvar="SQLMQ_URL",
            show_envvar=True,
            metavar="URL",
            expose_value=False,
            callback=_keep,
            help=f"Database, as postgresql://user@host/name or sqlite:///file.db. Default: {DEFAULT_URL}.",
        ),
    ):
        command = option(command)
    return command


lease_option = click.option(
    "--lease-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=MQConfig().lease_seconds,
    show_default=True,
    envvar="SQLMQ_LEASE_SECONDS",
    show_envvar=True,
    metavar="SECONDS",
    help="How long a member keeps its partitions after its last heartbeat.",
)
"""Adds ``--lease-seconds`` to commands that are members of groups."""


def example(*commands: str) -> str:
    """Return the end of a command's help; the backspace keeps click from joining its lines."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)


def _keep(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    settings = ctx.ensure_object(Settings)
    name = str(option.name)
    is_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    if name == "url":
        # Click takes an empty variable for none. But the variable was meant to name a database, and would name another one.
        value = os.environ.get("SQLMQ_URL") if value is None else value
    # What a shell has written, as into a secret, often ends in a newline.
    value = None if value is None else value.strip()
    if name == "schema" and not is_typed:
        value = value or None
    if value is None or (getattr(settings, name) is not None and not is_typed):
        return
    setattr(settings, name, value)
    if name == "url":
        settings.is_url_on_command_line = is_typed


def _command_name(ctx: click.Context) -> str:
    """Return the words of the command and the group it reads as: ``sqlmq run billing``."""
    group = ctx.params.get("group")
    return f"{ctx.command_path} {group}" if isinstance(group, str) else ctx.command_path


def _keep_verbosity(ctx: click.Context, _option: click.Parameter, value: int) -> None:
    settings = ctx.ensure_object(Settings)
    settings.verbosity = max(settings.verbosity, value)
    logger = logging.getLogger("sqlmq")
    if settings.log_handler is None:
        root, level = ctx.find_root(), logger.level
        settings.log_handler = _ToStderr()
        settings.log_in_short(is_wanted=True)
        root.call_on_close(lambda: settings.log_in_short(is_wanted=False))
        root.call_on_close(lambda: logger.setLevel(level))
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(settings.verbosity, 2)])


class _ToStderr(logging.Handler):
    """Writes to the present stderr. Repeated messages are written once."""

    _last = ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if text != self._last:
                self._last = text
                click.echo(f"sqlmq: {text}", err=True)
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
