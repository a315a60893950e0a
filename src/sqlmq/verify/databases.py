"""Access to the database without the library's dialects, because evidence must not depend on the code under test."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlalchemy import Connection, NullPool, create_engine, text

from sqlmq.database.engines import read_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "default_transaction_isolation",
)
_OBSERVER = "sqlmq_verify"


def is_postgres(url: str) -> bool:
    """Whether *url* is a Postgres server; otherwise it is a SQLite file."""
    return read_url(url).get_backend_name() == "postgresql"


def tagged(url: str, tag: str) -> str:
    """Return *url* with ``application_name`` set to *tag*, which identifies the sessions of a run."""
    if not is_postgres(url):
        return url
    named = read_url(url).update_query_dict({"application_name": tag})
    return named.render_as_string(hide_password=False)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Open a connection that shares nothing with the library and does not carry the run's tag."""
    parsed = read_url(url)
    if is_postgres(url):
        driver = parsed.drivername if "+" in parsed.drivername else f"{parsed.drivername}+psycopg"
        # The nemesis terminates sessions that carry the run's tag.
        parsed = parsed.set(drivername=driver).update_query_dict({"application_name": _OBSERVER})
    with create_engine(parsed, poolclass=NullPool).connect() as conn:
        yield conn


def microseconds_of(conn: Connection, column: str) -> str:
    """Return an SQL expression for *column* in microseconds since 1970."""
    return f"extract(epoch FROM {column}) * 1000000" if conn.dialect.name == "postgresql" else column


def clock_us(engine: Engine) -> int:
    """Read the database's clock, in microseconds since 1970."""
    if engine.dialect.name != "postgresql":
        return (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")).scalar_one())


def moment(us: int) -> datetime:
    """Return *us* microseconds after 1970 as a datetime."""
    return _EPOCH + timedelta(microseconds=us)


def environment(url: str) -> dict[str, str]:
    """Return the version and the settings of the database, for the report."""
    with connected(url) as conn:
        if not is_postgres(url):
            return {"sqlite": str(conn.exec_driver_sql("SELECT sqlite_version()").scalar())}
        found = {name: str(conn.exec_driver_sql(f"SHOW {name}").scalar()) for name in _SETTINGS}
        return found | {"psycopg": version("psycopg")}
