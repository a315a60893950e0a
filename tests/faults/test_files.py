"""Disks and files that fail, under SQLite: a typed error, nothing half done, and nothing made anew over what is there."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from sqlmq import MQ, DatabaseUnavailableError, Message, SqlmqError
from sqlmq.errors import DatabaseDamagedError, DatabaseError, DatabaseFullError, ReadOnlyDatabaseError
from tests.faults.disks import small_disk_at
from tests.support.queue_state import check_sqlite_file
from tests.support.waiting import receive, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import DatabaseUnderTest

MUTATIONS = int(os.environ.get("SQLMQ_MUTATIONS", "60"))
FILLS = int(os.environ.get("SQLMQ_FILLS", "3"))

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


@pytest.fixture
def path(database: DatabaseUnderTest) -> Path:
    return Path(make_url(database.url).database or "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    directory = tmp_path / "small-disk"
    directory.mkdir()
    with small_disk_at(directory, "3m"):
        yield directory


@pytest.mark.parametrize("fill", range(FILLS))
def test_on_a_full_disk_nothing_is_half_done_and_it_goes_on_when_there_is_room(
    path: Path, small_disk: Path, fill: int
) -> None:
    shutil.copyfile(path, small_disk / "queue.db")
    ballast = small_disk / "ballast"
    acknowledged = 0
    with MQ(f"sqlite:///{small_disk / 'queue.db'}") as mq:
        mq.create_topic("orders", 1)
        producer = mq.producer("orders")
        with ballast.open("ab") as file, pytest.raises(OSError, match="No space"):
            file.write(bytes(4 << 20))
        # Another step is the first for which there is no room.
        os.truncate(ballast, ballast.stat().st_size - 4_096 * (10 + fill))

        with pytest.raises(DatabaseFullError, match="Free space on the disk"):  # noqa: PT012 - it fills
            while True:
                acknowledged += len(producer.produce_many([Message(b"x" * 3_000)] * 5))

        assert mq.admin.describe_topic("orders").messages == acknowledged
        os.truncate(ballast, 0)
        assert producer.produce(Message(b"room")).offset == acknowledged
        consumer = mq.consumer("orders", "billing")
        assert values(receive(consumer, acknowledged + 1))[-1] == b"room"
    check_sqlite_file(f"sqlite:///{small_disk / 'queue.db'}")


def test_a_block_on_a_full_disk_is_undone_and_comes_again(path: Path, small_disk: Path) -> None:
    shutil.copyfile(path, small_disk / "queue.db")
    ballast = small_disk / "ballast"
    with MQ(f"sqlite:///{small_disk / 'queue.db'}") as mq:
        mq.producer("orders").produce(Message(b"1"))
        consumer = mq.consumer("orders", "billing")
        with mq.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE effect (data)")
        with ballast.open("ab") as file, pytest.raises(OSError, match="No space"):
            file.write(bytes(4 << 20))

        with pytest.raises(Exception, match="full"), consumer.transaction(timeout=10) as tx:  # noqa: PT012 - the end of it raises
            assert values(tx.messages) == [b"1"]
            tx.connection.exec_driver_sql("INSERT INTO effect VALUES (zeroblob(200000))")

        os.truncate(ballast, 0)
        with consumer.transaction(timeout=10) as tx:
            assert values(tx.messages) == [b"1"]
            assert tx.connection.exec_driver_sql("SELECT count(*) FROM effect").scalar_one() == 0


def test_a_file_opened_for_reading_only_can_be_looked_at_and_not_written(mq: MQ, path: Path) -> None:
    mq.producer("orders").produce(Message(b"1"))

    with MQ(f"sqlite:///file:{path}?mode=ro&uri=true") as reading:
        assert reading.admin.describe_topic("orders").messages == 1
        with pytest.raises(ReadOnlyDatabaseError):
            reading.producer("orders").produce(Message(b"2"))


def test_a_disk_that_was_made_read_only_refuses_and_it_goes_on_afterwards(path: Path, small_disk: Path) -> None:
    shutil.copyfile(path, small_disk / "queue.db")
    with MQ(f"sqlite:///{small_disk / 'queue.db'}") as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"1"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with MQ(f"sqlite:///{small_disk / 'queue.db'}") as mq, pytest.raises(DatabaseError) as raised:
        mq.producer("orders").produce(Message(b"2"))
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)

    assert isinstance(raised.value, ReadOnlyDatabaseError | DatabaseUnavailableError)
    with MQ(f"sqlite:///{small_disk / 'queue.db'}") as mq:
        assert mq.admin.describe_topic("orders").messages == 1
        assert sum(1 for _ in receive(mq.consumer("orders", "billing"), 1)) == 1


def produce_as_nobody(url: str, answers: multiprocessing.SimpleQueue[str]) -> None:
    os.setgid(65_534)
    os.setuid(65_534)
    try:
        with MQ(url) as mq:
            mq.producer("orders").produce(Message(b"2"))
    except DatabaseError as error:
        answers.put(type(error).__name__)
    except BaseException as error:  # noqa: BLE001 - told to the test
        answers.put(repr(error))
    else:
        answers.put("written")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("mode", "expected"), [(0o644, "ReadOnlyDatabaseError"), (0o600, "DatabaseUnavailableError")])
def test_a_file_of_somebody_elses_is_refused_for_what_it_is(mq: MQ, path: Path, mode: int, expected: str) -> None:
    mq.producer("orders").produce(Message(b"1"))
    mq.close()
    path.chmod(mode)
    for parent in list(path.parents)[:4]:
        parent.chmod(0o755)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=produce_as_nobody, args=(f"sqlite:///{path}", answers))

    child.start()
    child.join(30)

    assert answers.get() == expected


# Files that are damaged.


def flip(data: bytearray, chosen: random.Random) -> None:
    for _ in range(chosen.randint(1, 50)):
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)


def zero_pages(data: bytearray, chosen: random.Random) -> None:
    page = 4096 * chosen.randrange(len(data) // 4096)
    data[page : page + 4096] = bytes(4096)


def truncate(data: bytearray, chosen: random.Random) -> None:
    del data[chosen.randrange(1, len(data)) :]


def scramble(data: bytearray, chosen: random.Random) -> None:
    page = 4096 * chosen.randrange(len(data) // 4096)
    data[page : page + 4096] = chosen.randbytes(4096)


@pytest.mark.parametrize("damage", [flip, zero_pages, truncate, scramble])
def test_a_damaged_file_is_an_error_or_read_as_it_is_and_never_made_anew(
    mq: MQ, path: Path, tmp_path: Path, damage: Callable[[bytearray, random.Random], None]
) -> None:
    mq.create_topic("orders", 1)
    mq.producer("orders").produce_many([Message(b"x" * 500)] * 100)
    mq.close()
    sound = path.read_bytes()
    noticed = 0

    for seed in range(MUTATIONS // 4):
        data = bytearray(sound)
        damage(data, random.Random(seed))
        damaged = tmp_path / f"damaged-{seed}.db"
        damaged.write_bytes(data)
        try:
            with MQ(f"sqlite:///{damaged}") as other:
                other.producer("orders").produce(Message(b"more"))
                assert other.admin.describe_topic("orders").messages >= 1
        except Exception as error:  # noqa: BLE001 - judged
            reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            unexpected = [reason for reason in reasons if not is_told(reason)]
            assert unexpected == [], f"seed {seed}: {unexpected!r}"
            noticed += 1
        # What was there is there: the file is not shorter, and what was not written to is as it was.
        assert damaged.stat().st_size >= len(data)

    assert noticed or damage is flip


def test_a_file_whose_schema_is_no_text_is_an_error_that_says_so(mq: MQ, path: Path) -> None:
    mq.create_topic("orders", 1)
    mq.close()
    data = path.read_bytes()
    at = data.index(b"CREATE INDEX sqlmq_member_group_id_idx")
    path.write_bytes(data[: at + 4] + b"\xd4" + data[at + 5 :])

    with MQ(f"sqlite:///{path}") as other, pytest.raises(DatabaseDamagedError, match="damaged"):
        other.admin.topics()


def is_told(reason: BaseException) -> bool:
    """Whether it says what is wrong with the file, or with what the tables hold."""
    return isinstance(reason, SqlmqError)


@pytest.mark.parametrize("contents", [b"This is no database, but somebody's notes. " * 100, b"SQLite format 3\0"])
def test_what_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, database: DatabaseUnderTest, contents: bytes
) -> None:
    del database
    notes = tmp_path / "notes.txt"
    notes.write_bytes(contents)

    with MQ(f"sqlite:///{notes}") as mq, pytest.raises(DatabaseDamagedError, match=r"not a SQLite|not a database"):
        mq.producer("orders")

    assert notes.read_bytes() == contents


def test_a_directory_is_refused(tmp_path: Path, database: DatabaseUnderTest) -> None:
    del database

    with MQ(f"sqlite:///{tmp_path}") as mq, pytest.raises(DatabaseUnavailableError):
        mq.producer("orders")

    assert tmp_path.is_dir()


def test_a_file_whose_journal_was_deleted_is_as_it_was_at_its_last_checkpoint(
    mq: MQ, path: Path, tmp_path: Path
) -> None:
    mq.producer("orders").produce(Message(b"1"))
    copy = tmp_path / "copy.db"
    shutil.copyfile(path, copy)  # without what is in the journal

    try:
        with MQ(f"sqlite:///{copy}") as other:
            other.admin.topics()
    except DatabaseError:
        return
    check_sqlite_file(f"sqlite:///{copy}")
