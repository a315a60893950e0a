"""What ten minutes of load leave behind, with retention: tables no larger than after the second, and nothing lost.

The load is simulated: the messages, rounds of retention and vacuums of ten minutes follow each other without a pause. How fast
it stays is a benchmark's business (`benchmarks/cases/lasting.py`).
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine

from benchmarks.cases.lasting import BATCH, FILLED, HELD, RELEASED, Time, last
from benchmarks.harness.databases import POSTGRES, SQLITE, BenchDatabase
from sqlmq.migrate import upgrade
from tests.support.postgres_server import PostgresServer, installations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseUnderTest

TEN_MINUTES = Time(600, is_simulated=True)
# A read transaction that stays open slows SQLite down with each page that is written.
ONE_MINUTE = Time(60, is_simulated=True)
# The server counts with a delay: what was deleted since the last vacuum but one.
FEW = 2 * (TEN_MINUTES.part_batches + TEN_MINUTES.burst_batches) * BATCH


@pytest.fixture
def measured(database: DatabaseUnderTest) -> Iterator[BenchDatabase]:
    """A database of a server that nobody else uses.

    Before Postgres 16, a snapshot in any other database of the server, of another test, keeps emptied pages of our
    indexes from being used again.
    """
    if not database.is_postgres:
        yield BenchDatabase(SQLITE, database.url)
        return
    server = PostgresServer(next(installations()))
    try:
        server.start()
        with create_engine(server.url, poolclass=NullPool).begin() as connection:
            upgrade(connection)
        yield BenchDatabase(POSTGRES, server.url.render_as_string(hide_password=False))
    finally:
        server.remove()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_tables_stay_level_under_load_with_retention(measured: BenchDatabase) -> None:
    found = last(measured, TEN_MINUTES, is_held=False)

    assert found.evictions == 0
    assert median(found.size_mb[-5:]) < 1.2 * median(found.size_mb[FILLED : FILLED + 5])
    assert all(dead <= FEW for dead in found.dead_rows)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_what_an_old_snapshot_kept_is_cleared_away_when_it_ends(
    database: DatabaseUnderTest, measured: BenchDatabase
) -> None:
    found = last(measured, TEN_MINUTES if database.is_postgres else ONE_MINUTE, is_held=True)

    assert found.evictions == 0
    assert found.size_mb[RELEASED - 1] > 2 * found.size_mb[HELD + 1], "the snapshot held nothing, so this shows nothing"
    # The room is used again from then on; no file gets smaller by that.
    assert found.size_mb[-1] < 1.05 * found.size_mb[RELEASED]
    assert all(dead <= FEW for dead in found.dead_rows[RELEASED:])
