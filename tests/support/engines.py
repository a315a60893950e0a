"""Engines of an application on which savepoints work, also on SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.conftest import DatabaseUnderTest


def with_savepoints(url: str) -> Engine:
    engine = create_engine(url)
    let_sqlalchemy_begin(engine)
    return engine


def async_engine_with_savepoints(database: DatabaseUnderTest, driver: str, **options: Any) -> AsyncEngine:
    engine = create_async_engine(make_url(database.url).set(drivername=driver), **options)
    let_sqlalchemy_begin(engine.sync_engine)
    return engine


def let_sqlalchemy_begin(engine: Engine) -> None:
    """Keep Python's driver of SQLite from beginning transactions, which it does after a savepoint.

    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
    """
    if engine.dialect.name != "sqlite":
        return
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
