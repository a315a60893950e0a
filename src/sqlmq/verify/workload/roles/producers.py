"""Producers: single messages, batches, concurrent calls, delayed messages, and transactions of the application.

The transactions write rows beside the messages. Some are rolled back.
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
from sqlmq.verify.workload.application_tables import ROW, TransactionSend, TransactionSends, insert_row, placed_entries
from sqlmq.verify.workload.payloads import MessageFactory, sent_entries
from sqlmq.verify.workload.recorder import AbortedError, recorded

if TYPE_CHECKING:
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

    from sqlmq.model.message import Message, ProducerResult, Publication
    from sqlmq.mq import MQ
    from sqlmq.producer.producer import Producer
    from sqlmq.verify.workload.processes import RoleProcess
    from sqlmq.verify.workload.recorder import RecordedOperation

THREADS = 2
"""How many threads of a process send. They share its producers, which batch their calls."""

_DELAY_SECONDS = (0.2, 1.5)
_MAX_SUBMITTED = 8
_LAG_CHECK_SECONDS = 1.0


def produce(process: RoleProcess) -> None:
    """Send in several threads until the process should end."""
    with process.open_mq() as mq:
        backpressure = _Backpressure(process)
        clients = [_Sender(process, mq, backpressure, str(number)) for number in range(THREADS)]
        threads = [threading.Thread(target=client.run) for client in clients[1:]]
        for thread in threads:
            thread.start()
        clients[0].run()
        for thread in threads:
            thread.join()
        for client in clients:
            if client.error is not None:
                raise client.error


class _Backpressure:
    """Makes senders wait while a group is so far behind that it could not catch up at the end of the run."""

    def __init__(self, process: RoleProcess) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._next_check_at = 0.0
        self._is_behind = False

    def wait(self) -> None:
        """Wait until no group is too far behind, or the process should end."""
        while self._process.is_active and self._must_wait():
            self._process.wait(_LAG_CHECK_SECONDS)

    def _must_wait(self) -> bool:
        with self._lock:
            if time.monotonic() >= self._next_check_at:
                plan = self._process.plan
                # Read without the library, which is under test. While the database is away, sends fail by themselves.
                with contextlib.suppress(SQLAlchemyError), connected(plan.url) as conn:
                    self._is_behind = state_dump.largest_lag(conn, plan.schema, ORDERS) > plan.backlog
                self._next_check_at = time.monotonic() + _LAG_CHECK_SECONDS
            return self._is_behind


class _Sender:
    """One thread that sends."""

    def __init__(self, process: RoleProcess, mq: MQ, backpressure: _Backpressure, name: str) -> None:
        self._process = process
        self._mq = mq
        self._backpressure = backpressure
        self._name = name
        self._random = process.plan.random_for(process.name, name)
        self._factory = MessageFactory(process.plan, f"{process.name}-{name}", self._random)
        self._producers: dict[str, Producer] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        """Send until the process should end."""
        sends = (
            self._send_one,
            self._send_batch,
            self._send_concurrently,
            self._send_in_transaction,
            self._send_delayed,
        )
        weights = (4, 3, 2, 3, 1)
        rate = self._process.plan.rate / (self._process.plan.producers * THREADS)
        try:
            while self._process.is_active:
                self._backpressure.wait()
                (send,) = self._random.choices(sends, weights)
                count = send()
                self._process.wait(self._random.uniform(0.0, 2.0) * count / rate)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error
            self._process.request_end()

    def _send_one(self) -> int:
        topic, message = self._topic(), self._factory.message()
        timeout = self._random.choice([None, None, None, 5.0])
        with self._recorded_send(topic, [message]) as operation:
            operation.add(placed=placed_entries([message], [self._producer(topic).produce(message, timeout=timeout)]))
        return 1

    def _send_batch(self) -> int:
        topic, messages = self._topic(), self._factory.messages()
        with self._recorded_send(topic, messages) as operation:
            operation.add(placed=placed_entries(messages, self._producer(topic).produce_many(messages)))
        return len(messages)

    def _send_concurrently(self) -> int:
        """Submit messages without waiting for the previous one. They must keep their order."""
        topic = self._topic()
        messages = [self._factory.message() for _ in range(self._random.randint(2, _MAX_SUBMITTED))]
        self._submit(self._producer(topic), topic, messages)
        return len(messages)

    def _submit(self, producer: Producer, topic: str, messages: list[Message]) -> None:
        """Submit *messages* and wait for all of them. Each one is recorded before it is submitted."""
        if not messages:
            return
        first, *others = messages
        with self._recorded_send(topic, [first], in_turn=True) as operation:
            future: Future[ProducerResult] = producer.submit(first)
            self._submit(producer, topic, others)
            operation.add(placed=placed_entries([first], [future.result()]))

    def _send_delayed(self) -> int:
        topic, messages = self._topic(), self._factory.messages()[:5]
        delay_us = round(self._random.uniform(*_DELAY_SECONDS) * 1e6)
        try:
            due = clock_us(self._mq.engine) + delay_us
        except SQLAlchemyError:
            return 0
        with self._recorded_send(topic, messages, due=due) as operation:
            self._producer(topic).schedule_many(messages, deliver_at=moment(due))
            operation.add(placed=placed_entries(messages, [None] * len(messages)))
        return len(messages)

    def _send_in_transaction(self) -> int:
        random_, plan = self._random, self._process.plan
        sends = [TransactionSend(self._topic(), message) for message in self._factory.messages()]
        undone: list[TransactionSend] = []
        if random_.random() < plan.savepoint:
            undone = [
                TransactionSend(self._topic(), message, is_undone=True) for message in self._factory.messages()[:3]
            ]
        at = random_.randrange(len(sends) + 1)
        abort_at = random_.randrange(len(sends) + 1) if random_.random() < plan.abort else None
        by_session = random_.random() < 0.5
        all_sends = [*sends[:at], *undone, *sends[at:]]
        fields = TransactionSends.of(all_sends)._asdict() | {"effects": [send.m for send in all_sends]}
        if abort_at is not None:
            fields["abort"] = True
        with recorded(self._process.recorder, "txn", client=self._name, **fields) as operation:
            if by_session:
                with Session(self._mq.engine) as session:
                    publications = self._execute(session, sends, undone, at, abort_at)
                    operation.is_committing = True
                    session.commit()
            else:
                with self._mq.engine.connect() as connection:
                    publications = self._execute(connection, sends, undone, at, abort_at)
                    operation.is_committing = True
                    connection.commit()
            operation.add(placed=placed_entries([one.message for one in sends], [one.result for one in publications]))
        return len(all_sends)

    def _execute(
        self,
        session: Session | Connection,
        sends: list[TransactionSend],
        undone: list[TransactionSend],
        at: int,
        abort_at: int | None,
    ) -> list[Publication]:
        """Execute *sends*. Before the one at *at*, execute *undone* in a savepoint and roll it back."""
        publications = []
        for number in range(len(sends) + 1):
            if number == abort_at:
                raise AbortedError
            if number == at and undone:
                with session.begin_nested() as savepoint:
                    for send in undone:
                        self._send(session, send)
                    savepoint.rollback()
            if number < len(sends):
                publications.append(self._send(session, sends[number]))
        return publications

    def _send(self, session: Session | Connection, send: TransactionSend) -> Publication:
        session.execute(insert_row(self._process.plan.schema, ROW, send.m))
        return self._producer(send.topic).produce(send.message, session=session)

    def _recorded_send(
        self, topic: str, messages: list[Message], due: int | None = None, **more: bool
    ) -> AbstractContextManager[RecordedOperation]:
        entries = sent_entries(messages, due)
        return recorded(self._process.recorder, "send", client=self._name, topic=topic, messages=entries, **more)

    def _topic(self) -> str:
        (topic,) = self._random.choices([ORDERS, TRIMMED], [4, 1])
        return topic

    def _producer(self, topic: str) -> Producer:
        if topic not in self._producers:
            self._producers[topic] = self._mq.producer(topic)
        return self._producers[topic]
