"""Options that several commands share, and the parsing of durations, times and sizes."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq.model.positions import Start

    AnyCommand = TypeVar("AnyCommand", bound=Callable[..., object] | click.Command)

_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_DELAY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(k|m|g|t)?i?b?", re.ASCII)
_UNIT_BYTES = {None: 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def read_delay(_ctx: click.Context, _option: click.Parameter, typed: str | None) -> float | None:
    """Parse a duration such as ``90``, ``10m`` or ``1.5h`` into seconds."""
    if typed is None:
        return None
    found = _DELAY.fullmatch(typed.strip().lower())
    if found is None or found[2] not in _UNIT_SECONDS:
        raise click.BadParameter(
            f"{typed!r} is not a duration. Write seconds, or a number with s, m, h, d or w, as in 1.5h."
        )
    return float(found[1]) * _UNIT_SECONDS[found[2]]


def read_moment(_ctx: click.Context, _option: click.Parameter, typed: str | None) -> datetime | None:
    """Parse a time in ISO 8601 with an offset from UTC."""
    if typed is None:
        return None
    try:
        moment = datetime.fromisoformat(typed.strip())
    except ValueError:
        raise click.BadParameter(f"{typed!r} is not a time in ISO 8601. Write 2030-01-31T08:00:00+01:00.") from None
    if moment.utcoffset() is None:
        raise click.BadParameter(f"{typed!r} has no offset from UTC. Add one, such as +01:00, or Z for UTC.")
    return moment


def read_start(context: click.Context, option: click.Parameter, typed: str) -> Start:
    """Parse the start of a new group: ``earliest``, ``latest`` or a time in ISO 8601."""
    if typed == "earliest":
        return "earliest"
    if typed == "latest":
        return "latest"
    moment = read_moment(context, option, typed)
    assert moment is not None  # noqa: S101 - the option has a default
    return moment


def read_size(_ctx: click.Context, _option: click.Parameter, typed: str | None) -> int | None:
    """Parse a size such as ``5000``, ``500MB`` or ``1.5g`` into bytes."""
    if typed is None:
        return None
    found = _SIZE.fullmatch(typed.strip().lower())
    if found is None:
        raise click.BadParameter(
            f"{typed!r} is not a size. Write bytes, or a number with kB, MB, GB or TB, as in 500MB."
        )
    return int(float(found[1]) * _UNIT_BYTES[found[2]])


def reader_options(command: AnyCommand) -> AnyCommand:
    """Add the options of commands that print messages: ``--limit``, ``--timeout``, ``--format`` and ``--json``."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Write each message as a JSON object on a line."),
        click.option(
            "-f",
            "--format",
            "pattern",
            metavar="FORMAT",
            help="Write each message in this format: %t topic, %p partition, %o offset, %k key, %v or %s value, "
            "%h headers, %T timestamp in milliseconds since 1970, %K and %S length of key and value, %% and "
            "\\n \\t \\r \\0 \\\\ \\xFF. No newline is added.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="End, with exit code 0, when no message has arrived for SECONDS; 0 reads once. Never by default.",
        ),
        click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="End after N messages."),
    ):
        command = option(command)
    return command


def watch_options(seconds: float) -> Callable[[AnyCommand], AnyCommand]:
    """Add ``--interval`` and ``--once`` to a command that repeats its work every *seconds* by default."""

    def add(command: AnyCommand) -> AnyCommand:
        once = click.option("--once", is_flag=True, help="Run once, then end.")
        interval = click.option(
            "--interval",
            type=click.FloatRange(min=0, min_open=True),
            default=seconds,
            show_default=True,
            metavar="SECONDS",
            help="The time between two rounds.",
        )
        return interval(once(command))

    return add


start_option = click.option(
    "--start",
    callback=read_start,
    default="earliest",
    show_default=True,
    metavar="earliest|latest|TIME",
    help="Where a new group begins; a TIME is in ISO 8601. An existing group continues where it was.",
)
"""Adds ``--start``."""

on_evicted_option = click.option(
    "--on-evicted",
    type=click.Choice(["raise", "earliest"]),
    default="raise",
    show_default=True,
    help="If retention deleted messages that the group had not read: end with an error, or continue with the earliest.",
)
"""Adds ``--on-evicted``."""

yes_option = click.option("--yes", is_flag=True, help="Do not ask. Required without a terminal.")
"""Adds ``--yes`` to commands that delete data."""
