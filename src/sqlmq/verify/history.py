"""What happened in a run, as lines of JSON: written by every process of it, read by the judge.

Nothing here, and nothing that judges, knows the rest of the library. The format, event by event: docs/design/verify.md.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Type = Literal["invoke", "ok", "fail", "info", "note"]
"""``fail``: it certainly did not happen. ``info``: nobody knows. A wrong ``fail`` makes anomalies that are none."""

TYPES: tuple[Type, ...] = get_args(Type)
FINAL_FILE = "final.jsonl"
"""The name of the file that holds the state at the end; every other ``*.jsonl`` of the directory is a history."""


class HistoryError(Exception):
    """A line that is not what the format says."""


class Sent(NamedTuple):
    """A message that somebody tried to send."""

    m: str
    h: str
    n: int = 0
    key: str | None = None
    topic: str | None = None
    """Where to, if the operation does not say."""
    partition: int | None = None
    """If the sender chose it."""
    due: int | None = None
    """Microseconds of the database's clock before which it must not be in the log; None if it is not delayed."""


class Placed(NamedTuple):
    """Where a message is, as its sender was told; without an offset if it is still to be moved there."""

    m: str
    partition: int | None = None
    offset: int | None = None


class Delivered(NamedTuple):
    """A message as a group got it. *m* is None if the value says nothing that can be read."""

    partition: int
    offset: int
    m: str | None
    h: str
    key: str | None = None
    at: int | None = None
    """When it was appended: microseconds of the database's clock."""
    attempt: int | None = None


@dataclass(slots=True)
class Event:
    """One line of a history. What an event does not have is empty."""

    i: int
    t: int
    p: str
    type: Type
    f: str
    of: int | None = None
    client: str | None = None
    topic: str | None = None
    group: str | None = None
    partition: int | None = None
    messages: tuple[Sent, ...] = ()
    placed: tuple[Placed, ...] = ()
    delivered: tuple[Delivered, ...] = ()
    offsets: tuple[int, ...] = ()
    positions: Mapping[int, int] = field(default_factory=dict)
    effects: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    err: str | None = None
    sqlstate: str | None = None
    more: Mapping[str, Json] = field(default_factory=dict)
    """Every other field, as it stands there."""


class LogRow(NamedTuple):
    """A message in the log at the end."""

    topic: str
    partition: int
    offset: int
    m: str | None
    h: str
    key: str | None = None
    at: int | None = None


class ParkedRow(NamedTuple):
    """A message that a group has set aside, at the end."""

    group: str
    topic: str
    partition: int
    offset: int
    state: str
    attempts: int


class EvictionRow(NamedTuple):
    """What a group has lost to retention, as the library tells it: offsets from *start* to before *end*."""

    group: str
    topic: str
    partition: int
    kind: str
    start: int
    end: int


class ResidueRow(NamedTuple):
    """Something that must not be left when all clients are gone: sessions, locks, members, notices."""

    what: str
    left: int
    most: int


@dataclass(slots=True)
class Final:
    """The state at the end, as plain SQL has read it when all clients were gone."""

    log: list[LogRow] = field(default_factory=list)
    ends: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """By topic and partition: the oldest offset kept, and the next that will be given."""
    positions: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """By group, topic and partition."""
    effects: dict[tuple[str | None, str], int] = field(default_factory=dict)
    """By group and effect: how many rows."""
    parked: list[ParkedRow] = field(default_factory=list)
    evictions: list[EvictionRow] = field(default_factory=list)
    staged: set[str] = field(default_factory=set)
    """Ids of messages that are stored and not in the log yet."""
    residue: list[ResidueRow] = field(default_factory=list)


class Recorder:
    """Writes what one process does into a file of its own, each event by one ``write``; threads may share it.

    What was written stays when the process is killed: only the end of the line that was being written can be missing.
    """

    def __init__(self, path: Path, process: str) -> None:
        self._process = process
        self._numbers = itertools.count()
        # Numbers in the file stand in their order, whichever threads write.
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def invoke(self, f: str, **fields: object) -> int:
        """Write that *f* is about to be tried; return the number that its completion refers to."""
        return self._write("invoke", f, fields)

    def ok(self, f: str, of: int, **fields: object) -> None:
        """Write that it happened."""
        self._write("ok", f, {"of": of, **fields})

    def fail(self, f: str, of: int, err: str, **fields: object) -> None:
        """Write that it certainly did not happen: nothing of it is, or ever will be, in the database."""
        self._write("fail", f, {"of": of, "err": err, **fields})

    def info(self, f: str, of: int, err: str, **fields: object) -> None:
        """Write that nobody knows whether it happened."""
        self._write("info", f, {"of": of, "err": err, **fields})

    def note(self, f: str, **fields: object) -> int:
        """Write something that is so."""
        return self._write("note", f, fields)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, kind: Type, f: str, fields: Mapping[str, object]) -> int:
        with self._lock:
            number = next(self._numbers)
            line = {"i": number, "t": time.monotonic_ns(), "p": self._process, "type": kind, "f": f, **fields}
            data = encoded(line)
            if os.write(self._descriptor, data) != len(data):
                message = "A line of the history could be written in part only."
                raise OSError(message)
        return number


def encoded(line: Mapping[str, object]) -> bytes:
    """Write *line* as a line of JSON. Named tuples become objects, without the fields that are None."""
    return json.dumps({name: _plain(value) for name, value in line.items()}, separators=(",", ":")).encode() + b"\n"


def read(files: Iterable[Path]) -> list[Event]:
    """Read the histories of all processes, in order of time.

    A line at the end of a file that was not finished belongs to a process that was killed, and is left out. Raises
    HistoryError for any other line that is not an event.
    """
    with without_collector():
        events = [event_of(line) for path in sorted(files) for line in _lines(path)]
    # Python's sort is stable, so what a process wrote in the same nanosecond stays in its order.
    events.sort(key=lambda event: event.t)
    return events


@contextmanager
def without_collector() -> Iterator[None]:
    """Let nobody look for circles of garbage among millions of objects that all stay: that takes longer than the rest."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_directory(directory: Path) -> tuple[list[Event], Final | None]:
    """Read all that a run has left: the histories of its processes, and the state at the end, if it came that far."""
    final = directory / FINAL_FILE
    events = read(path for path in directory.glob("*.jsonl") if path.name != FINAL_FILE)
    return events, read_final(final) if final.exists() else None


def read_final(path: Path) -> Final:
    """Read the state at the end. Raises HistoryError if it is not whole: its last line has to be ``{"row": "end"}``."""
    rows = list(_lines(path))
    if not rows or rows.pop() != {"row": "end"}:
        message = f'{path} ends too early: its last line has to be {{"row": "end"}}.'
        raise HistoryError(message)
    return final_of(rows)


def event_of(line: Mapping[str, Json]) -> Event:
    """Make an event of what a line says."""
    try:
        rest = dict(line)
        kind = rest.pop("type")
        if kind not in TYPES:
            message = f"{kind!r} is no type of an event."
            raise HistoryError(message)
        return Event(
            i=_number(rest.pop("i")),
            t=_number(rest.pop("t")),
            p=_text(rest.pop("p")),
            type=kind,
            f=_text(rest.pop("f")),
            of=_number_or_none(rest.pop("of", None)),
            client=_text_or_none(rest.pop("client", None)),
            topic=_text_or_none(rest.pop("topic", None)),
            group=_text_or_none(rest.pop("group", None)),
            partition=_number_or_none(rest.pop("partition", None)),
            messages=tuple(_sent(one) for one in _objects(rest.pop("messages", None))),
            placed=tuple(_placed(one) for one in _objects(rest.pop("placed", None))),
            delivered=tuple(_delivered(one) for one in _objects(rest.pop("delivered", None))),
            offsets=tuple(_number(one) for one in _list(rest.pop("offsets", None))),
            positions={int(name): _number(to) for name, to in _object(rest.pop("positions", None)).items()},
            effects=tuple(_text(one) for one in _list(rest.pop("effects", None))),
            undone=tuple(_text(one) for one in _list(rest.pop("undone", None))),
            err=_text_or_none(rest.pop("err", None)),
            sqlstate=_text_or_none(rest.pop("sqlstate", None)),
            more=rest,
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"This is no event: {json.dumps(line)[:300]} ({type(error).__name__}: {error})"
        raise HistoryError(message) from error


def final_of(rows: Iterable[Mapping[str, Json]]) -> Final:
    """Make the state at the end of its rows."""
    final = Final()
    for row in rows:
        try:
            _add_row(final, row)
        except (KeyError, TypeError, ValueError) as error:
            message = f"This is no row: {json.dumps(row)[:300]} ({type(error).__name__}: {error})"
            raise HistoryError(message) from error
    return final


def _add_row(final: Final, row: Mapping[str, Json]) -> None:
    match row["row"]:
        case "message":
            place = _text(row["topic"]), _number(row["partition"]), _number(row["offset"])
            facts = _text_or_none(row["m"]), _text(row["h"]), _text_or_none(row.get("key"))
            final.log.append(LogRow(*place, *facts, _number_or_none(row.get("at"))))
        case "partition":
            place_of_ends = _text(row["topic"]), _number(row["partition"])
            final.ends[place_of_ends] = _number(row["start"]), _number(row["end"])
        case "position":
            whose = _text(row["group"]), _text(row["topic"]), _number(row["partition"])
            final.positions[whose] = _number(row["offset"])
        case "effect":
            final.effects[_text_or_none(row.get("group")), _text(row["m"])] = _number(row["count"])
        case "parked":
            where = _text(row["group"]), _text(row["topic"]), _number(row["partition"]), _number(row["offset"])
            final.parked.append(ParkedRow(*where, _text(row["state"]), _number(row["attempts"])))
        case "eviction":
            whose = _text(row["group"]), _text(row["topic"]), _number(row["partition"])
            final.evictions.append(EvictionRow(*whose, _text(row["kind"]), _number(row["start"]), _number(row["end"])))
        case "staged":
            final.staged.add(_text(row["m"]))
        case "residue":
            final.residue.append(ResidueRow(_text(row["what"]), _number(row["count"]), _number(row.get("most", 0))))
        case other:
            message = f"there is no row {other!r}"
            raise ValueError(message)


def _lines(path: Path) -> Iterator[dict[str, Json]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                parsed = json.loads(line)
            except ValueError as error:
                # Only the last line can lack its end: its process was killed while it wrote it.
                if not line.endswith(b"\n"):
                    return
                message = f"{path}, line {number} is no JSON: {error}"
                raise HistoryError(message) from error
            if not isinstance(parsed, dict):
                message = f"{path}, line {number} is no object."
                raise HistoryError(message)
            yield parsed


def _sent(one: Mapping[str, Json]) -> Sent:
    return Sent(
        _text(one["m"]),
        _text(one["h"]),
        _number(one.get("n", 0)),
        _text_or_none(one.get("key")),
        _text_or_none(one.get("topic")),
        _number_or_none(one.get("partition")),
        _number_or_none(one.get("due")),
    )


def _placed(one: Mapping[str, Json]) -> Placed:
    return Placed(_text(one["m"]), _number_or_none(one.get("partition")), _number_or_none(one.get("offset")))


def _delivered(one: Mapping[str, Json]) -> Delivered:
    return Delivered(
        _number(one["partition"]),
        _number(one["offset"]),
        _text_or_none(one["m"]),
        _text(one["h"]),
        _text_or_none(one.get("key")),
        _number_or_none(one.get("at")),
        _number_or_none(one.get("attempt")),
    )


def _plain(value: object) -> object:
    """*value* as JSON takes it: named tuples as objects without what is None, keys of objects as text."""
    if isinstance(value, (Sent, Placed, Delivered)):
        # A message that can't be read is told apart from one that is not told.
        return {name: one for name, one in value._asdict().items() if one is not None or name == "m"}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value


def _number(value: Json) -> int:
    if type(value) is not int:
        message = f"{value!r} is no whole number"
        raise TypeError(message)
    return value


def _number_or_none(value: Json) -> int | None:
    return None if value is None else _number(value)


def _text(value: Json) -> str:
    """*value*, which has to be text. One object for each: the same ids and hashes come again and again."""
    if not isinstance(value, str):
        message = f"{value!r} is no text"
        raise TypeError(message)
    return sys.intern(value)


def _text_or_none(value: Json) -> str | None:
    return None if value is None else _text(value)


def _list(value: Json) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        message = f"{value!r} is no list"
        raise TypeError(message)
    return value


def _object(value: Json) -> dict[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        message = f"{value!r} is no object"
        raise TypeError(message)
    return value


def _objects(value: Json) -> list[dict[str, Json]]:
    return [_object(one) for one in _list(value)]
