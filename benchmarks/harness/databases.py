"""The databases that are measured: a Postgres of our own that writes to the disk as it should, and a SQLite file."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, make_url

from sqlmq.migrate import upgrade
from tests.support.postgres_server import provide

if TYPE_CHECKING:
    from collections.abc import Iterator

POSTGRES, SQLITE = "Postgres", "SQLite"

PEER_PACKAGES = ("pgmq", "pgqueuer", "asyncpg", "procrastinate", "huey", "litequeue")

# What decides how fast a commit can be, and who else has a say.
SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
)


@dataclass(slots=True)
class BenchDatabase:
    """A database with the queue's tables, and what there is to know about it."""

    kind: str
    url: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_postgres(self) -> bool:
        return self.kind == POSTGRES

    @property
    def path(self) -> str:
        """The file of a SQLite database."""
        return str(make_url(self.url).database)

    @property
    def conninfo(self) -> str:
        """How psycopg, or any other client of libpq, is told where the server is."""
        return make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of psycopg's own, each statement of which commits."""
        return psycopg.connect(self.conninfo, autocommit=True)

    def open(self) -> sqlite3.Connection:
        """A connection of sqlite3's own, as durable as the library's, each statement of which commits."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=60, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """An empty database beside this one, for what brings tables of its own."""
        if not self.is_postgres:
            with tempfile.TemporaryDirectory() as directory:
                yield str(Path(directory) / "scratch.db")
            return
        name = f"sqlmq_bench_{uuid.uuid4().hex[:8]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        try:
            yield make_url(self.conninfo).set(database=name).render_as_string(hide_password=False)
        finally:
            with self.connect() as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def apart(self) -> Iterator[BenchDatabase]:
        """Open a separate database with the queue's tables, without other rows; it is dropped afterwards."""
        with self.scratch() as target:
            yield database_at(self.kind, target)


@contextmanager
def databases(url: str | None) -> Iterator[list[BenchDatabase]]:
    """Those to measure: the one that *url* names, its tables made if need be, or one of each kind, gone in the end."""
    if url is not None:
        yield [_sqlite(url) if make_url(url).get_backend_name() == "sqlite" else _postgres(url, "given")]
        return
    server = provide(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="sqlmq-bench-") as directory:
            yield [
                _postgres(server.url.render_as_string(hide_password=False), server.source),
                _sqlite(f"sqlite:///{Path(directory) / 'bench.db'}"),
            ]
    finally:
        server.remove()


def database_at(kind: str, target: str) -> BenchDatabase:
    """The one of a *kind* that libpq's URL, or a path, leads to, with the queue's tables."""
    return _postgres(target, "scratch") if kind == POSTGRES else _sqlite(f"sqlite:///{target}")


def make_tables(url: str) -> None:
    """Make the queue's tables, unless they are there."""
    engine = create_engine(url)
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()


def machine() -> dict[str, Any]:
    """What the figures were made with."""
    packages = ("sqlmq", "sqlalchemy", "psycopg", "psycopg-binary", "greenlet", *PEER_PACKAGES)
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version(name) for name in packages},
        "fdatasync_microseconds": _fdatasync_microseconds(),
    }


def version(package: str) -> str | None:
    """Which version of *package* is installed, if it is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _postgres(url: str, source: str) -> BenchDatabase:
    ours = make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    make_tables(ours)
    database = BenchDatabase(POSTGRES, ours)
    with database.connect() as connection:
        (shown,) = connection.execute("SHOW server_version").fetchone() or ("unknown",)
        rows = connection.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY(%s)", [[*SETTINGS]]
        )
        database.facts = {"version": shown, "source": source, "settings": dict(rows.fetchall())}
    return database


def _sqlite(url: str) -> BenchDatabase:
    make_tables(url)
    settings = {"journal_mode": "wal", "synchronous": "FULL"}
    return BenchDatabase(SQLITE, url, {"version": sqlite3.sqlite_version, "source": "Python", "settings": settings})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _fdatasync_microseconds() -> float | None:
    """What it takes to have 8 kB on the disk of temporary files, the median of a few: the floor of a commit."""
    if not hasattr(os, "fdatasync"):
        return None
    took = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.seek(0)
            file.write(b"x" * 8192)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return round(sorted(took)[len(took) // 2] * 1e6)
