"""The migration runs in the application's alembic environment, whatever driver that has, and several times at once."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from case import Case, run, shown, text_of
from sqlmq import MQ, Message, migrate

if TYPE_CHECKING:
    from sqlalchemy import URL

DRIVERS = ("psycopg", "psycopg2", "pg8000")
ASYNC_DRIVERS = ("asyncpg", "psycopg_async", "psycopg")
ISOLATION_LEVELS = ("read committed", "repeatable read", "serializable")
AT_ONCE = 4


def judge(case: Case) -> None:
    if case.is_sqlite:
        sqlite = case.server
        case.attempt("pysqlite", lambda: migrate_sqlite(sqlite.set(database=str(case.directory / "sync.db"))))
        case.attempt("aiosqlite", lambda: migrate_aiosqlite(sqlite.set(database=str(case.directory / "async.db"))))
        return
    for driver in DRIVERS:
        if find_spec(driver) is None:
            print(f"{driver} is not installed and was not tried.")
            continue
        case.attempt(driver, partial(migrate_postgres, case, driver))
    for driver in ASYNC_DRIVERS:
        case.attempt(f"{driver}, asyncio", partial(migrate_async, case, driver))
    for level in ISOLATION_LEVELS:
        with case.postgres_database() as database:
            case.execute(f"ALTER DATABASE {database.database} SET default_transaction_isolation = '{level}'")
            migrate_at_once(case, database, level)


def migrate_sqlite(database: URL) -> None:
    engine = create_engine(database)
    for step in (migrate.upgrade, migrate.downgrade, migrate.upgrade):
        with engine.begin() as connection:
            step(connection)
    use(database)


def migrate_aiosqlite(database: URL) -> None:
    asyncio.run(upgrade_async(database.set(drivername="sqlite+aiosqlite")))
    use(database)


def migrate_postgres(case: Case, driver: str) -> None:
    with case.postgres_database() as database:
        engine = create_engine(database.set(drivername=f"postgresql+{driver}"))
        with engine.begin() as connection:
            migrate.upgrade(connection)
        with engine.begin() as connection:
            migrate.check(connection)
        with engine.begin() as connection:
            migrate.upgrade(connection, schema="queue")
        use(database)
        with engine.begin() as connection:
            migrate.downgrade(connection)
        engine.dispose()


def migrate_async(case: Case, driver: str) -> None:
    with case.postgres_database() as database:
        asyncio.run(upgrade_async(database.set(drivername=f"postgresql+{driver}")))
        use(database)


async def upgrade_async(database: URL) -> None:
    engine = create_async_engine(database)
    async with engine.begin() as connection:
        await connection.run_sync(migrate.upgrade)
    async with engine.begin() as connection:
        await connection.run_sync(migrate.check)
    await engine.dispose()


def migrate_at_once(case: Case, database: URL, level: str) -> None:
    """Upgrade in several threads at once: one does it, the others find it done."""
    barrier = threading.Barrier(AT_ONCE)
    errors: list[Exception] = []

    def upgrade() -> None:
        engine = create_engine(database)
        barrier.wait()
        try:
            with engine.begin() as connection:
                migrate.upgrade(connection)
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)
        engine.dispose()

    threads = [threading.Thread(target=upgrade) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    what = f"{AT_ONCE} upgrades at once, {level} by default"
    if errors:
        case.fault(f"{what}: {len(errors)} failed: {shown(errors[0])}")
    else:
        case.attempt(what, lambda: use(database))


def use(database: URL) -> None:
    with MQ(text_of(database)) as mq:
        mq.producer("migrated").produce(Message(b"x"))
        with mq.consumer("migrated", "group") as consumer:
            consumer.consume(timeout=10)


if __name__ == "__main__":
    run(judge)
