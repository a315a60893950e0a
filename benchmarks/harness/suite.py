"""What every benchmark is given: a database, a size, and a way to measure variants side by side.

A variant is a function that does one round and returns its rate. Rounds go by turns (A B A B), so that whatever else the
machine is doing meets all of them; a ratio is taken in each round, of neighbours in time, and the median of the ratios
is what counts. A variant checks what it did before it returns.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from benchmarks.harness.databases import BenchDatabase

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROUNDS, QUICK_ROUNDS = 5, 2


@dataclass(frozen=True, slots=True)
class Rounds:
    """One figure, as often as it was measured."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def as_json(self) -> dict[str, Any]:
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": list(self.values)}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        return cls(tuple(written["rounds"]))


@dataclass(frozen=True, slots=True)
class Result:
    """What one comparison found: a rate for each variant, and ratios between them."""

    benchmark: str
    database: str
    title: str
    unit: str
    rates: dict[str, Rounds]
    ratios: dict[str, Rounds]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "database": self.database,
            "title": self.title,
            "unit": self.unit,
            "rates": {name: rounds.as_json() for name, rounds in self.rates.items()},
            "ratios": {name: rounds.as_json() for name, rounds in self.ratios.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Self:
        return cls(
            written["benchmark"],
            written["database"],
            written["title"],
            written["unit"],
            {name: Rounds.from_json(rounds) for name, rounds in written["rates"].items()},
            {name: Rounds.from_json(rounds) for name, rounds in written["ratios"].items()},
            tuple(written["notes"]),
        )


@dataclass(slots=True)
class Bench:
    """One benchmark on one database."""

    name: str
    database: BenchDatabase
    quick: bool
    show: Callable[[Result], None]
    results: list[Result] = field(default_factory=list)
    minutes: float = 10.0
    """For how long what measures time rather than messages goes on."""

    @property
    def url(self) -> str:
        return self.database.url

    @property
    def is_postgres(self) -> bool:
        return self.database.is_postgres

    @property
    def rounds(self) -> int:
        return QUICK_ROUNDS if self.quick else ROUNDS

    @property
    def warm_up_rounds(self) -> int:
        return 0 if self.quick else 1

    def scale(self, full: int, quick: int) -> int:
        """*full*, or with ``--quick`` the smaller *quick*."""
        return quick if self.quick else full

    def compare(
        self,
        title: str,
        variants: Mapping[str, Callable[[], float]],
        ratios: Mapping[str, tuple[str, str]],
        *,
        unit: str = "messages/s",
        notes: Sequence[str] = (),
    ) -> Result:
        """Measure *variants* by turns; a ratio is named, and says which variant is divided by which.

        A ratio to a variant that is not there, because it is of a package that is not installed, is left out.
        A first round, in which connections are made and caches filled, is not counted; a quick run has none.
        """
        found: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(-self.warm_up_rounds, self.rounds):
            for name, measure in variants.items():
                rate = _alone(measure)
                if number >= 0:
                    found[name].append(rate)
        rates = {name: Rounds(tuple(values)) for name, values in found.items()}
        quotients = {
            name: ratio(rates[one], rates[other])
            for name, (one, other) in ratios.items()
            if {one, other} <= rates.keys()
        }
        return self.add(title, rates, quotients, unit=unit, notes=notes)

    def add(
        self,
        title: str,
        rates: Mapping[str, Rounds],
        ratios: Mapping[str, Rounds],
        *,
        unit: str,
        notes: Sequence[str] = (),
    ) -> Result:
        """Keep, and show, what was measured in another way than by turns."""
        result = Result(self.name, self.database.kind, title, unit, dict(rates), dict(ratios), tuple(notes))
        self.results.append(result)
        self.show(result)
        return result


def _alone(measure: Callable[[], float]) -> float:
    """Run *measure* without what others have left behind for the garbage collector to look at."""
    gc.collect()
    gc.freeze()
    try:
        return measure()
    finally:
        gc.unfreeze()


def ratio(one: Rounds, other: Rounds) -> Rounds:
    """*one* divided by *other*, round by round."""
    return Rounds(tuple(a / b for a, b in zip(one.values, other.values, strict=True)))


def once(value: float) -> Rounds:
    """A figure that was measured once, because it is a count rather than a rate."""
    return Rounds((value,))
