"""The server is away for 15 seconds under nine consumers and a producer. They log little, and continue afterwards."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import Counter
from typing import TYPE_CHECKING

from case import Case, crowding, rest, run, text_of, until
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from sqlalchemy import URL

    from sqlmq import Consumer

CONSUMERS = 8
AWAY_SECONDS = 15
MOST_RECORDS = 400
MOST_TRACEBACKS = 5
SENT_AFTERWARDS, LEAST_AFTERWARDS = 20, 15


class Proxy:
    """Passes connections on to the server, until it is taken away."""

    def __init__(self, server: URL) -> None:
        self._server = (server.host or "localhost", server.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._sockets: list[socket.socket] = []
        self.is_up = True
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def take_away(self) -> None:
        self.is_up = False
        for one in self._sockets:
            shut_down(one)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if not self.is_up:
                client.close()
                continue
            server = socket.create_connection(self._server)
            self._sockets += client, server
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=pass_on, args=[source, target], daemon=True).start()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was cut off
        while received := source.recv(65536):
            target.sendall(received)
    shut_down(source)
    shut_down(target)


def shut_down(one: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        one.shutdown(socket.SHUT_RDWR)


class Records(logging.Handler):
    """Keeps the records of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def judge(case: Case) -> None:
    kept = Records()
    log = logging.getLogger("sqlmq")
    log.addHandler(kept)
    log.propagate = False
    proxy = Proxy(case.server)
    mq = MQ(text_of(case.server.set(host="127.0.0.1", port=proxy.port)))
    mq.create_topic("flood", CONSUMERS)
    producer = mq.producer("flood")
    received: list[bytes] = []
    for _ in range(CONSUMERS):
        consumer = mq.consumer("flood", "group")
        threading.Thread(target=read, args=[consumer, received], daemon=True).start()
    running = mq.consumer("flood", "run")
    threading.Thread(target=lambda: running.run(ignore, handle_signals=False), daemon=True).start()
    for _ in range(40):
        producer.produce(Message(b"before"))
    rest(3)

    before = len(kept.records)
    proxy.take_away()
    rest(AWAY_SECONDS)
    proxy.is_up = True
    rest(6)
    records, received_before = kept.records[before:], len(received)
    producer.produce_many([Message(b"after", key=b"%d" % number) for number in range(SENT_AFTERWARDS)])
    until(lambda: len(received) - received_before >= LEAST_AFTERWARDS, seconds=5 * crowding())

    tracebacks = sum(record.exc_info is not None for record in records)
    if len(records) > MOST_RECORDS:
        often = Counter((record.levelname, str(record.msg)[:50]) for record in records).most_common(3)
        case.fault(f"{len(records)} records of {CONSUMERS + 1} consumers; most often: {often}")
    if tracebacks > MOST_TRACEBACKS:
        case.fault(f"{tracebacks} tracebacks")
    if len(received) - received_before < LEAST_AFTERWARDS:
        case.fault(f"{len(received) - received_before} of {SENT_AFTERWARDS} messages were received afterwards")


def ignore(_message: object) -> None:
    """Handle nothing."""


def read(consumer: Consumer, received: list[bytes]) -> None:
    """Consume for ever. While the server is away, any error may come."""
    while True:
        try:
            received.append(consumer.consume(timeout=1).value)
        except TimeoutError:
            pass
        except Exception:  # noqa: BLE001 - as above
            rest(0.2)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
