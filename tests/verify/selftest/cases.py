"""What the judge must find, by name. A judge that accepts one of these cases cannot be trusted when it accepts a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlmq.verify.history import Event, Final
from sqlmq.verify.judge.verdict import judge


@dataclass(frozen=True, slots=True)
class Case:
    """A wrong history, or a broken queue that produces one."""

    name: str
    meaning: str
    """What is wrong."""
    expected: frozenset[str]
    """Codes of which at least one must be found; empty if nothing may be found."""
    happen: Callable[[Path, int], tuple[list[Event], Final | None]]
    """Produces the history in an empty directory, with a seed; returns it with the final state."""


class Checked(NamedTuple):
    """What the judge found in a case."""

    case: Case
    found: frozenset[str]
    """The codes that it found."""
    outcome: str

    @property
    def is_right(self) -> bool:
        """Whether the judge found what was expected, and nothing in a correct case."""
        if not self.case.expected:
            return not self.found and self.outcome == "valid"
        return bool(self.found & self.case.expected) and self.outcome != "valid"


def checked(case: Case, directory: Path, seed: int) -> Checked:
    """Produce the history of *case* and judge it."""
    events, final = case.happen(directory, seed)
    verdict = judge(events, final)
    return Checked(case, frozenset(verdict.findings.counts), verdict.outcome)
