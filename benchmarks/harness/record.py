"""Everything that a run found, as it is written to JSON and read from it, and what that says about the targets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.harness.suite import Result, Rounds
from benchmarks.harness.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


class Verdict(NamedTuple):
    """A target, and what was measured for it, if it was."""

    target: Target
    found: Rounds | None

    @property
    def is_met(self) -> bool:
        return self.found is not None and self.target.is_met(self.found.median)

    def __str__(self) -> str:
        return "not measured" if self.found is None else "met" if self.is_met else "MISSED"


@dataclass(slots=True)
class Record:
    """One run: what it was made with, what it found, and how long it took."""

    machine: dict[str, Any]
    databases: dict[str, dict[str, Any]]
    """What there is to know about each kind of database."""
    quick: bool
    taken_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    results: list[Result] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each benchmark took, on each database."""

    def write(self, path: Path) -> None:
        """Write everything, each round of it, to *path*."""
        document = {
            "taken_at": self.taken_at,
            "quick": self.quick,
            "machine": self.machine,
            "databases": self.databases,
            "results": [result.as_json() for result in self.results],
            "targets": [
                {
                    "benchmark": target.benchmark,
                    "database": target.database,
                    "figure": target.figure,
                    "wanted": str(target),
                    "found": None if found is None else found.median,
                    "met": None if found is None else target.is_met(found.median),
                }
                for target, found in verdicts(self.results)
            ],
            "seconds": self.seconds,
            "failures": self.failures,
        }
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """What ``write`` wrote. Targets are those of today."""
        written: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            written["machine"],
            written["databases"],
            written["quick"],
            written["taken_at"],
            [Result.from_json(result) for result in written["results"]],
            written["failures"],
            written["seconds"],
        )


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Each target with what was measured for it."""
    measured = {key: rounds for result in results for key, rounds in _figures(result)}
    return [Verdict(one, measured.get((one.benchmark, one.database, one.figure))) for one in TARGETS]


def target_of(result: Result, figure: str) -> Target | None:
    """What is wanted of a *figure* of *result*."""
    key = (result.benchmark, result.database, figure)
    return next((one for one in TARGETS if (one.benchmark, one.database, one.figure) == key), None)


def _figures(result: Result) -> Iterator[tuple[tuple[str, str, str], Rounds]]:
    for name, rounds in (*result.rates.items(), *result.ratios.items()):
        yield (result.benchmark, result.database, name), rounds
