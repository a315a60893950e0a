"""MQs that a program has dropped and never closed: they end by themselves, and say so."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from sqlmq import MQ, AsyncMQ, Message
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import DatabaseUnderTest

each_kind = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("sqlmq")}


def sessions(database: DatabaseUnderTest) -> int:
    if database.url.startswith("sqlite"):
        return 0
    with create_engine(database.url, poolclass=NullPool).connect() as connection:
        return int(connection.execute(text(SESSIONS)).scalar_one())


def dropped_after(use: Callable[[], None]) -> None:
    """Call *use*, and collect what it leaves in cycles."""
    use()
    gc.collect()


def produce(url: str) -> None:
    MQ(url).producer("orders").produce(Message(b"x"))


def consume(url: str) -> None:
    MQ(url).consumer("orders", "billing").poll(timeout=0)


def wait_in_vain(url: str) -> None:
    MQ(url).consumer("orders", "billing").poll(timeout=0.01)


def handle_in_transaction(url: str) -> None:
    with MQ(url).consumer("orders", "billing").transaction(timeout=0):
        pass


def look(url: str) -> None:
    MQ(url).admin.topics()


def consume_in_loop(url: str) -> None:
    async def main() -> None:
        mq = AsyncMQ(url)
        await (await mq.producer("orders")).produce(Message(b"x"))
        await (await mq.consumer("orders", "billing")).poll(timeout=0.01)

    asyncio.run(main())


@each_kind
@pytest.mark.parametrize(
    "use", [produce, consume, wait_in_vain, handle_in_transaction, look, consume_in_loop], ids=lambda use: use.__name__
)
def test_a_dropped_mq_ends_with_its_threads_and_connections_and_says_so(
    database: DatabaseUnderTest, use: Callable[[str], None]
) -> None:
    with MQ(database.url) as mq:
        mq.create_topic("orders")
    threads_before, sessions_before = threads(), sessions(database)

    with pytest.warns(ResourceWarning, match="was dropped and not closed"):
        dropped_after(lambda: use(database.url))

    until(lambda: threads() <= threads_before, "the end of the threads")
    until(lambda: sessions(database) <= sessions_before, "the end of the sessions")


@each_kind
def test_a_dropped_consumer_has_left_its_group_and_committed(database: DatabaseUnderTest) -> None:
    def consume_two() -> None:
        mq = MQ(database.url)
        mq.create_topic("orders", 1)
        mq.producer("orders").produce_many([Message(b"1"), Message(b"2")])
        consumer = mq.consumer("orders", "billing")
        consumer.consume(timeout=PATIENCE_SECONDS)
        consumer.consume(timeout=PATIENCE_SECONDS)

    with pytest.warns(ResourceWarning):
        dropped_after(consume_two)

    with MQ(database.url) as mq:
        until(lambda: mq.admin.members("orders", "billing") == [], "the consumer to leave")
        (partition,) = mq.admin.describe_group("orders", "billing").partitions
        assert partition.position == 1


def producing(mq: MQ) -> Callable[[], object]:
    producer = mq.producer("orders")
    return lambda: producer.produce(Message(b"y"))


def consuming(mq: MQ) -> Callable[[], object]:
    consumer = mq.consumer("orders", "billing")
    return lambda: consumer.consume(timeout=PATIENCE_SECONDS)


def iterating(mq: MQ) -> Callable[[], object]:
    messages = iter(mq.consumer("orders", "billing"))
    return lambda: next(messages)


def transacting(mq: MQ) -> Callable[[], object]:
    transaction = mq.consumer("orders", "billing").transaction(timeout=PATIENCE_SECONDS)

    def take() -> object:
        with transaction:
            return transaction.messages

    return take


def looking(mq: MQ) -> Callable[[], object]:
    return mq.admin.topics


def looking_at_parked(mq: MQ) -> Callable[[], object]:
    parked = mq.admin.parked("orders", "billing")
    return lambda: [parked.list()]


@each_kind
@pytest.mark.parametrize(
    "begin",
    [producing, consuming, iterating, transacting, looking, looking_at_parked],
    ids=lambda begin: begin.__name__,
)
def test_what_is_still_used_keeps_its_mq(
    database: DatabaseUnderTest, begin: Callable[[MQ], Callable[[], object]], recwarn: pytest.WarningsRecorder
) -> None:
    with MQ(database.url) as mq:
        mq.create_topic("orders", 1)
        mq.producer("orders").produce(Message(b"x"))
        mq.consumer("orders", "billing").close()
    use = [begin(MQ(database.url))]
    gc.collect()

    assert use[0]()
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []
    with pytest.warns(ResourceWarning, match="was dropped"):
        dropped_after(use.clear)


@each_kind
def test_a_closed_mq_and_one_that_was_never_used_say_nothing(
    database: DatabaseUnderTest, recwarn: pytest.WarningsRecorder
) -> None:
    mq = MQ(database.url)
    mq.create_topic("orders")
    mq.close()
    del mq
    MQ(database.url)
    gc.collect()

    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


@each_kind
def test_what_was_submitted_to_a_dropped_producer_is_sent_before_the_mq_closes(database: DatabaseUnderTest) -> None:
    with MQ(database.url) as mq:
        futures = [mq.producer("orders").submit(Message(b"x")) for _ in range(20)]
        gc.collect()

    assert all(future.done() and future.exception() is None for future in futures)


@each_kind
def test_producers_that_are_made_and_dropped_do_not_add_up(database: DatabaseUnderTest) -> None:
    with MQ(database.url) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"x"))
        is_there = weakref.ref(producer)
        del producer
        gc.collect()

        assert is_there() is None


@each_kind
def test_the_end_of_a_program_that_closed_nothing_is_quiet(database: DatabaseUnderTest) -> None:
    program = (
        "import sys; from sqlmq import MQ, Message; mq = MQ(sys.argv[1]); mq.producer('orders').produce(Message(b'x'));"
        "consumer = mq.consumer('orders', 'billing'); consumer.poll(timeout=0)"
    )

    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, database.url],
        capture_output=True,
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stderr) == (0, b"")


@each_kind
def test_a_warning_that_is_an_error_does_not_keep_it_from_ending(database: DatabaseUnderTest) -> None:
    before = threads()
    raised: list[BaseException | None] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: raised.append(unraisable.exc_value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            produce(database.url)
            gc.collect()
    finally:
        sys.unraisablehook = hook

    assert [type(error) for error in raised] == [ResourceWarning]
    until(lambda: threads() <= before, "the end of the threads")
