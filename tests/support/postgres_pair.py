"""Two Postgres servers: a primary, and a standby that has each commit before it is acknowledged."""

from __future__ import annotations

import os
import shutil
import time

from sqlalchemy import URL, create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq.migrate import upgrade
from tests.support.postgres_server import SETTINGS, PostgresServer, installations


class PostgresPair:
    """A primary that acknowledges a commit when its standby has it, and that standby."""

    def __init__(self) -> None:
        installation = next(installations())
        self.primary = PostgresServer(installation, {**SETTINGS, "synchronous_standby_names": "*"})
        self.standby = self.primary
        try:
            self.standby = PostgresServer(installation)
            self._copy_data()
            self.primary.start()
            self.standby.start_as(self.primary)
            engine = create_engine(self.primary.url, poolclass=NullPool)
            with engine.begin() as connection:
                upgrade(connection)
                # Done when the standby shows it.
                connection.execute(text("SET LOCAL synchronous_commit = remote_apply"))
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> str:
        """The URL of a client: both servers, of which it connects to the one that writes."""
        hosts = tuple(f"{server.url.host}:{server.url.port}" for server in (self.primary, self.standby))
        url = URL.create(
            "postgresql+psycopg",
            self.primary.url.username,
            self.primary.url.password,
            database=self.primary.url.database,
            query={"host": hosts, "target_session_attrs": "read-write"},
        )
        return url.render_as_string(hide_password=False)

    def promote(self) -> float:
        """Make the standby the primary; return when it was."""
        with create_engine(self.standby.url, poolclass=NullPool).connect() as connection:
            assert connection.scalar(text("SELECT pg_promote(true, 30)"))
        return time.monotonic()

    def remove(self) -> None:
        self.standby.remove()
        self.primary.remove()

    def _copy_data(self) -> None:
        """Make the standby a copy of the primary, which has not started yet."""
        source, copy = self.primary.directory / "data", self.standby.directory / "data"
        shutil.rmtree(copy)
        shutil.copytree(source, copy)
        (copy / "standby.signal").touch()
        url = self.primary.url
        conninfo = f"host={url.host} port={url.port} user={url.username} password={url.password}"
        with (copy / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{conninfo}'\n")
        owner = source.stat()
        for path in (copy, *copy.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
