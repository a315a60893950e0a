"""The history of a run as lines of JSON: written by each of its processes, read by the judge.

Neither this module nor the judge imports the rest of the library. docs/design/verify.md specifies each event.
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
"""``fail``: the operation certainly did not happen. ``info``: the outcome is unknown. A wrong ``fail`` causes false anomalies."""

TYPES: tuple[Type, ...] = get_args(Type)
FINAL_FILE = "final.jsonl"
"""The file with the final state. Every other ``*.jsonl`` in the directory is a history."""


class HistoryError(Exception):
    """A line or a file does not follow the format."""


class Sent(NamedTuple):
    """A message that a client tried to send."""

    m: str
    h: str
    n: int = 0
    key: str | None = None
    topic: str | None = None
    """The topic, if the operation does not name it."""
    partition: int | None = None
    """The partition, if the sender chose it."""
    due: int | None = None
    """When a delayed message is due, in microseconds of the database's clock. It must not be in the log before."""


class Placed(NamedTuple):
    """The partition and offset that the sender received; without an offset if the message is appended later."""

    m: str
    partition: int | None = None
    offset: int | None = None


class Delivered(NamedTuple):
    """A message as a group received it. *m* is None if the value has no readable id."""

    partition: int
    offset: int
    m: str | None
    h: str
    key: str | None = None
    at: int | None = None
    """When it was appended, in microseconds of the database's clock."""
    attempt: int | None = None


@dataclass(slots=True)
class Event:
    """One line of a history. Fields that an event does not have are empty."""

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
    """All other fields, as they are in the line."""


class FinalMessage(NamedTuple):
    """A message in the log at the end of the run."""

    topic: str
    partition: int
    offset: int
    m: str | None
    h: str
    key: str | None = None
    at: int | None = None


class FinalParked(NamedTuple):
    """A message that a group has parked, at the end of the run."""

    group: str
    topic: str
    partition: int
    offset: int
    state: str
    attempts: int


class FinalEviction(NamedTuple):
    """An eviction that the library recorded: the offsets from *start* to before *end*."""

    group: str
    topic: str
    partition: int
    kind: str
    start: int
    end: int


class FinalResidue(NamedTuple):
    """Something that must not remain when all clients are gone: sessions, locks, members."""

    what: str
    remaining: int
    most: int


@dataclass(slots=True)
class Final:
    """The final state, read with plain SQL when all clients were gone."""

    log: list[FinalMessage] = field(default_factory=list)
    ends: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """By topic and partition: the oldest offset that is kept, and the next offset."""
    positions: dict[tuple[str, str, int], int] = field(default_factory=dict)
    """By group, topic and partition."""
    effects: dict[tuple[str | None, str], int] = field(default_factory=dict)
    """By group and effect: the number of rows."""
    parked: list[FinalParked] = field(default_factory=list)
    evictions: list[FinalEviction] = field(default_factory=list)
    staged: set[str] = field(default_factory=set)
    """Ids of messages that are staged, not yet in the log."""
    residue: list[FinalResidue] = field(default_factory=list)


class Recorder:
    """Writes the events of one process to its own file, each with one ``write``. Threads may share it.

    When the process is killed, only the end of the line that is being written can be missing.
    """

    def __init__(self, path: Path, process: str) -> None:
        self._process = process
        self._numbers = itertools.count()
        # Threads must write their lines in the order of their numbers.
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def invoke(self, f: str, **fields: object) -> int:
        """Record the start of operation *f*; return the number that its completion refers to."""
        return self._write("invoke", f, fields)

    def ok(self, f: str, of: int, **fields: object) -> None:
        """Record that operation *of* succeeded."""
        self._write("ok", f, {"of": of, **fields})

    def fail(self, f: str, of: int, err: str, **fields: object) -> None:
        """Record that operation *of* failed: nothing of it is, or ever will be, in the database."""
        self._write("fail", f, {"of": of, "err": err, **fields})

    def info(self, f: str, of: int, err: str, **fields: object) -> None:
        """Record that the outcome of operation *of* is unknown."""
        self._write("info", f, {"of": of, "err": err, **fields})

    def note(self, f: str, **fields: object) -> int:
        """Record a fact that is not an operation."""
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
                message = "Only a part of a line could be written to the history."
                raise OSError(message)
        return number


def encoded(line: Mapping[str, object]) -> bytes:
    """Encode *line* as a line of JSON. Named tuples become objects without the fields that are None."""
    return json.dumps({name: _plain(value) for name, value in line.items()}, separators=(",", ":")).encode() + b"\n"


def read(files: Iterable[Path]) -> list[Event]:
    """Read the histories of all processes, in order of time.

    An unfinished line at the end of a file was written by a process that was killed, and is ignored. Raises HistoryError
    for any other line that is not an event.
    """
    with without_collector():
        events = [event_of(line) for path in sorted(files) for line in _lines(path)]
    # The sort is stable, so the events of a process in the same nanosecond keep their order.
    events.sort(key=lambda event: event.t)
    return events


@contextmanager
def without_collector() -> Iterator[None]:
    """Disable the garbage collector: scanning millions of objects that all stay takes longer than the judging itself."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_directory(directory: Path) -> tuple[list[Event], Final | None]:
    """Read the histories of a run, and its final state if the run has written it."""
    final = directory / FINAL_FILE
    events = read(path for path in directory.glob("*.jsonl") if path.name != FINAL_FILE)
    return events, read_final(final) if final.exists() else None


def read_final(path: Path) -> Final:
    """Read the final state. Raises HistoryError if the file is incomplete: its last line must be ``{"row": "end"}``."""
    rows = list(_lines(path))
    if not rows or rows.pop() != {"row": "end"}:
        message = f'{path} is incomplete: its last line must be {{"row": "end"}}.'
        raise HistoryError(message)
    return final_of(rows)


def event_of(line: Mapping[str, Json]) -> Event:
    """Parse one line. Raises HistoryError."""
    try:
        rest = dict(line)
        kind = rest.pop("type")
        if kind not in TYPES:
            message = f"{kind!r} is not a type of event."
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
        message = f"Not an event: {json.dumps(line)[:300]} ({type(error).__name__}: {error})"
        raise HistoryError(message) from error


def final_of(rows: Iterable[Mapping[str, Json]]) -> Final:
    """Build the final state from its rows. Raises HistoryError."""
    final = Final()
    for row in rows:
        try:
            _add_row(final, row)
        except (KeyError, TypeError, ValueError) as error:
            message = f"Not a row: {json.dumps(row)[:300]} ({type(error).__name__}: {error})"
            raise HistoryError(message) from error
    return final


def _add_row(final: Final, row: Mapping[str, Json]) -> None:
    match row["row"]:
        case "message":
            place = _text(row["topic"]), _number(row["partition"]), _number(row["offset"])
            facts = _text_or_none(row["m"]), _text(row["h"]), _text_or_none(row.get("key"))
            final.log.append(FinalMessage(*place, *facts, _number_or_none(row.get("at"))))
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
            final.parked.append(FinalParked(*where, _text(row["state"]), _number(row["attempts"])))
        case "eviction":
            whose = _text(row["group"]), _text(row["topic"]), _number(row["partition"])
            final.evictions.append(
                FinalEviction(*whose, _text(row["kind"]), _number(row["start"]), _number(row["end"]))
            )
        case "staged":
            final.staged.add(_text(row["m"]))
        case "residue":
            final.residue.append(FinalResidue(_text(row["what"]), _number(row["count"]), _number(row.get("most", 0))))
        case other:
            message = f"unknown kind of row {other!r}"
            raise ValueError(message)


def _lines(path: Path) -> Iterator[dict[str, Json]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                parsed = json.loads(line)
            except ValueError as error:
                # Only the last line can be unfinished, if its process was killed while writing it.
                if not line.endswith(b"\n"):
                    return
                message = f"{path}, line {number} is not JSON: {error}"
                raise HistoryError(message) from error
            if not isinstance(parsed, dict):
                message = f"{path}, line {number} is not an object."
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
    """Convert *value* for JSON: named tuples to objects without None fields, keys to strings."""
    if isinstance(value, (Sent, Placed, Delivered)):
        # A None id means that the value was unreadable, so it must be written.
        return {name: one for name, one in value._asdict().items() if one is not None or name == "m"}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value


def _number(value: Json) -> int:
    if type(value) is not int:
        message = f"{value!r} is not an integer"
        raise TypeError(message)
    return value


def _number_or_none(value: Json) -> int | None:
    return None if value is None else _number(value)


def _text(value: Json) -> str:
    """Return *value* interned, because the same ids and hashes occur many times. Raises TypeError unless it is a string."""
    if not isinstance(value, str):
        message = f"{value!r} is not a string"
        raise TypeError(message)
    return sys.intern(value)


def _text_or_none(value: Json) -> str | None:
    return None if value is None else _text(value)


def _list(value: Json) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        message = f"{value!r} is not a list"
        raise TypeError(message)
    return value


def _object(value: Json) -> dict[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        message = f"{value!r} is not an object"
        raise TypeError(message)
    return value


def _objects(value: Json) -> list[dict[str, Json]]:
    return [_object(one) for one in _list(value)]
