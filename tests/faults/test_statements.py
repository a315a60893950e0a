"""Each statement of each operation fails, the first, then the second, until one ends before its fault is reached."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from sqlmq import runner
from sqlmq.dialects import postgresql_appending
from tests.conftest import database_of_kind
from tests.faults.cases import Report, every_case
from tests.faults.consuming import CONSUMING, DECIDING, RUNNING, TRANSACTIONS
from tests.faults.scenes import IN_SESSIONS, LOOKS, MANAGING, PRODUCING
from tests.faults.wire import POSTGRES_FAULTS, SQLITE_FAULTS, wired
from tests.faults.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest
    from tests.faults.world import Scene

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DatabaseUnderTest]:
    with database_of_kind(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture(params=["sync", "asyncio"])
def world(
    database: DatabaseUnderTest, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(postgresql_appending, "ARRAY_MESSAGES", 6)
    monkeypatch.setattr(runner, "_RECOVER_SECONDS", 0.01)
    monkeypatch.setattr(runner, "_WATCH_SECONDS", 0.01)
    logging.getLogger("sqlmq").setLevel(logging.CRITICAL)
    with wired():
        made = World(database, request.param)
        made.mq.consumer("feed", "watched")
        yield made
        made.close()
    logging.getLogger("sqlmq").setLevel(logging.NOTSET)


def try_all(world: World, scenes: tuple[type[Scene], ...]) -> None:
    faults = POSTGRES_FAULTS if world.database.is_postgres else SQLITE_FAULTS
    report = Report()
    for number, scene in enumerate(scenes):
        turned = faults[number % len(faults) :] + faults[: number % len(faults)]
        every_case(world, scene, turned, report=report)
    print(report)
    assert report.wrong == [], "\n" + "\n".join(report.wrong)


def test_producing(world: World) -> None:
    try_all(world, PRODUCING)


def test_messages_in_the_applications_transaction(world: World) -> None:
    if world.way == "sync":
        try_all(world, IN_SESSIONS)


def test_looking(world: World) -> None:
    try_all(world, LOOKS)


def test_managing(world: World) -> None:
    try_all(world, MANAGING)


def test_consuming(world: World) -> None:
    try_all(world, CONSUMING)


def test_transactions(world: World) -> None:
    if world.way == "sync":
        try_all(world, TRANSACTIONS)


def test_running(world: World) -> None:
    try_all(world, RUNNING)


def test_deciding(world: World) -> None:
    try_all(world, DECIDING)
