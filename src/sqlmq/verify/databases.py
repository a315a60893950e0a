"""What a run has to know of databases by itself: what is evidence must not come through the dialects that are on trial."""

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
_OTHER = "sqlmq_verify"


def is_postgres(url: str) -> bool:
    """Whether there is a server at *url*, with schemas and sessions; else it is a file."""
    return read_url(url).get_backend_name() == "postgresql"


def tagged(url: str, tag: str) -> str:
    """*url*, by which the sessions of a run can be told from all others of the server."""
    if not is_postgres(url):
        return url
    named = read_url(url).update_query_dict({"application_name": tag})
    return named.render_as_string(hide_password=False)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection of its own, which shares nothing with what is verified, and is called otherwise."""
    parsed = read_url(url)
    if is_postgres(url):
        driver = parsed.drivername if "+" in parsed.drivername else f"{parsed.drivername}+psycopg"
        # Or the nemesis would end these sessions, too.
        parsed = parsed.set(drivername=driver).update_query_dict({"application_name": _OTHER})
    with create_engine(parsed, poolclass=NullPool).connect() as conn:
        yield conn


def microseconds_of(conn: Connection, column: str) -> str:
    """The moment in *column* as an expression for microseconds since 1970."""
    return f"extract(epoch FROM {column}) * 1000000" if conn.dialect.name == "postgresql" else column


def clock_us(engine: Engine) -> int:
    """The database's clock, in microseconds since 1970."""
    if engine.dialect.name != "postgresql":
        return (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT extract(epoch FROM clock_timestamp()) * 1000000")).scalar_one())


def moment(us: int) -> datetime:
    """The moment *us* microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=us)


def environment(url: str) -> dict[str, str]:
    """What the database is, and how it is set up."""
    with connected(url) as conn:
        if not is_postgres(url):
            return {"sqlite": str(conn.exec_driver_sql("SELECT sqlite_version()").scalar())}
        found = {name: str(conn.exec_driver_sql(f"SHOW {name}").scalar()) for name in _SETTINGS}
        return found | {"psycopg": version("psycopg")}
