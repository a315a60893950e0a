"""The database's DateStyle is not ISO, as in German or EDB installations. Nothing that shows a moment may break."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from case import Case, run
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlmq import ReceivedMessage

STYLES = {
    "German, DMY": "Europe/Berlin",
    "SQL, DMY": "Asia/Kolkata",
    "Postgres, MDY": "America/St_Johns",
}


def judge(case: Case) -> None:
    case.set_default("intervalstyle", "sql_standard")
    case.set_default("bytea_output", "escape")
    for style, zone in STYLES.items():
        case.set_default("datestyle", style)
        case.set_default("timezone", zone)
        with MQ(case.url) as mq:
            use(case, style, mq, topic=style.partition(",")[0].lower())


def use(case: Case, style: str, mq: MQ, topic: str) -> None:
    admin, producer = mq.admin, mq.producer(topic)
    parked = admin.parked(topic, "group")
    now = datetime.now(UTC)

    def attempt_all(calls: Mapping[str, Callable[[], object]]) -> None:
        for what, call in calls.items():
            case.attempt(f"{style}: {what}", call)

    attempt_all(
        {
            "produce": lambda: producer.produce(Message(b"\x00\xff1", key=b"k\\1", headers={"a": "b"})),
            "schedule(delay_seconds=)": lambda: producer.schedule(Message(b"later", key=b"\\x"), delay_seconds=60),
            "schedule(deliver_at=)": lambda: producer.schedule(Message(b"later"), deliver_at=now + timedelta(days=1)),
        }
    )
    delayed = case.attempt(f"{style}: delayed", lambda: admin.delayed(topic))
    if delayed and not timedelta() < delayed[0].deliver_at - datetime.now(UTC) < timedelta(seconds=62):
        case.fault(f"{style}: a message that is due in a minute is listed for {delayed[0].deliver_at}")

    attempt_all(
        {
            "run": lambda: mq.consumer(topic, "group").run(
                fail, retry=Retry(max_attempts=1), idle_seconds=1, handle_signals=False
            ),
            "describe_topic": lambda: admin.describe_topic(topic),
            "describe_group": lambda: admin.describe_group(topic, "group"),
            "lag": admin.lag,
            "members": lambda: admin.members(topic, "group"),
            "parked.list": parked.list,
            "parked.get": lambda: [parked.get(*message.place) for message in parked.list()],
            "parked.blocked_keys": parked.blocked_keys,
            "diagnose": admin.diagnose,
            "diagnose_group": lambda: admin.diagnose_group(topic, "group"),
            "evictions": lambda: admin.evictions(topic),
            "reset_group to a moment": lambda: admin.reset_group(topic, "group", now - timedelta(hours=1), force=True),
            "reset_group by a duration": lambda: admin.reset_group(topic, "group", timedelta(hours=1), force=True),
            "transaction": lambda: transact(mq, topic),
            "tail": lambda: next(iter(admin.tail(topic, last=1, timeout=5))),
        }
    )
    message = case.attempt(f"{style}: a group that starts at a moment", lambda: consume_since(mq, topic, now))
    if message is not None and abs(message.timestamp - datetime.now(UTC)) > timedelta(minutes=1):
        case.fault(f"{style}: a new message has the timestamp {message.timestamp}")


def fail(_message: ReceivedMessage) -> None:
    raise ValueError("no")


def transact(mq: MQ, topic: str) -> None:
    with mq.consumer(topic, "transactions").transaction(timeout=10) as transaction:
        assert transaction.messages


def consume_since(mq: MQ, topic: str, now: datetime) -> ReceivedMessage:
    return mq.consumer(topic, "since", start=now - timedelta(minutes=5)).consume(timeout=10)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
