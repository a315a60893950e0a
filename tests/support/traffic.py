"""Producers and consumers that are never restarted, whatever happens to their database."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from sqlmq import MQ, AsyncMQ, Message, OutcomeUnknownError, ReceivedMessage
from sqlmq.errors import ConsumerClosedError, DatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import ProducerResult
    from tests.support.queue_state import Place

PATIENCE_SECONDS = 45.0
TOPIC = "orders"


class Traffic:
    """Every way to produce, and every way to consume in a group of its own, each in a thread.

    Each notes when it has made progress. A producer that is refused tries the next message.
    """

    def __init__(self, url: str) -> None:
        self._changed = threading.Condition()
        self._ending = threading.Event()
        self.acknowledged: set[Place] = set()
        self.unknown = 0
        self.refused: list[DatabaseError] = []
        self.failed: list[BaseException] = []
        self.delivered: dict[str, list[Place]] = defaultdict(list)
        self.progress: dict[str, list[float]] = defaultdict(list)
        self._mq = MQ(url, lease_seconds=3.0)
        self._mq.create_topic(TOPIC, 3)
        producer = self._mq.producer(TOPIC)
        producing: dict[str, Callable[[], None]] = {
            "produce": lambda: self._produce("produce", producer.produce),
            "submit": lambda: self._produce(
                "submit", lambda message: producer.submit(message).result(PATIENCE_SECONDS)
            ),
            "await produce": lambda: asyncio.run(self._produce_async(url)),
        }
        consuming: dict[str, Callable[[], None]] = {"loop": self._loop, "run": self._run, "transaction": self._transact}
        self._producers = [
            threading.Thread(target=self._guarded, args=[work], name=name) for name, work in producing.items()
        ]
        self._consumers = [
            threading.Thread(target=self._guarded, args=[work], name=name) for name, work in consuming.items()
        ]
        self.actors = [*producing, *consuming]
        for thread in (*self._producers, *self._consumers):
            thread.start()

    def wait_for(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.failed) or reached(), PATIENCE_SECONDS), self._told()
        assert self.failed == []

    def wait_for_progress(self, since: float) -> None:
        """Wait until each producer and consumer has made progress after *since*."""
        self.wait_for(lambda: all(self.progress[actor] and self.progress[actor][-1] > since for actor in self.actors))

    def seconds_until_progress(self, since: float) -> dict[str, float]:
        return {actor: next(at for at in self.progress[actor] if at > since) - since for actor in self.actors}

    def end(self) -> None:
        """Stop producing; stop consuming when each group has received all acknowledged messages."""
        self._ending.set()
        for thread in self._producers:
            thread.join(PATIENCE_SECONDS)
        self.wait_for(
            lambda: all(set(self.delivered[name]) >= self.acknowledged for name in ("loop", "run", "transaction"))
        )
        self.stored = {one.partition: one.end_offset for one in self._mq.admin.describe_topic(TOPIC).partitions}
        self.stop()

    def stop(self) -> None:
        """Stop all threads, whatever they have received. A second call does nothing."""
        self._ending.set()
        with contextlib.suppress(ExceptionGroup):
            self._mq.close()
        for thread in (*self._producers, *self._consumers):
            thread.join(PATIENCE_SECONDS)

    def check(self) -> None:
        """Each group has received all acknowledged messages, and the log has no others but those whose outcome was unknown."""
        for group, places in self.delivered.items():
            assert set(places) >= self.acknowledged, f"{group} has missed something"
        stored = sum(self.stored.values())
        assert len(self.acknowledged) <= stored <= len(self.acknowledged) + self.unknown

    def _told(self) -> str:
        return str({actor: len(self.progress[actor]) for actor in self.actors})

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test
            self.failed.append(error)
            with self._changed:
                self._changed.notify_all()

    def _note(self, actor: str) -> None:
        with self._changed:
            self.progress[actor].append(time.monotonic())
            self._changed.notify_all()

    def _produce(self, actor: str, send: Callable[[Message], ProducerResult]) -> None:
        while not self._ending.wait(0.005):
            try:
                place = send(Message(b"1", key=actor.encode()))
            except DatabaseError as error:
                self._refuse(error)
            else:
                self._acknowledge(actor, place)

    async def _produce_async(self, url: str) -> None:
        async with AsyncMQ(url) as mq:
            producer = await mq.producer(TOPIC)
            while not self._ending.is_set():
                try:
                    place = await producer.produce(Message(b"1"))
                except DatabaseError as error:
                    self._refuse(error)
                else:
                    self._acknowledge("await produce", place)

    def _refuse(self, error: DatabaseError) -> None:
        self.refused.append(error)
        self.unknown += isinstance(error, OutcomeUnknownError)

    def _acknowledge(self, actor: str, place: ProducerResult) -> None:
        self.acknowledged.add((place.partition, place.offset))
        self._note(actor)

    def _deliver(self, actor: str, message: ReceivedMessage) -> None:
        self.delivered[actor].append((message.partition, message.offset))
        self._note(actor)

    def _loop(self) -> None:
        for message in self._mq.consumer(TOPIC, "loop"):
            self._deliver("loop", message)

    def _run(self) -> None:
        self._mq.consumer(TOPIC, "run").run(lambda message: self._deliver("run", message), handle_signals=False)

    def _transact(self) -> None:
        consumer = self._mq.consumer(TOPIC, "transaction")
        while True:
            handled: list[ReceivedMessage] = []
            try:
                with consumer.transaction(max_messages=100, timeout=1) as tx:
                    handled = list(tx.messages)
            except ConsumerClosedError:
                return
            except OutcomeUnknownError:
                pass  # if it has not taken effect they come again
            except DatabaseError:
                continue
            for message in handled:
                self._deliver("transaction", message)
