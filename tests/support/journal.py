"""The journals of processes that may be killed at any moment.

A journal is a file of one process, one JSON array per line, each line written in a single call: what was written before
`kill -9` is there afterwards. Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PRODUCED, DELIVERED, COMMITTED, TROUBLE, FAILED = "produced", "delivered", "committed", "trouble", "failed"


class Journal:
    """Appends lines to a file of this process's own. May be shared by its threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def write(self, *facts: object) -> None:
        os.write(self._file, json.dumps(facts).encode() + b"\n")


class Trouble(logging.Handler):
    """Journals the library's warnings: a consumer has lost partitions, or could not reach the database."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        self._journal.write(TROUBLE, record.getMessage())


@dataclass
class Story:
    """One process's journal, read back."""

    name: str
    was_killed: bool = False
    produced: list[tuple[int, int, str]] = field(default_factory=list)
    polls: list[tuple[float, float, list[tuple[int, int, str]]]] = field(default_factory=list)
    commits: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, *, was_killed: bool = False) -> Story:
        story = cls(path.stem, was_killed)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        # The last line of a killed process can be torn.
        lines = text[: text.rfind("\n") + 1].splitlines() if was_killed else text.splitlines()
        for line in lines:
            kind, *facts = json.loads(line)
            if kind == PRODUCED:
                story.produced.append((facts[0], facts[1], facts[2]))
            elif kind == DELIVERED:
                story.polls.append((facts[0], facts[1], [(one[0], one[1], one[2]) for one in facts[2]]))
            elif kind == COMMITTED:
                story.commits.append((facts[0], {partition: offset for partition, offset in facts[1]}))  # noqa: C416
            elif kind == TROUBLE:
                story.troubles.append(facts[0])
            else:
                story.failures.append(facts[0])
        return story


def check_acknowledged(log: dict[int, list[str]], stories: Iterable[Story]) -> None:
    """Everything that was acknowledged is in *log*, where it was said to be."""
    acknowledged = [place for story in stories for place in story.produced]
    assert acknowledged
    assert [(p, o, value) for p, o, value in acknowledged if log.get(p, [])[o : o + 1] != [value]] == []
