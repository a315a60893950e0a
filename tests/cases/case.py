"""What the programs of this folder share: the database they are given, the faults they find, and how they end.

Each program tries one thing that people do every day to an application, a database or a machine. Run one with the URL of a
fresh SQLite file, or of a fresh, migrated Postgres database whose role is a superuser::

    python tests/cases/b01_idle_session_timeout.py postgresql+psycopg://postgres:password@localhost/fresh

The exit status is 0 if everything was right, and 1 if something was wrong: then each line on stdout is a fault. It is 77 if
the case was not tried, with the reason: it is about the other database, or the machine lacks something.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeVar

from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.pool import NullPool

from sqlmq import MQ, migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Engine

T = TypeVar("T")

WRONG, NOT_TRIED = 1, 77
HERE = str(Path(__file__).parent)
COMMAND = (sys.executable, "-m", "sqlmq.cli")
"""The command line `sqlmq`."""
COMMAND_SECONDS = 60
PASSWORD = "secret"  # noqa: S105 - of roles that live as long as the program
FAULT_CHARACTERS = 400


class NotTriedError(Exception):
    """The case can't be tried here. The text is the reason."""


class Case:
    """One run of a program: the database at *url*, a *directory* for files, and the faults found so far."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.faults: list[str] = []

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    @property
    def sqlite_path(self) -> str:
        """The path of the SQLite file."""
        return make_url(self.url).database or ""

    def fault(self, text: str) -> None:
        """Record that something is wrong."""
        self.faults.append(" ".join(text.split())[:FAULT_CHARACTERS])

    def attempt(self, what: str, call: Callable[[], T]) -> T | None:
        """Return what *call* returns. An exception is a fault; then return None."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - every exception is a fault
            self.fault(f"{what}: {shown(error)}")
            return None

    def succeeds(self, what: str, call: Callable[[], object]) -> bool:
        """Whether *call* returned. An exception is a fault."""
        before = len(self.faults)
        self.attempt(what, call)
        return len(self.faults) == before

    # --- Processes ---

    def run_child(self, *arguments: str, seconds: float, options: Sequence[str] = ()) -> int | None:
        """Run this program again with *arguments* and return its exit status, or None if it does not end.

        What is not right in the child is a fault of this case. Raises NotTriedError if the child was not tried.
        *options* are for Python.
        """
        name = " ".join(filter(None, arguments))
        try:
            ended = subprocess.run(
                [sys.executable, *options, sys.argv[0], self.url, *arguments],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=seconds * crowding(),
            )
        except subprocess.TimeoutExpired as error:
            self.fault(f"{name}: hangs after {last_line(error.stdout) or 'no output'}")
            return None
        if ended.returncode == NOT_TRIED:
            raise NotTriedError(last_line(ended.stdout))
        if ended.returncode == WRONG:
            self.fault(f"{name}: {last_line(ended.stdout) or last_line(ended.stderr)}")
        elif ended.returncode != 0:
            self.fault(f"{name}: ended with {ended.returncode}: {last_line(ended.stderr)}")
        return ended.returncode

    def run_command(
        self, *arguments: str, environment: Mapping[str, str] | None = None, input_bytes: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `sqlmq` with *arguments* on the case's database."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**os.environ, "SQLMQ_URL": self.url, **(environment or {})},
            cwd=self.directory,
            capture_output=True,
            check=False,
            timeout=COMMAND_SECONDS * crowding(),
            input=input_bytes,
        )

    # --- Postgres ---

    @property
    def server(self) -> URL:
        """The URL of the case's database, to change parts of it."""
        return make_url(self.url)

    def execute(self, *statements: str, url: URL | str | None = None) -> None:
        """Execute *statements*, each in a transaction of its own, as the superuser."""
        engine = administrator(url or self.url)
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def scalar(self, statement: str) -> str | int | None:
        """Return the one value that *statement* selects."""
        with administrator(self.url).connect() as connection:
            value: str | int | None = connection.exec_driver_sql(statement).scalar()
            return value

    def set_default(self, setting: str, value: str | None) -> None:
        """Set *setting* for all later sessions of the case's database; None resets it."""
        if value is None:
            change = f"RESET {setting}"
        elif setting == "search_path":
            change = f"SET {setting} = {value}"  # a list of names, each quoted by itself
        else:
            change = f"SET {setting} = '{value}'"
        self.execute(f'ALTER DATABASE "{self.server.database}" {change}')

    @contextmanager
    def postgres_database(self, options: str = "") -> Iterator[URL]:
        """Create a further database without tables, and drop it in the end."""
        name = f"case_{uuid.uuid4().hex[:8]}"
        self.execute(f"CREATE DATABASE {name} {options}")
        try:
            yield self.server.set(database=name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def role(self, options: str = "LOGIN", *, name: str | None = None) -> Iterator[URL]:
        """Create a role, give the URL for it, and drop it and its rights in the end."""
        name = name or f"case_{uuid.uuid4().hex[:8]}"
        quoted = '"{}"'.format(name.replace('"', '""'))
        self.execute(f"CREATE ROLE {quoted} PASSWORD '{PASSWORD}' {options}")
        try:
            yield self.server.set(username=name, password=PASSWORD)
        finally:
            self.execute(f"DROP OWNED BY {quoted} CASCADE", f"DROP ROLE {quoted}")


def run(
    judge: Callable[[Case], None],
    *,
    child: Callable[..., None] | None = None,
    only_on: Literal["sqlite", "postgresql"] | None = None,
) -> NoReturn:
    """Run *judge* on the database of the first argument, print the faults and end the process.

    A program that runs itself gets further arguments; they go to *child*. ``only_on`` names the one database that
    the case is about. The process ends at once, because threads of a library that is at fault may never end.
    """
    url, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="sqlmq-case-", ignore_cleanup_errors=True) as directory:
        case = Case(resolved(url), Path(directory))
        try:
            if only_on is not None and not url.startswith(only_on):
                raise NotTriedError(f"The case is about {only_on} only.")
            if arguments and child is not None:
                child(case, *arguments)
            else:
                judge(case)
        except NotTriedError as error:
            print(f"not tried: {error}")
            status = NOT_TRIED
        except BaseException:  # noqa: BLE001 - the process ends here
            traceback.print_exc()
            status = WRONG
        else:
            print(*case.faults or ["right"], sep="\n")
            status = WRONG if case.faults else 0
    end(status)


def resolved(url: str) -> str:
    """Return *url* with the whole path of a SQLite file, because some programs change the directory."""
    database = make_url(url).database
    if not url.startswith("sqlite") or database is None:
        return url
    return f"sqlite:///{Path(database).absolute()}"


def end(status: int) -> NoReturn:
    """End the process at once with *status*, whatever its threads do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def crowding() -> float:
    """Return how many processes share a processor now, at least 1. Deadlines that only end what hangs grow with it."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def rest(seconds: float) -> None:
    """Let *seconds* pass, in a case that is about time and has nothing to wait for."""
    time.sleep(seconds)


def until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Wait until *condition* holds. Return whether it did within *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def shown(error: BaseException) -> str:
    """Return the class and text of *error* on one line, also of an exception that can't be printed."""
    lines = traceback.format_exception_only(error)
    return " ".join("".join(lines).split())


def last_line(output: str | bytes | None) -> str:
    """Return the last line of *output* that is not empty."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return (text.strip().splitlines() or [""])[-1]


def administrator(url: URL | str) -> Engine:
    """Return an engine whose statements commit themselves, and that keeps no connection."""
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)


def text_of(url: URL) -> str:
    """Return *url* as text with its password."""
    return url.render_as_string(hide_password=False)


def upgrade(url: URL | str, schema: str | None = None) -> None:
    """Create the tables of sqlmq."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        migrate.upgrade(connection, schema=schema)


def messages_in(url: str, topic: str) -> int:
    """Return the number of messages in *topic*, counted by a new MQ."""
    with MQ(url) as mq:
        return mq.admin.describe_topic(topic).messages
