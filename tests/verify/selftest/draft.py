"""A history that is being edited: finds the lines and rows that an edit needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

    from sqlmq.verify.history import Json
    from tests.verify.selftest.simulated_queue import History, Line

T = TypeVar("T")


class NotPossibleError(Exception):
    """The history has nothing that this edit could change."""


class Draft:
    """A history that is being edited, with random choices."""

    def __init__(self, history: History, chosen: random.Random) -> None:
        self.history = history
        self.chosen = chosen

    def pick(self, choices: Sequence[T]) -> T:
        """Return a random one of *choices*. Raises NotPossibleError if there is none."""
        if not choices:
            raise NotPossibleError
        return self.chosen.choice(choices)

    def lines(self, kind: str, f: str, **facts: object) -> list[Line]:
        """Return the lines of this kind in order of time."""
        return [
            line
            for line in self.history.lines
            if line["type"] == kind and line["f"] == f and all(line.get(name) == value for name, value in facts.items())
        ]

    def rows(self, row: str, **facts: object) -> list[Line]:
        """Return the rows of this kind."""
        return [
            one
            for one in self.history.rows
            if one["row"] == row and all(one.get(name) == value for name, value in facts.items())
        ]

    def completion(self, invoke: Line) -> Line | None:
        """Return the completion of *invoke*, or None."""
        completions = (one for one in self.history.lines if one.get("of") == invoke["i"] and one["p"] == invoke["p"])
        return next(completions, None)

    def pairs(self, f: str, **facts: object) -> Iterator[tuple[Line, Line]]:
        """Yield successful invocations with their completions."""
        by_number = {(line["p"], line.get("of")): line for line in self.history.lines if line["type"] == "ok"}
        for invoke in self.lines("invoke", f, **facts):
            if (ok := by_number.get((invoke["p"], invoke["i"]))) is not None:
                yield invoke, ok

    def remove(self, line: Line) -> None:
        """Remove a line or a row."""
        for lines in (self.history.lines, self.history.rows):
            lines[:] = [one for one in lines if one is not line]

    def add(self, t: int, process: str, kind: str, f: str, **fields: Json) -> int:
        """Add a line and return its number."""
        number = 1_000_000 + len(self.history.lines)
        self.history.lines.append({"i": number, "t": t, "p": process, "type": kind, "f": f, **fields})
        return number

    def row_of(self, m: object) -> Line:
        """Return the log row of a message."""
        return self.pick(self.rows("message", m=m))

    def last_row(self, topic: str, is_fit: Callable[[Line], bool] = lambda _: True) -> Line:
        """Return the last row of a random partition of the topic that *is_fit*."""
        last: dict[Json, Line] = {}
        for row in self.rows("message", topic=topic):
            last[row["partition"]] = row
        return self.pick([row for row in last.values() if is_fit(row)])

    def end(self, row: Line) -> Line:
        """Return the row with start and end of the partition of *row*."""
        return self.pick(self.rows("partition", topic=row["topic"], partition=row["partition"]))

    def acknowledged(self, f: str, **facts: object) -> list[str]:
        """Return the ids of messages of successful operations that were not rolled back with a savepoint."""
        found: list[str] = []
        for invoke, _ in self.pairs(f, **facts):
            undone = listed(invoke, "undone")
            found += [str(one["m"]) for one in messages(invoke) if one["m"] not in undone]
        return found


def messages(line: Line, name: str = "messages") -> list[dict[str, Json]]:
    """The objects in a field of *line*."""
    return [one for one in listed(line, name) if isinstance(one, dict)]


def listed(line: Line, name: str) -> list[Json]:
    """The list in a field of *line*."""
    found = line.get(name)
    return found if isinstance(found, list) else []


def number(line: dict[str, Json], name: str) -> int:
    """The number in a field of *line*."""
    found = line.get(name)
    if not isinstance(found, int):
        raise NotPossibleError
    return found
