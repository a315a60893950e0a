"""A process whose clocks are wrong, because it shifts them before the library is imported."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def shift_clocks(seconds: float, zone: str) -> None:
    """Have this process's wall clock and monotonic clock be off by so much, and its time zone be *zone*."""
    os.environ["TZ"] = zone
    time.tzset()
    wall, monotonic = time.time, time.monotonic

    def shifted(clock: Callable[[], float], by: float) -> Callable[[], float]:
        return lambda: clock() + by

    time.time = shifted(wall, seconds)
    # It begins anywhere, but not below 0.
    time.monotonic = shifted(monotonic, 7_200 + seconds)
    real = dt.datetime

    class Shifted(real):  # type: ignore[misc, valid-type]
        __slots__ = ()

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.fromtimestamp(time.time(), tz)

    dt.datetime = Shifted  # type: ignore[misc]


def main() -> None:
    """Do what is asked for, one line of input at a time, and answer each with a line."""
    url, seconds, zone = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    shift_clocks(seconds, zone)
    from sqlmq import MQ, Message

    with MQ(url, lease_seconds=2.0, poll_max_seconds=0.1) as mq:
        producer = mq.producer("orders")
        consumer = mq.consumer("orders", "billing")
        print("ready", flush=True)
        for line in sys.stdin:
            word, *rest = line.split()
            if word == "delay":
                producer.schedule(Message(rest[0].encode()), delay_seconds=float(rest[1]))
                print("delayed", flush=True)
            elif word == "poll":
                got = consumer.poll(timeout=float(rest[0]))
                consumer.commit()
                print("got", *(message.value.decode() for message in got), flush=True)
            elif word == "partitions":
                print(*consumer.partitions, flush=True)


if __name__ == "__main__":
    main()
