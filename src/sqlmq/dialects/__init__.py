"""Every difference between databases: a package for each, behind one interface.

Outside of it, these name a database: ``schema`` (defaults of columns), ``migrations`` (views and functions),
``cli/commands/db``, ``verify/databases`` and ``verify/workload/sandbox``, and ``KINDS`` in ``tests/conftest.py``.

    base        `Dialect`: what a database must be able to do
    postgresql  Postgres, by psycopg 3
    sqlite      SQLite, by the standard library's driver

A new database is one package here, one line in the registry below, its part in these, and a run of the contract suite.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sqlmq.dialects.base import (
    ClaimedPosition,
    ClaimHolder,
    ConnectionSocket,
    Dialect,
    Listening,
    LockedRow,
    PartitionSlice,
    Position,
    TopicGrownError,
    without_secrets,
)
from sqlmq.errors import InvalidURLError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

__all__ = [
    "ClaimHolder",
    "ClaimedPosition",
    "ConnectionSocket",
    "Dialect",
    "Listening",
    "LockedRow",
    "PartitionSlice",
    "Position",
    "TopicGrownError",
    "blocking",
    "canonical",
    "dialect_named",
    "dialect_of",
    "with_application_name",
    "without_secrets",
]

# Imported on demand, because a program on SQLite needs no Postgres driver.
_REGISTRY = {"postgresql": "Postgresql", "sqlite": "Sqlite"}
_ALIASES = {"postgres": "postgresql"}


def dialect_named(backend: str, schema: str | None) -> Dialect:
    """Return the dialect for the database that SQLAlchemy calls *backend*."""
    if backend not in _REGISTRY:
        message = f"sqlmq works on {' and '.join(sorted(_REGISTRY))}, not on {backend!r}."
        raise InvalidURLError(message)
    try:
        module = import_module(f"sqlmq.dialects.{backend}.dialect")
    except ImportError as error:
        # psycopg without its binary package looks for libpq on the machine, and lists what it tried in further lines.
        fact = str(error).partition("\n")[0].rstrip(".")
        message = f"The driver can't be imported: {fact}. Install it with: pip install 'sqlmq[postgres]'"
        raise InvalidURLError(message) from error
    dialect: Dialect = getattr(module, _REGISTRY[backend])(schema)
    return dialect


def canonical(url: URL) -> URL:
    """Return *url* with SQLAlchemy's name of the database: many URLs begin with ``postgres://``."""
    backend, plus, driver = url.drivername.partition("+")
    return url.set(drivername=f"{_ALIASES.get(backend, backend)}{plus}{driver}")


def blocking(url: URL, *, is_made: bool) -> URL:
    """Return *url*, which may name the driver of an application, with our driver for the same database.

    *is_made* means that an engine for it exists. Raises InvalidURLError if only that engine can see its database.
    """
    url = canonical(url)
    dialect = dialect_named(url.get_backend_name(), None)
    if is_made and dialect.is_private(url):
        message = "Only its own engine sees a database in memory. Use a file, or give the URL instead of the engine."
        raise InvalidURLError(message)
    return dialect.blocking_url(url)


def with_application_name(url: URL, name: str) -> URL:
    """Return *url* so that its connections have *name* where the database lists them, if neither URL nor environment has one."""
    return dialect_named(url.get_backend_name(), None).with_application_name(url, name)


def dialect_of(conn: Connection, schema: str | None) -> Dialect:
    """Return the dialect for the database of *conn*."""
    return dialect_named(conn.dialect.name, schema)
