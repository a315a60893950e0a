"""A PgBouncer in front of the tests' Postgres, in transaction mode if not told otherwise, with the settings that the documentation shows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.support.postgres_server import free_port, start_guard, unprivileged_account

if TYPE_CHECKING:
    from sqlalchemy import URL

START_TIMEOUT = 20.0
PAGE = Path(__file__).parent.parent.parent / "docs" / "pgbouncer.md"


def find_pgbouncer() -> str | None:
    """The program, on ``PATH`` or where Debian has it; None if there is none."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


class PgBouncer:
    """Shares few sessions of the server among its clients, for each database."""

    def __init__(self, program: str, server: URL, *, pool_mode: str = "transaction") -> None:
        self._server = server
        self._pool_mode = pool_mode
        self._port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="sqlmq-pgbouncer-"))
        account = unprivileged_account()
        (self.directory / "data").mkdir()
        (self.directory / "pgbouncer.ini").write_text(self._settings())
        (self.directory / "userlist.txt").write_text(f'"{server.username}" "{server.password}"\n')
        if account:
            for path in (self.directory, *self.directory.iterdir()):
                os.chown(path, account["user"], account["group"])
        self._log = (self.directory / "output.log").open("wb")
        self._process = subprocess.Popen(
            [program, str(self.directory / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            start_new_session=True,
            **account,
        )
        (self.directory / "data" / "postmaster.pid").write_text(f"{self._process.pid}\n")
        self._guard = start_guard(self.directory)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.remove()
            raise

    def url(self, database: str) -> str:
        """Where *database* is reached through it."""
        return self._server.set(port=self._port, database=database).render_as_string(hide_password=False)

    def forget(self, database: str) -> None:
        """Close every connection, on both sides, that has to do with *database*."""
        # It may not know the database yet.
        with self._console() as console, contextlib.suppress(psycopg.Error):
            console.execute(f"KILL {database}".encode())
            console.execute(f"RESUME {database}".encode())

    def remove(self) -> None:
        """Stop it and remove its directory."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        (self.directory / "data" / "postmaster.pid").unlink(missing_ok=True)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def _console(self) -> psycopg.Connection:
        # The console knows simple queries alone, which is what psycopg sends where there are no parameters.
        url = self._server.set(port=self._port, database="pgbouncer", drivername="postgresql")
        return psycopg.connect(
            url.render_as_string(hide_password=False),
            autocommit=True,
            connect_timeout=5,
            cursor_factory=psycopg.ClientCursor,
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self._console().close()
            except psycopg.OperationalError as error:
                if self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                said = (self.directory / "output.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PgBouncer does not answer ({error}): {said}") from error
            return

    def _settings(self) -> str:
        """The example of the documentation, with the places of this machine in it."""
        shown = re.search(r"^```ini\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        assert shown is not None
        here = {
            "host": f"{self._server.host} port={self._server.port}",
            "pool_mode": self._pool_mode,
            "listen_port": str(self._port),
            "listen_addr": "127.0.0.1",
            "auth_file": str(self.directory / "userlist.txt"),
            "admin_users": str(self._server.username),
        }
        settings, databases = shown[1], f"* = host={here.pop('host')}"
        settings = re.sub(r"(?<=\[databases\]\n).*?\n\n", f"{databases}\n\n", settings, flags=re.DOTALL)
        for name, value in here.items():
            settings = re.sub(rf"^{name} = .*$", f"{name} = {value}", settings, flags=re.MULTILINE)
        return settings
