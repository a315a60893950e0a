"""Tasks: what each of them has in hand, how many of them share, and what event loops do to them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from sqlmq import AsyncConsumer, AsyncMQ, Consumer, Message
from tests.support.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection as Pipe

    from tests.aio.conftest import MakeAsyncMQ


async def send(mq: AsyncMQ, count: int) -> None:
    """Put 0, 1, 2, ... into the one partition of the topic."""
    await mq.create_topic("orders", 1)
    await (await mq.producer("orders")).produce_many([Message(b"%d" % i) for i in range(count)])


async def position(mq: AsyncMQ) -> int:
    (partition,) = (await mq.admin.describe_group("orders", "billing")).partitions
    return partition.position


async def take(consumer: AsyncConsumer) -> bytes:
    return (await consumer.consume(timeout=PATIENCE_SECONDS)).value


# --- Whose message it is ---


async def test_a_message_is_done_when_its_task_asks_for_the_next(mq: AsyncMQ) -> None:
    await send(mq, 3)
    async with await mq.consumer("orders", "billing") as consumer:
        for _ in range(3):
            await take(consumer)

    assert await position(mq) == 2


async def test_asking_in_one_task_does_not_finish_what_another_has(mq: AsyncMQ) -> None:
    await send(mq, 3)
    consumer = await mq.consumer("orders", "billing")
    has_first, may_end = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        await take(consumer)
        has_first.set()
        await may_end.wait()

    holding = asyncio.create_task(hold())
    await has_first.wait()
    assert [await take(consumer), await take(consumer)] == [b"1", b"2"]
    await consumer.commit()
    committed = await position(mq)
    may_end.set()
    await holding

    assert committed == 0


async def test_what_a_task_had_that_ended_is_delivered_again(mq: AsyncMQ) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing")

    async def handle() -> bytes:
        return await take(consumer)

    assert await asyncio.create_task(handle()) == b"0"
    assert [await take(consumer), await take(consumer)] == [b"0", b"1"]


@pytest.mark.parametrize("way", ["break", "exception"])
async def test_the_message_at_which_a_loop_was_left_comes_again_at_once_to_the_same_task(mq: AsyncMQ, way: str) -> None:
    await send(mq, 3)
    consumer = await mq.consumer("orders", "billing")

    async def handle() -> None:
        async for message in consumer:
            if message.value == b"1":
                if way == "break":
                    break
                raise KeyError

    with contextlib.suppress(KeyError):
        await handle()

    assert await take(consumer) == b"1"


async def test_the_message_at_which_a_loop_was_left_can_be_committed(mq: AsyncMQ) -> None:
    await send(mq, 3)
    consumer = await mq.consumer("orders", "billing")

    async for _ in consumer:
        break
    await consumer.commit()

    assert await position(mq) == 1


async def in_a_task_of_its_own(call: Callable[[], Awaitable[object]]) -> object:
    """Await *call* in a task, as a notebook does with each cell."""

    async def cell() -> object:
        return await call()

    return await asyncio.create_task(cell())


async def test_what_a_cell_of_a_notebook_got_can_be_committed_in_the_next(mq: AsyncMQ) -> None:
    await send(mq, 3)
    consumer = await mq.consumer("orders", "billing")

    taken = []
    for _ in range(2):
        taken.append(await in_a_task_of_its_own(lambda: take(consumer)))
        await in_a_task_of_its_own(consumer.commit)

    assert taken == [b"0", b"1"]
    assert await position(mq) == 2


async def fail_after(call: Awaitable[object]) -> None:
    await call
    raise ArithmeticError("told to fail")


async def leave_loop(consumer: AsyncConsumer) -> None:
    async for _message in consumer:
        break


@pytest.mark.parametrize("way", ["error", "loop"])
async def test_what_a_task_left_unfinished_is_not_committed_by_the_next(mq: AsyncMQ, way: str) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing")
    with contextlib.suppress(ArithmeticError):
        await in_a_task_of_its_own(lambda: fail_after(take(consumer)) if way == "error" else leave_loop(consumer))

    await in_a_task_of_its_own(consumer.commit)

    assert await position(mq) == 0
    assert await in_a_task_of_its_own(lambda: take(consumer)) == b"0"


@pytest.mark.parametrize("first", ["commit", "poll"])
async def test_a_task_that_used_the_consumer_before_commits_only_what_it_got_itself(mq: AsyncMQ, first: str) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing")
    await (consumer.commit() if first == "commit" else consumer.poll(timeout=PATIENCE_SECONDS))
    await consumer.commit()
    done = await position(mq)

    if first == "commit":
        await in_a_task_of_its_own(lambda: take(consumer))
        await consumer.commit()

    assert await position(mq) == done


async def test_an_error_that_nobody_looked_at_is_still_complained_about_after_a_commit(mq: AsyncMQ) -> None:
    await send(mq, 1)
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context["exception"]))
    consumer = await mq.consumer("orders", "billing")
    failing = asyncio.create_task(fail_after(take(consumer)))
    await asyncio.wait([failing])

    await in_a_task_of_its_own(consumer.commit)
    await in_a_task_of_its_own(lambda: consumer.poll(timeout=PATIENCE_SECONDS))  # its message comes again
    del failing
    gc.collect()
    loop.set_exception_handler(handler)

    assert [type(error) for error in complaints] == [ArithmeticError]


async def test_tasks_that_share_a_consumer_get_each_message_once(mq: AsyncMQ) -> None:
    await mq.create_topic("orders", 3)
    producer, consumer = await mq.producer("orders"), await mq.consumer("orders", "billing")
    received: list[bytes] = []

    async def work() -> None:
        async for message in consumer:
            received.append(message.value)
            if len(received) == 300:
                await consumer.commit()
                await consumer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(work())
        await asyncio.gather(*[producer.produce(Message(b"%d" % i)) for i in range(300)])

    assert Counter(received) == Counter(b"%d" % i for i in range(300))


# --- A task for a single call ---


def tasks_of_one_call(call: Callable[[], Any]) -> dict[str, Callable[[], Awaitable[Any]]]:
    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "create_task": lambda: asyncio.create_task(call()),
        "gather": lambda: asyncio.gather(call()),
        "shield": lambda: asyncio.shield(call()),
    }
    if sys.version_info < (3, 12):
        ways["wait_for"] = lambda: asyncio.wait_for(call(), PATIENCE_SECONDS)
    return ways


@pytest.mark.parametrize("method", ["consume", "poll", "commit", "anext"])
async def test_a_call_in_a_task_of_its_own_is_refused_and_told_what_to_do(mq: AsyncMQ, method: str) -> None:
    await send(mq, 1)
    consumer = await mq.consumer("orders", "billing")
    calls: dict[str, Callable[[], Any]] = {
        "consume": lambda: consumer.consume(timeout=0),
        "poll": consumer.poll,
        "commit": consumer.commit,
        "anext": lambda: anext(consumer.consume_chan()),
    }

    for way in tasks_of_one_call(calls[method]).values():
        with pytest.raises(RuntimeError, match=r"timeout= or asyncio\.timeout\(\)"):
            await way()

    assert await take(consumer) == b"0"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="wait_for makes no task any more")
async def test_an_anext_with_a_default_in_a_task_of_its_own_is_refused_too(mq: AsyncMQ) -> None:
    consumer = await mq.consumer("orders", "billing")

    with pytest.raises(RuntimeError, match=r"timeout= or asyncio\.timeout\(\)"):
        await asyncio.wait_for(anext(consumer.consume_chan(), None), PATIENCE_SECONDS)


async def test_with_ack_before_a_call_may_be_a_task_of_its_own(mq: AsyncMQ) -> None:
    await send(mq, 2)
    consumer = await mq.consumer("orders", "billing", ack="on_delivery")

    message = await asyncio.create_task(consumer.consume(timeout=PATIENCE_SECONDS))

    assert message.value == b"0"
    assert await take(consumer) == b"1"


# --- Many tasks, few transactions, few threads ---


@pytest.mark.parametrize("way", ["consume", "poll", "loop"])
async def test_messages_that_were_read_ahead_take_no_thread(
    mq: AsyncMQ, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    await send(mq, 500)
    consumer = await mq.consumer("orders", "billing")
    await take(consumer)
    units = 0
    start = consumer._threads._start

    def count_and_start(work: Callable[[], Any]) -> Any:
        nonlocal units
        units += 1
        return start(work)

    monkeypatch.setattr(consumer._threads, "_start", count_and_start)
    # Nothing else falls due.
    monkeypatch.setattr(consumer._core.buffer, "_fetch_more_at", math.inf)
    monkeypatch.setattr(consumer._core.coordinator, "_check_group_at", math.inf)

    if way == "consume":
        found = [await take(consumer) for _ in range(499)]
    elif way == "poll":
        found = [message.value for _ in range(499) for message in await consumer.poll(1)]
    else:
        found = [(await anext(messages)).value for messages in [consumer.consume_chan()] for _ in range(499)]

    assert found == [b"%d" % i for i in range(1, 500)]
    assert units == 0


@pytest.mark.parametrize("way", ["consume", "loop"])
async def test_a_task_that_never_waits_lets_others_run(mq: AsyncMQ, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("sqlmq.aio.consumer._YIELD_SECONDS", 0.001)
    await send(mq, 3_000)
    consumer = await mq.consumer("orders", "billing")
    messages = consumer.consume_chan()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    await anext(messages)
    others = asyncio.create_task(take_turns())
    taken = 1
    while turns < 3 and taken < 3_000:
        await (take(consumer) if way == "consume" else anext(messages))
        taken += 1
    others.cancel()

    assert turns >= 3


@pytest.mark.slow
async def test_ten_thousand_tasks_that_produce_share_few_transactions(mq: AsyncMQ) -> None:
    producer = await mq.producer("orders")
    connections: list[object] = []
    event.listen(mq.engine, "checkout", lambda dbapi, _record, _proxy: connections.append(dbapi))

    results = await asyncio.gather(*[producer.produce(Message(b"%d" % i)) for i in range(10_000)])

    assert len(set(results)) == 10_000
    assert len(connections) < 500


async def test_a_thousand_tasks_wait_without_a_thread_each_and_all_are_served(mq: AsyncMQ) -> None:
    producer, consumer = await mq.producer("orders"), await mq.consumer("orders", "billing")
    received: list[bytes] = []
    all_served = asyncio.Event()

    async def wait() -> None:
        received.append(await take(consumer))
        if len(received) == 1_000:
            all_served.set()
        await all_served.wait()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(1_000):
            tasks.create_task(wait())
        while consumer._core.wakeups.waiters < 1_000:
            await asyncio.wait([asyncio.ensure_future(consumer._threads.run(int))])
        threads = threading.active_count()
        await asyncio.gather(*[producer.produce(Message(b"%d" % i)) for i in range(1_000)])

    assert len(set(received)) == 1_000
    assert threads < 50


@pytest.mark.slow
async def test_a_handler_that_blocks_the_loop_for_longer_than_a_lease_keeps_its_partitions(
    make_mq: MakeAsyncMQ,
) -> None:
    mq, other = make_mq(lease_seconds=1), make_mq(lease_seconds=1)
    await send(mq, 2)
    consumer, rival = await mq.consumer("orders", "billing"), await other.consumer("orders", "billing")
    began = time.monotonic()
    stolen: list[Message] = []

    def rival_has_asked_for_three_leases() -> bool:
        stolen.extend(Consumer(rival._core, rival).poll(timeout=0))
        return time.monotonic() - began > 3

    assert await take(consumer) == b"0"
    until(rival_has_asked_for_three_leases, "three leases to pass")  # and nothing else happens in this loop
    await consumer.commit()

    assert stolen == []
    assert await position(mq) == 1


# --- Event loops ---


def test_a_queue_is_used_from_one_event_loop_after_the_other(mq: AsyncMQ) -> None:
    async def main(number: int) -> bytes:
        await (await mq.producer("orders")).produce(Message(b"%d" % number))
        async with await mq.consumer("orders", "billing") as consumer:
            value = await take(consumer)
            await consumer.commit()
            return value

    assert [asyncio.run(main(number)) for number in range(3)] == [b"0", b"1", b"2"]


def test_a_consumer_is_used_from_several_event_loops_at_once(mq: AsyncMQ) -> None:
    producer, consumer = asyncio.run(mq.producer("orders")), asyncio.run(mq.consumer("orders", "billing"))
    received: list[bytes] = []

    async def consume() -> None:
        async for message in consumer:
            received.append(message.value)  # noqa: PERF401 - as they come, not all in the end

    async def consume_by_two() -> None:
        await asyncio.gather(consume(), consume())

    threads = [threading.Thread(target=asyncio.run, args=(consume_by_two(),)) for _ in range(2)]
    for thread in threads:
        thread.start()

    async def produce() -> None:
        await asyncio.gather(*[producer.produce(Message(b"%d" % i)) for i in range(100)])

    asyncio.run(produce())
    until(lambda: len(received) == 100, "all messages")
    asyncio.run(consumer.close())
    for thread in threads:
        thread.join(PATIENCE_SECONDS)

    assert Counter(received) == Counter(b"%d" % i for i in range(100))


def test_an_event_loop_that_ends_while_its_tasks_wait_holds_nothing_up(make_mq: MakeAsyncMQ) -> None:
    mq = make_mq()
    loop = asyncio.new_event_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))

    async def begin() -> AsyncConsumer:
        consumer = await mq.consumer("orders", "billing")
        tasks.append(asyncio.create_task(consume(consumer)))
        while not consumer._core.is_waiting:
            await asyncio.wait(tasks, timeout=0.01)
        return consumer

    async def consume(consumer: AsyncConsumer) -> None:
        await consumer.consume()

    tasks: list[asyncio.Task[None]] = []
    consumer = loop.run_until_complete(begin())
    loop.close()

    async def go_on() -> bytes:
        await (await mq.producer("orders")).produce(Message(b"42"))
        return await take(consumer)

    assert asyncio.run(go_on()) == b"42"
    asyncio.run(mq.close())
    (task,) = tasks
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - mypy does not know it; that it is pending is the point


async def main_scenario(mq: AsyncMQ) -> None:
    await send(mq, 10)
    producer = await mq.producer("orders")
    consumer = await mq.consumer("orders", "billing")
    values = []

    async with asyncio.timeout(PATIENCE_SECONDS):
        async for message in consumer:
            values.append(message.value)
            if len(values) == 10:
                break
        await consumer.commit()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await consumer.poll(timeout=PATIENCE_SECONDS)
        waiting = asyncio.create_task(_later(consumer))
        while not consumer._core.is_waiting:
            await asyncio.wait([waiting], timeout=0.01)
        await asyncio.gather(*[producer.produce(Message(b"later")) for _ in range(100)])

        assert b"later" in await waiting
    assert values == [b"%d" % i for i in range(10)]
    await consumer.close()
    await mq.close()


async def _later(consumer: AsyncConsumer) -> list[bytes]:
    values: list[bytes] = []
    while b"later" not in values:
        values += [message.value for message in await consumer.poll(timeout=PATIENCE_SECONDS)]
    return values


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for it")
def test_it_works_on_uvloop(mq: AsyncMQ) -> None:
    uvloop = pytest.importorskip("uvloop")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main_scenario(mq))


def test_it_works_on_the_loop_of_python(mq: AsyncMQ) -> None:
    asyncio.run(main_scenario(mq))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_produces_with_a_loop_of_its_own(mq: AsyncMQ) -> None:
    async def produce() -> int:
        async with await mq.producer("orders") as producer:
            return (await producer.produce(Message(b"42", b"k"))).offset

    def child(pipe: Pipe) -> None:
        pipe.send(asyncio.run(produce()))

    before = asyncio.run(produce())
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(PATIENCE_SECONDS), "the child does not answer"
    in_child = ours.recv()
    process.join(PATIENCE_SECONDS)

    assert [before, in_child, asyncio.run(produce())] == [0, 1, 2]
