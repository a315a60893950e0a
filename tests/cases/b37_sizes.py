"""Big and odd keys, headers and values. What ``produce`` accepts must come out of everything else unchanged."""

from __future__ import annotations

import logging
import os

from case import Case, run
from sqlmq import MQ, Message, ReceivedMessage, Retry

MIB = 1024 * 1024
SENT = 5
MESSAGES = {
    "a key of 1 MiB": Message(b"v", key=os.urandom(MIB)),
    "a key of 3,000 bytes": Message(b"v", key=os.urandom(3000)),
    "an empty key": Message(b"v", key=b""),
    "an empty value": Message(b"", key=b"k"),
    "a key of NUL": Message(b"\0", key=b"\0"),
    "500 headers": Message(b"v", key=b"k", headers={f"h{number}": "x" * 500 for number in range(500)}),
    "a header of 900 KiB": Message(b"v", key=b"k", headers={"h": "ü" * 450_000}),
    "odd names of headers": Message(
        b"v",
        key=b"k",
        headers={
            "": "",
            "$.a[0]": "{}",
            "ключ": "\u2028\u2029\ufeff",
            "a\nb": "\x01\x1f\x7f",
            "__proto__": "x",
            "\U0001f600": "\U0010ffff",
        },
    ),
    "a value of 1 MiB": Message(os.urandom(MIB), key=b"k"),
}


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    with MQ(case.url) as mq:
        for number, (name, message) in enumerate(MESSAGES.items()):
            attempt(case, mq, f"sizes-{number}", name, message)
    case.attempt("values of 20 and 60 MiB", lambda: consume_big_values(case))


def attempt(case: Case, mq: MQ, topic: str, name: str, message: Message) -> None:
    def use_and_park() -> None:
        produce_everywhere(mq, topic, message)
        consume(case, mq, topic, name, message)
        park_and_retry(case, mq, topic, name, message)

    case.attempt(name, use_and_park)


def produce_everywhere(mq: MQ, topic: str, message: Message) -> None:
    producer = mq.producer(topic)
    producer.produce(message)
    producer.produce_many([message, message])
    producer.schedule(message, delay_seconds=0.01)
    producer.schedule(message, delay_seconds=5000)
    with mq.engine.begin() as connection:
        producer.produce(message, session=connection)


def consume(case: Case, mq: MQ, topic: str, name: str, message: Message) -> None:
    received: list[ReceivedMessage] = []
    with mq.consumer(topic, "poll") as consumer:
        while len(received) < SENT and (messages := consumer.poll(timeout=4)):
            received += messages
    changed = sum(
        (one.value, one.key, one.headers) != (message.value, message.key, message.headers) for one in received
    )
    if len(received) != SENT or changed:
        case.fault(f"{name}: {len(received)} of {SENT} messages arrived, {changed} of them changed")


def park_and_retry(case: Case, mq: MQ, topic: str, name: str, message: Message) -> None:
    retry = Retry(max_attempts=2, backoff_seconds=0.01)
    summary = mq.consumer(topic, "run").run(fail, retry=retry, idle_seconds=1, handle_signals=False)
    parked = mq.admin.parked(topic, "run")
    dead = parked.list("dead")
    if len(dead) != SENT:
        case.fault(f"{name}: {len(dead)} of {SENT} dead letters: {summary}")
    parked.blocked_keys()
    parked.get(*dead[0].place)
    parked.list(key=message.key)
    mq.admin.delayed(topic)
    parked.copy_to(f"{topic}-copy", everything=True)
    parked.retry(key=message.key)
    handled: list[ReceivedMessage] = []
    mq.consumer(topic, "run").run(handled.append, idle_seconds=1, handle_signals=False)
    if len(handled) != SENT:
        case.fault(f"{name}: {len(handled)} of {SENT} messages handled after a retry")


def fail(_message: ReceivedMessage) -> None:
    raise ValueError("no")


def consume_big_values(case: Case) -> None:
    with MQ(case.url, max_message_bytes=64 * MIB, prefetch_bytes=MIB) as mq:
        producer = mq.producer("big")
        producer.produce_many([Message(os.urandom(20 * MIB), key=b"%d" % number) for number in range(4)])
        producer.schedule(Message(bytes(60 * MIB)), delay_seconds=0.01)
        with mq.consumer("big", "group") as consumer:
            sizes = sorted(len(consumer.consume(timeout=60).value) for _ in range(5))
    if sizes != [20 * MIB] * 4 + [60 * MIB]:
        case.fault(f"values of 20 and 60 MiB: received sizes are {sizes}")


if __name__ == "__main__":
    run(judge)
