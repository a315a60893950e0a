"""What must be caught, by name. A judge that accepts one of these is not to be believed when it accepts a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlmq.verify.history import Event, Final
from sqlmq.verify.judge.verdict import judge


@dataclass(frozen=True, slots=True)
class Case:
    """A wrong history, or a broken queue that makes one."""

    name: str
    meaning: str
    """What is wrong."""
    expected: frozenset[str]
    """Codes of anomalies of which at least one has to be found; none if nothing may be."""
    happen: Callable[[Path, int], tuple[list[Event], Final | None]]
    """Bring the history about, in a directory that is empty, with a seed; return it with the state at the end."""


class Checked(NamedTuple):
    """What the judge said of a case."""

    case: Case
    found: frozenset[str]
    """The codes of what it found."""
    outcome: str

    @property
    def is_right(self) -> bool:
        """Whether the judge saw what there was to see, and nothing where there was nothing."""
        if not self.case.expected:
            return not self.found and self.outcome == "valid"
        return bool(self.found & self.case.expected) and self.outcome != "valid"


def checked(case: Case, directory: Path, seed: int) -> Checked:
    """Bring a wrong history about, and have it judged."""
    events, final = case.happen(directory, seed)
    verdict = judge(events, final)
    return Checked(case, frozenset(verdict.findings.counts), verdict.outcome)
