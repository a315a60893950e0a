"""What is acknowledged is on disk: counted by the kernel on SQLite, and by the calls themselves where Postgres has crashed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, Message
from sqlmq.errors import DatabaseError
from sqlmq.migrate import upgrade
from tests.faults.disks import give_to_server, small_disk_at
from tests.support.postgres_server import DURABLE_SETTINGS, PostgresServer, installations
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest

ACKNOWLEDGED = int(os.environ.get("SQLMQ_SYNCS", "100"))

pytestmark = pytest.mark.faults

SENDER = """
import os, sys
from sqlalchemy import create_engine, event
from sqlmq import MQ, Message

url, count, mode = sys.argv[1:]
where = url
if mode != "own":
    where = create_engine(url)
    event.listen(where, "connect", lambda connection, _: connection.execute(f"PRAGMA synchronous = {mode}"))
with MQ(where) as mq:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    os.write(1, b"acknowledged")
    for _ in range(int(count)):
        producer.produce(Message(b"1"))
        os.write(1, b"acknowledged")
"""
SYNCED = re.compile(r"f(data)?sync(\(| resumed).* = 0")


def acknowledged_without_sync(url: str, mode: str, directory: Path) -> int:
    """How many messages a process tells of before anything was forced to the disk for them."""
    trace = directory / "trace"
    command = [sys.executable, "-c", SENDER, url, str(ACKNOWLEDGED), mode]
    ran = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,write", "-o", trace, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if "PTRACE" in ran.stderr:
        pytest.skip(f"No process may be traced here: {ran.stderr.strip()}")
    assert (ran.returncode, ran.stdout) == (0, "acknowledged" * (ACKNOWLEDGED + 1)), ran.stderr
    _, *behind = re.split(r'write\(1, "acknowledged"', trace.read_text())
    # What is before the first is the making of the topic; what is behind the last, the end.
    return sum(SYNCED.search(between) is None for between in behind[:-1])


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("mode", "unsynced"), [("own", 0), ("FULL", 0), ("NORMAL", ACKNOWLEDGED)])
def test_no_message_is_acknowledged_before_it_is_on_the_disk(
    database: DatabaseUnderTest, tmp_path: Path, mode: str, unsynced: int
) -> None:
    assert acknowledged_without_sync(database.url, mode, tmp_path) == unsynced


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system with room for two or three segments of a write-ahead log."""
    directory = tmp_path_factory.mktemp("small-disk")
    with small_disk_at(directory, "44m"):
        yield directory


@pytest.fixture
def server(small_disk: Path) -> Iterator[PostgresServer]:
    """A server with its write-ahead log on the small disk."""
    server = PostgresServer(
        next(installations()), {**DURABLE_SETTINGS, "max_wal_size": "32MB", "shared_buffers": "16MB"}
    )
    try:
        log = small_disk / "pg_wal"
        shutil.move(server._data / "pg_wal", log)
        (server._data / "pg_wal").symlink_to(log)
        give_to_server(small_disk)
        server.start()
        with create_engine(server.url, poolclass=NullPool).begin() as connection:
            upgrade(connection)
        yield server
    finally:
        server.remove()


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
def test_a_server_whose_log_has_no_room_loses_nothing_and_everybody_goes_on_when_there_is(
    server: PostgresServer, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A connection that was in use a moment ago is not tested, and this server may be back sooner.
    monkeypatch.setattr("sqlmq.database.watchdog._IDLE_SECONDS", 0.0)
    with MQ(server.url, response_timeout_seconds=5.0) as mq:
        mq.create_topic("orders", 1)
        producer = mq.producer("orders")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            fill(file.fileno())
        acknowledged = [producer.produce(Message(b"first")).offset]

        with pytest.raises(DatabaseError):  # noqa: PT012 - it fills
            for _ in range(200):
                acknowledged += [producer.produce(Message(os.urandom(500_000))).offset]
        assert len(acknowledged) < 200
        assert "PANIC" in server._log_file.read_text()
        ballast.unlink()
        server.kill()
        server.start()

        after = producer.produce(Message(b"room")).offset
        with create_engine(server.url, poolclass=NullPool).connect() as connection:
            found = connection.execute(text("SELECT msg_offset FROM sqlmq_message ORDER BY 1")).scalars().all()
        # One whose outcome was unknown may be there as well; nothing else is.
        assert found == list(range(after + 1))
        assert acknowledged == list(range(len(acknowledged)))
        assert after - len(acknowledged) in (0, 1)
        consumer = mq.consumer("orders", "billing")
        until(lambda: [one.offset for one in consumer.poll(timeout=1)][-1:] == [after], "all of it to be read")
        consumer.close()


def fill(file: int) -> None:
    """Write until there is no room."""
    try:
        while True:
            os.write(file, bytes(65_536))
    except OSError:
        return
