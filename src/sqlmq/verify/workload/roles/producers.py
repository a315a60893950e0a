"""Producers: single messages, batches, many at once, delayed ones, and transactions of the application's own.

These have rows beside the messages, and some are rolled back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sqlmq.verify.databases import clock_us, connected, moment
from sqlmq.verify.plan import ORDERS, TRIMMED
from sqlmq.verify.workload import state_dump
from sqlmq.verify.workload.application_tables import ROW, Step, Told, placed, row
from sqlmq.verify.workload.payloads import Making, sent
from sqlmq.verify.workload.recorder import AbortedError, attempted

if TYPE_CHECKING:
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from sqlmq.model.message import Message, ProducerResult
    from sqlmq.mq import MQ
    from sqlmq.producer.outbox import Publication
    from sqlmq.producer.producer import Producer
    from sqlmq.verify.workload.processes import Life
    from sqlmq.verify.workload.recorder import Attempt

THREADS = 2
"""How many threads of a process send; they share its producers, whose calls so go together."""

_DELAY_SECONDS = (0.2, 1.5)
_TOGETHER = 8
_LOOK_SECONDS = 1.0


def produce(life: Life) -> None:
    """Send, in several threads, until the life is over."""
    with life.open() as mq:
        brake = _Brake(life)
        clients = [_Client(life, mq, brake, str(number)) for number in range(THREADS)]
        threads = [threading.Thread(target=client.run) for client in clients[1:]]
        for thread in threads:
            thread.start()
        clients[0].run()
        for thread in threads:
            thread.join()
        for client in clients:
            if client.error is not None:
                raise client.error


class _Brake:
    """Has senders wait while a group is so far behind that it could not be done at the end of the run."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._is_on = False

    def hold(self) -> None:
        """Wait until all groups keep up, or the life is over."""
        while self._life.goes_on and self._has_to_wait():
            self._life.pause(_LOOK_SECONDS)

    def _has_to_wait(self) -> bool:
        with self._lock:
            if time.monotonic() >= self._look_at:
                plan = self._life.plan
                # Not through the library: what it says is what is to be proved. A database that is away brakes by itself.
                with contextlib.suppress(SQLAlchemyError), connected(plan.url) as conn:
                    self._is_on = state_dump.most_behind(conn, plan.schema, ORDERS) > plan.backlog
                self._look_at = time.monotonic() + _LOOK_SECONDS
            return self._is_on


class _Client:
    """One thread that sends."""

    def __init__(self, life: Life, mq: MQ, brake: _Brake, name: str) -> None:
        self._life = life
        self._mq = mq
        self._brake = brake
        self._name = name
        self._chosen = life.plan.chosen(life.name, name)
        self._making = Making(life.plan, f"{life.name}-{name}", self._chosen)
        self._producers: dict[str, Producer] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send until the life is over."""
        ways = (self._one, self._batch, self._many_at_once, self._transaction, self._delayed)
        weights = (4, 3, 2, 3, 1)
        rate = self._life.plan.rate / (self._life.plan.producers * THREADS)
        try:
            while self._life.goes_on:
                self._brake.hold()
                (way,) = self._chosen.choices(ways, weights)
                count = way()
                self._life.pause(self._chosen.uniform(0.0, 2.0) * count / rate)
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for this one
            self.error = error
            self._life.end()

    def _one(self) -> int:
        topic, message = self._topic(), self._making.message()
        timeout = self._chosen.choice([None, None, None, 5.0])
        with self._sending(topic, [message]) as attempt:
            attempt.tell(placed=placed([message], [self._producer(topic).produce(message, timeout=timeout)]))
        return 1

    def _batch(self) -> int:
        topic, messages = self._topic(), self._making.messages()
        with self._sending(topic, messages) as attempt:
            attempt.tell(placed=placed(messages, self._producer(topic).produce_many(messages)))
        return len(messages)

    def _many_at_once(self) -> int:
        """Send messages without waiting for one before the next; they have to keep their order all the same."""
        topic = self._topic()
        messages = [self._making.message() for _ in range(self._chosen.randint(2, _TOGETHER))]
        self._submit(self._producer(topic), topic, messages)
        return len(messages)

    def _submit(self, producer: Producer, topic: str, messages: list[Message]) -> None:
        """Submit *messages*, each written down before it is, and wait for all of them."""
        if not messages:
            return
        first, *others = messages
        with self._sending(topic, [first], in_turn=True) as attempt:
            future: Future[ProducerResult] = producer.submit(first)
            self._submit(producer, topic, others)
            attempt.tell(placed=placed([first], [future.result()]))

    def _delayed(self) -> int:
        topic, messages = self._topic(), self._making.messages()[:5]
        delay_us = round(self._chosen.uniform(*_DELAY_SECONDS) * 1e6)
        try:
            due = clock_us(self._mq.engine) + delay_us
        except SQLAlchemyError:
            return 0
        with self._sending(topic, messages, due=due) as attempt:
            self._producer(topic).produce_many(messages, deliver_at=moment(due))
            attempt.tell(placed=placed(messages, [None] * len(messages)))
        return len(messages)

    def _transaction(self) -> int:
        chosen, plan = self._chosen, self._life.plan
        steps = [Step(self._topic(), message) for message in self._making.messages()]
        undone: list[Step] = []
        if chosen.random() < plan.savepoint:
            undone = [Step(self._topic(), message, is_undone=True) for message in self._making.messages()[:3]]
        at = chosen.randrange(len(steps) + 1)
        abort_at = chosen.randrange(len(steps) + 1) if chosen.random() < plan.abort else None
        by_session = chosen.random() < 0.5
        all_steps = [*steps[:at], *undone, *steps[at:]]
        fields = Told.of(all_steps)._asdict() | {"effects": [step.m for step in all_steps]}
        if abort_at is not None:
            fields["abort"] = True
        with attempted(self._life.recorder, "txn", client=self._name, **fields) as attempt:
            if by_session:
                with Session(self._mq.engine) as session:
                    publications = self._do(session, steps, undone, at, abort_at)
                    attempt.is_committing = True
                    session.commit()
            else:
                with self._mq.engine.connect() as connection:
                    publications = self._do(connection, steps, undone, at, abort_at)
                    attempt.is_committing = True
                    connection.commit()
            attempt.tell(placed=placed([one.message for one in steps], [one.result for one in publications]))
        return len(all_steps)

    def _do(
        self, session: Session | Connection, steps: list[Step], undone: list[Step], at: int, abort_at: int | None
    ) -> list[Publication]:
        """Take *steps*; in a savepoint before the step *at*, that is rolled back, those that are to be *undone*."""
        publications = []
        for number in range(len(steps) + 1):
            if number == abort_at:
                raise AbortedError
            if number == at and undone:
                with session.begin_nested() as savepoint:
                    for step in undone:
                        self._take(session, step)
                    savepoint.rollback()
            if number < len(steps):
                publications.append(self._take(session, steps[number]))
        return publications

    def _take(self, session: Session | Connection, step: Step) -> Publication:
        session.execute(row(self._life.plan.schema, ROW, step.m))
        return self._producer(step.topic).produce(step.message, session=session)

    def _sending(
        self, topic: str, messages: list[Message], due: int | None = None, **more: bool
    ) -> AbstractContextManager[Attempt]:
        told = sent(messages, due)
        return attempted(self._life.recorder, "send", client=self._name, topic=topic, messages=told, **more)

    def _topic(self) -> str:
        (topic,) = self._chosen.choices([ORDERS, TRIMMED], [4, 1])
        return topic

    def _producer(self, topic: str) -> Producer:
        if topic not in self._producers:
            self._producers[topic] = self._mq.producer(topic)
        return self._producers[topic]
