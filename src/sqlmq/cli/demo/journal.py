"""The journals of the demo's processes, and the check that compares them.

Each process appends a line to its own file for every message: a producer after the acknowledgement, a consumer after
handling. A line is one ``write``, so it is complete even if the process is killed right after. All processes of a
machine share the monotonic clock, which orders the lines of several files.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Place = tuple[int, int]
"""Partition and offset."""


class Entry(NamedTuple):
    """A message that a process recorded."""

    at_ns: int
    partition: int
    offset: int
    key: str
    number: int
    """Counts the messages of a key, from 0."""

    @property
    def place(self) -> Place:
        """The place of the message in the topic."""
        return self.partition, self.offset


class Log:
    """A file that one process appends to."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, entries: Iterable[tuple[int, int, str, int]]) -> None:
        """Append *entries*: partition, offset, key and number."""
        now = time.monotonic_ns()
        os.write(self._file, "".join(f"{now} {p} {o} {key} {number}\n" for p, o, key, number in entries).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def read(path: Path) -> list[Entry]:
    """Return the entries of a process; an empty list if it has written none."""
    if not path.exists():
        return []
    entries = []
    for text in path.read_text(encoding="utf-8").splitlines():
        at_ns, partition, offset, key, number = text.split(" ")
        entries.append(Entry(int(at_ns), int(partition), int(offset), key, int(number)))
    return entries


@dataclass(frozen=True, slots=True)
class JournalCheck:
    """The counts of lost, unknown, misordered and repeated messages of a group."""

    group: str
    handled: int
    """Different messages that were handled."""
    lost: int
    """Acknowledged to a producer and never handled."""
    unknown: int
    """Handled, but not recorded by a producer."""
    out_of_order: int
    """Messages of a key whose first delivery came before that of an earlier one."""
    again_after_kill: int
    """Delivered again because the killed consumer had not committed them."""
    again_otherwise: int
    """Delivered again for another reason, for example because a slow consumer lost its lease."""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, unknown or out of order."""
        return not (self.lost or self.unknown or self.out_of_order)


def judge(
    group: str, produced: Iterable[Entry], handled: Mapping[str, list[Entry]], killed: str | None
) -> JournalCheck:
    """Compare acknowledged messages with those that the members of *group* handled. *killed* is the killed member."""
    places = {entry.place for entry in produced}
    everything = sorted(entry for entries in handled.values() for entry in entries)
    first: dict[Place, Entry] = {}
    for entry in everything:
        first.setdefault(entry.place, entry)
    again = Counter(entry.place for entry in everything)
    killed_had = {entry.place for entry in handled.get(killed or "", [])}
    after_kill = sum(1 for place, times in again.items() if times > 1 and place in killed_had)
    return JournalCheck(
        group=group,
        handled=len(first),
        lost=len(places - first.keys()),
        unknown=len(first.keys() - places),
        out_of_order=_out_of_order(first.values()),
        again_after_kill=after_kill,
        again_otherwise=len(everything) - len(first) - after_kill,
    )


def _out_of_order(entries: Iterable[Entry]) -> int:
    """Count the *entries*, in order of time, that come after a later message of their key."""
    newest: dict[str, int] = {}
    wrong = 0
    for entry in entries:
        wrong += entry.number < newest.get(entry.key, -1)
        newest[entry.key] = max(entry.number, newest.get(entry.key, -1))
    return wrong
