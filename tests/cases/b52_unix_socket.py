"""The server is reached by a Unix socket, and work takes longer than ``response_timeout_seconds``. It must not be cut off.

On a socket the library can't measure whether the server still works.
"""

from __future__ import annotations

import time

from sqlalchemy import URL

from case import Case, NotTriedError, run, shown, text_of
from sqlmq import MQ, Message, SqlmqError

SENT = 300_000
RESPONSE_TIMEOUT_SECONDS = 1.0


def judge(case: Case) -> None:
    socket_url = url_by_socket(case)
    try:
        with MQ(socket_url) as mq:
            mq.create_topic("socket", 2)
            mq.producer("socket").produce(Message(b"x"))
    except SqlmqError as error:
        raise NotTriedError(f"The server has no socket that this account reaches: {shown(error)}") from error
    produce_and_consume(case, "by socket", socket_url)
    produce_and_consume(case, "by TCP", case.url)
    delete_and_wait(case, socket_url)


def url_by_socket(case: Case) -> str:
    directory = str(case.scalar("SHOW unix_socket_directories")).split(",")[0].strip()
    if not directory:
        raise NotTriedError("The server listens to no Unix socket.")
    server = case.server
    return text_of(
        URL.create(
            server.drivername,
            username=server.username,
            password=server.password,
            database=server.database,
            query={"host": directory, "port": str(case.scalar("SHOW port"))},
        )
    )


def produce_and_consume(case: Case, name: str, url: str) -> None:
    messages = [Message(bytes(200), key=b"%d" % (number % 50)) for number in range(SENT)]
    group = name.replace(" ", "-")
    with MQ(url, response_timeout_seconds=RESPONSE_TIMEOUT_SECONDS, max_message_bytes=2**26) as mq:
        producer = mq.producer("socket")
        began = time.monotonic()
        if not case.succeeds(f"{name}: produce_many of {SENT} messages", lambda: producer.produce_many(messages)):
            case.fault(f"{name}: that was after {time.monotonic() - began:.1f} s")
            return
        received = case.attempt(f"{name}: reading", lambda: count(mq, group))
        if received is not None and received < SENT:
            case.fault(f"{name}: {received} of {SENT} messages were read")
        case.attempt(f"{name}: reset_group", lambda: mq.admin.reset_group("socket", group, "earliest", force=True))


def count(mq: MQ, group: str) -> int:
    received = 0
    with mq.consumer("socket", group) as consumer:
        while messages := consumer.poll(5000, timeout=3):
            received += len(messages)
    return received


def delete_and_wait(case: Case, url: str) -> None:
    with MQ(url, response_timeout_seconds=2 * RESPONSE_TIMEOUT_SECONDS) as mq:
        case.attempt("by socket: delete_topics", lambda: mq.delete_topics("socket"))
        consumer = mq.consumer("idle", "group")
        case.attempt("by socket: waiting", lambda: consumer.poll(timeout=6))


if __name__ == "__main__":
    run(judge, only_on="postgresql")
