"""What is restored from a backup goes on where it was, beside the application's rows."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL, make_url

from sqlmq import MQ, Message
from tests.support.failing import ONCE, GroupRunner, Handler, produce
from tests.support.postgres_server import installations
from tests.support.waiting import finish, receive, values

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseUnderTest, MakeMQ
    from tests.support.postgres_databases import PostgresDatabases

SECONDS = 60
LONG = 3_600.0
POSTGRES = pytest.mark.parametrize("database", ["postgres", "postgres-schema"], indirect=True)
SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def fill(mq: MQ, database: DatabaseUnderTest) -> None:
    """A topic that has grown, of which a group has read some, set one aside, and has one still to come."""
    mq.create_topic("orders", 1)
    produce(mq, "a:bad", "b:0", "b:1")
    runner = GroupRunner(database)
    runner.run(Handler(b"bad"), retry=ONCE)
    runner.mq.close()
    mq.admin.add_partitions("orders", 2)
    produce(mq, *(f"b:{number}" for number in range(2, 10)))
    with mq.consumer("orders", "billing") as consumer:
        finish(consumer, 3)
    mq.producer("orders").schedule(Message(b"later"), delay_seconds=LONG)


def check(restored: MQ) -> None:
    (letter,) = restored.admin.parked("orders", "billing").list()
    (delayed,) = restored.admin.delayed("orders")
    with restored.consumer("orders", "billing") as consumer:
        rest = values(receive(consumer, 5))
        consumer.commit()
        assert consumer.poll(timeout=0) == []
    result = restored.producer("orders").produce(Message(b"10", b"b"))

    assert (letter.offset, letter.state) == (0, "dead")
    assert rest == [b"5", b"6", b"7", b"8", b"9"]
    assert restored.admin.cancel_delayed(delayed.id) == [delayed.id]
    assert result.offset == restored.admin.describe_topic("orders").partitions[result.partition].end_offset - 1
    assert restored.create_topic("bills", 4)


@POSTGRES
def test_a_dump_is_restored(
    make_mq: MakeMQ, database: DatabaseUnderTest, postgres_databases: PostgresDatabases
) -> None:
    tool = next(installations()).program("pg_dump")
    if not tool.exists():
        pytest.skip("this Postgres comes without pg_dump")
    fill(make_mq(), database)
    empty = postgres_databases.create_empty()
    target = make_url(postgres_databases.url(empty))

    dump = _run(tool, "--no-owner", "--format=plain", url=make_url(database.url))
    _run(
        tool.with_name(tool.name.replace("pg_dump", "psql")), "--quiet", "--set=ON_ERROR_STOP=1", url=target, given=dump
    )

    try:
        with MQ(target, schema=database.schema) as restored:
            check(restored)
    finally:
        postgres_databases.drop(empty)


@SQLITE
def test_a_copy_of_a_file_that_is_in_use_is_restored(
    make_mq: MakeMQ, database: DatabaseUnderTest, tmp_path: Path
) -> None:
    fill(make_mq(), database)
    source = sqlite3.connect(str(make_url(database.url).database))
    copy = sqlite3.connect(tmp_path / "copy.db")

    source.backup(copy)
    source.close()
    copy.close()

    with MQ(f"sqlite:///{tmp_path / 'copy.db'}") as restored:
        check(restored)


def _run(program: Path, *options: str, url: URL, given: bytes = b"") -> bytes:
    """Run a program of Postgres's on the database of *url*; return what it has written."""
    environment = os.environ | {"PGPASSWORD": url.password or ""}
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database).render_as_string()
    done = subprocess.run(
        [program, *options, plain], input=given, env=environment, capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
