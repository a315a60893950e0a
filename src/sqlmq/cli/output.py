"""Output of commands: tables for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.table import Table

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs: one object on each line, nothing else on stdout."
)
"""Adds ``--json``, which the command gets as *as_json*."""

_WIDE = 10_000
"""The width in columns if stdout is not a terminal."""
_NAMES = frozenset(("end", "first_offset", "from", "id", "offset", "partition", "position", "start", "to"))
"""Columns with numbers that name something. They are printed as a command takes them, without separators of thousands."""


def line(facts: Mapping[str, object]) -> str:
    """Return *facts* as one line of JSON, without the newline.

    Its letters are written as they are if stdout can encode all that there are.
    """
    return json.dumps(facts, ensure_ascii=not _encodes_all(sys.stdout), separators=(",", ":"))


def escape_what_stdout_cannot_encode() -> None:
    """Write an escape for each letter that the encoding of stdout lacks, as stderr does: terminals may have ASCII only."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and not _encodes_all(sys.stdout):
        reconfigure(errors="backslashreplace")


def _encodes_all(stream: IO[str]) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def show(rows: Iterable[Mapping[str, object]], columns: Sequence[str], *, as_json: bool, empty: str = "") -> None:
    """Print *rows*: all their fields as JSON, or their *columns* as a table, or *empty* on stderr if there are none.

    Numbers are aligned right, lists are joined by commas, None is a dash.
    """
    rows = list(rows)
    if as_json:
        for row in rows:
            click.echo(line(row))
    elif rows:
        put(table(rows, columns))
    elif empty:
        click.echo(empty, err=True)


def say(sentence: str, facts: Mapping[str, object], *, as_json: bool) -> None:
    """Print a single result: a *sentence* for people, or its *facts* as JSON."""
    click.echo(line(facts) if as_json else sentence)


def count(number: int, noun: str) -> str:
    """Return *number* with its noun, in the plural if needed: ``1 message``, ``2,000 messages``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def descriptor_of(stream: IO[bytes] | IO[str]) -> int | None:
    """Return the file descriptor of *stream*; None if it is an object in memory, as in tests."""
    try:
        return stream.fileno()
    except OSError:
        return None


def printable(text: str) -> str:
    """Return *text* with escapes for characters that would move the cursor or colour the screen."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> Table:
    """Return *rows* as the table of rich that ``show`` prints."""
    # Imported here: it takes 50 ms, which programs that ask for JSON save.
    from rich import box
    from rich.table import Table
    from rich.text import Text

    is_terminal = sys.stdout.isatty()
    made = Table(box=box.SIMPLE_HEAD if is_terminal else None, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        is_number = all(isinstance(row[column], int | float | None) for row in rows)
        made.add_column(column.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(_cell(row[column], is_name=column in _NAMES)) for column in columns))
    return made


def put(*parts: Table | str) -> None:
    """Print tables and texts below each other."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDE, highlight=False)
    console.print(*parts, sep="\n")


def _cell(value: object, *, is_name: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if is_name else f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(one, is_name=True) for one in value) or "-"
    return printable(str(value))


def forget_stdout() -> None:
    """Discard the buffered output: stdout has no reader, and the interpreter would fail when it flushes at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def confirm(question: str, *, yes: bool) -> None:
    """Ask *question*, unless *yes*. End the command if the answer is no, or if there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("This deletes data, and there is no terminal to ask on. Confirm with --yes.")
    click.confirm(question, abort=True, err=True)
