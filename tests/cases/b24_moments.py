"""Moments around changes of the clock, in odd zones, at the ends of time: when a message is due, where a group begins."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from case import Case, run, shown
from sqlmq import MQ, Message, SqlmqError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Producer

TOPIC = "when"
BERLIN, LORD_HOWE, CHATHAM = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Pacific/Chatham")


def hours(number: float) -> timezone:
    return timezone(timedelta(hours=number))


DUE = {
    "the first 2:30": datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN),
    "the second 2:30": datetime(2030, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    "a time that does not exist": datetime(2030, 3, 31, 2, 30, tzinfo=BERLIN),
    "a change by half an hour": datetime(2030, 4, 7, 1, 45, tzinfo=LORD_HOWE, fold=1),
    "an offset with quarters": datetime(2031, 1, 1, tzinfo=CHATHAM),
    "an offset with seconds": datetime(2031, 1, 1, tzinfo=timezone(timedelta(hours=1, minutes=2, seconds=3))),
    "year 1": datetime(1, 1, 1, tzinfo=hours(14)),
    "1969": datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
    "year 9998": datetime(9998, 12, 30, tzinfo=hours(-12)),
    "microseconds": datetime(2033, 5, 5, 1, 1, 1, 999999, tzinfo=UTC),
}
LONG_AGO = {b"year 1", b"1969"}
EXTREMES = {
    "min": datetime.min.replace(tzinfo=UTC),
    "max": datetime.max.replace(tzinfo=UTC),
    "max-west": datetime.max.replace(tzinfo=hours(-14)),
    "min-east": datetime.min.replace(tzinfo=hours(14)),
}
NO_DELAYS = (float("nan"), float("inf"), -1, 1e300, True, "5")


def judge(case: Case) -> None:
    with MQ(case.url) as mq:
        producer = mq.producer(TOPIC)
        for name, moment in DUE.items():
            schedule(case, mq, producer, name, moment)
        for name, moment in EXTREMES.items():
            try_extreme(case, mq, producer, name, moment)
        for delay in NO_DELAYS:
            try_no_delay(case, producer, delay)
        received: set[bytes] = set()
        consumer = mq.consumer(TOPIC, "group")
        while messages := consumer.poll(timeout=3):
            received |= {message.value for message in messages}
        if not received >= LONG_AGO:
            case.fault(f"messages that were due long ago did not come: {sorted(LONG_AGO - received)}")


def schedule(case: Case, mq: MQ, producer: Producer, name: str, moment: datetime) -> None:
    """Schedule a message. It has to be listed for *moment*, unless that is over: then it is on its way."""
    delayed = case.attempt(name, lambda: producer.schedule(Message(name.encode()), deliver_at=moment))
    if delayed is None or moment.year <= 1970:
        return
    due = moment.astimezone(UTC)
    if delayed.deliver_at != due:
        case.fault(f"{name}: due at {delayed.deliver_at}, not at {due}")
    listed = [found for found in mq.admin.delayed(TOPIC) if found.id == delayed.id]
    if [found.deliver_at for found in listed] != [due]:
        case.fault(f"{name}: listed as {listed}")


def try_extreme(case: Case, mq: MQ, producer: Producer, name: str, moment: datetime) -> None:
    """Use *moment* everywhere. It is accepted, or refused by an error for callers."""
    calls: dict[str, Callable[[], object]] = {
        "deliver_at": lambda: producer.schedule(Message(b"x"), deliver_at=moment),
        "start": lambda: mq.consumer(TOPIC, f"start-{name}", start=moment).close(),
        "reset": lambda: mq.admin.preview_reset(TOPIC, "start-min", moment),
    }
    for what, call in calls.items():
        try:
            call()
        except (ValueError, LookupError, SqlmqError):
            pass
        except Exception as error:  # noqa: BLE001 - every other exception is a fault
            case.fault(f"{what} {name}: {shown(error)}")


def try_no_delay(case: Case, producer: Producer, delay: object) -> None:
    try:
        producer.schedule(Message(b"x"), delay_seconds=delay)  # type: ignore[arg-type]  # refused at run time
    except (ValueError, TypeError):
        return
    except Exception as error:  # noqa: BLE001 - every other exception is a fault
        case.fault(f"delay_seconds={delay!r}: {shown(error)}")
    else:
        case.fault(f"delay_seconds={delay!r} was accepted")


if __name__ == "__main__":
    run(judge)
