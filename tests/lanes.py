"""Two lanes: `--lane quick` leaves out what a change rarely breaks alone, `--lane all` runs everything.

The quick lane leaves out tests marked `slow` and the folders about failing processes and servers, schedules and
examples. It runs each of the other tests in the fewest combinations of a database and
a world (synchronous, asyncio) that contain both databases and both worlds. Half of the tests run with SQLite and
synchronous calls, and with Postgres and asyncio; the other half the other way round. So each test runs on both
databases and in both worlds, and each combination runs half of the tests.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, TypeGuard

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

LANES = ("quick", "all")
SLOW_FOLDERS = frozenset(("examples", "faults", "model", "schedules"))
"""Folders below tests/ that only the lane `all` runs."""

Combination = tuple[str, str]
"""A kind of database, and a world. An empty string where a test does not choose."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lane",
        choices=LANES,
        default="all",
        help="quick: one round of each test on each database, without slow tests; all: everything (the default)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not belong to the lane. Runs last, when other hooks have left out what nobody runs."""
    if config.getoption("lane") == "all":
        return
    fast = [item for item in items if not _is_slow(item)]
    kept = set(_pairwise(fast))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None or item.path.parent.name in SLOW_FOLDERS


def _pairwise(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield, for each test with each of its other parameters, the items of the combinations that `choose` chooses."""
    tests: dict[str, dict[Combination, list[pytest.Item]]] = {}
    for item in items:
        combination = _combination(item)
        tests.setdefault(_name_without(combination, item), {}).setdefault(combination, []).append(item)
    for name, combinations in tests.items():
        for combination in choose(list(combinations), offset=zlib.crc32(name.encode())):
            yield from combinations[combination]


def choose(combinations: Sequence[Combination], offset: int) -> list[Combination]:
    """Return the fewest *combinations* that contain both databases and both worlds, as far as there are both.

    *offset* decides between equally good choices, so that tests with different offsets use different ones. PgBouncer is
    chosen only for a test that runs with nothing else: it is not on every machine.
    """
    direct = [one for one in combinations if one[0] != "pgbouncer"] or list(combinations)
    wanted = _covered(direct)
    sizes = range(1, len(direct) + 1)
    covers = (list(itertools.combinations(direct, size)) for size in sizes)
    smallest = next(filter(None, ([cover for cover in some if _covered(cover) == wanted] for some in covers)))
    return list(smallest[offset % len(smallest)])


def _covered(combinations: Iterable[Combination]) -> set[str]:
    """Return the databases and worlds in *combinations*. A schema of its own and PgBouncer are still Postgres."""
    return {
        name
        for kind, world in combinations
        for name in ("sqlite" if kind == "sqlite" else "postgres" * bool(kind), world)
    }


def _combination(item: pytest.Item) -> Combination:
    parameters = item.callspec.params if _has_parameters(item) else {}
    return str(parameters.get("database", "")), str(parameters.get("way", ""))


def _name_without(combination: Combination, item: pytest.Item) -> str:
    """Return the name of the test and of its other parameters."""
    test, _, parameters = item.nodeid.partition("[")
    parameters = f"-{parameters.removesuffix(']')}-"
    for name in combination:
        parameters = parameters.replace(f"-{name}-", "-", 1)
    return test + parameters


def _has_parameters(item: pytest.Item) -> TypeGuard[pytest.Function]:
    return isinstance(item, pytest.Function) and hasattr(item, "callspec")
