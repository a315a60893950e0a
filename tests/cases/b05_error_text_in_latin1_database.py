"""A handler fails with a text for which the database's encoding has no letters. The failure must be stored all the same."""

from __future__ import annotations

import uuid

from case import Case, run, text_of, upgrade
from sqlmq import MQ, Message, ReceivedMessage, Retry

TEXTS = {
    "plain": "plain",
    "an emoji": "smile \U0001f600 and 漢字",
    "a NUL": "NUL \x00 in it",
    "half a surrogate pair": "half \ud800 surrogate",
    "three million characters": "x" * 3_000_000,
    "a euro sign": "€uro ≠ dollar",
}
OTHERS = 10


def judge(case: Case) -> None:
    if case.is_sqlite:
        fail_with_each(case, "SQLite", case.url)
        return
    fail_with_each(case, "UTF8", case.url)
    with case.postgres_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0") as database:
        upgrade(database)
        fail_with_each(case, "LATIN1", text_of(database))


def fail_with_each(case: Case, encoding: str, url: str) -> None:
    for name, text in TEXTS.items():
        handle(case, f"{encoding}, {name}", url, text)


def handle(case: Case, name: str, url: str, text: str) -> None:
    handled: list[bytes] = []

    def handler(message: ReceivedMessage) -> None:
        if message.value == b"poison":
            raise ValueError(text)
        handled.append(message.value)

    with MQ(url) as mq:
        topic = f"errors-{uuid.uuid4().hex[:6]}"
        producer = mq.producer(topic)
        producer.produce(Message(b"poison", key=b"a"))
        for number in range(OTHERS):
            producer.produce(Message(b"%d" % number, key=b"other%d" % number))
        consumer = mq.consumer(topic, "group")
        retry = Retry(max_attempts=2, backoff_seconds=0.01)
        case.attempt(f"{name}: run", lambda: consumer.run(handler, retry=retry, idle_seconds=1.5, handle_signals=False))
        dead = mq.admin.parked(topic, "group").list("dead")
        if len(dead) != 1 or len(handled) != OTHERS:
            case.fault(f"{name}: {len(dead)} dead letters instead of 1, {len(handled)} of {OTHERS} others handled")


if __name__ == "__main__":
    run(judge)
