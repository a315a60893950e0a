"""After a failover the database's clock is ten minutes behind, and a consumer died before. Others must take over soon."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

from sqlalchemy import create_engine, text

from case import Case, run
from sqlmq import MQ, Message

MESSAGES = 6
LEASE_SECONDS = 3
MOST_SECONDS = 45

CONSUMER = f"""
import sys, time
from sqlmq import MQ
consumer = MQ(sys.argv[1], lease_seconds={LEASE_SECONDS}).consumer("clock", "group")
print(consumer.consume(timeout=20).value, flush=True)
time.sleep(99)
"""


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    with MQ(case.url, lease_seconds=LEASE_SECONDS) as mq:
        mq.create_topic("clock", 2)
        producer = mq.producer("clock")
        for number in range(MESSAGES):
            producer.produce(Message(b"%d" % number, key=b"%d" % number))
        consume_and_die(case)
        set_clock_back(case)

        began = time.monotonic()
        received: set[bytes] = set()
        consumer = mq.consumer("clock", "group")
        while len(received) < MESSAGES and time.monotonic() - began < MOST_SECONDS:
            received |= {message.value for message in consumer.poll(1, timeout=1)}
        if len(received) < MESSAGES:
            problems = [problem.summary for problem in mq.admin.diagnose_group("clock", "group", stuck_seconds=5)]
            case.fault(
                f"{len(received)} of {MESSAGES} messages came in {time.monotonic() - began:.0f} s: a dead consumer keeps "
                f"its partitions; the diagnosis: {problems[:1]}"
            )


def consume_and_die(case: Case) -> None:
    with subprocess.Popen([sys.executable, "-c", CONSUMER, case.url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "the consumer got nothing"
        process.kill()


def set_clock_back(case: Case) -> None:
    """Move what the dead consumer has written ten minutes ahead, as the new clock sees it."""
    later = "600000000" if case.is_sqlite else "interval '10 minutes'"
    with create_engine(case.url).begin() as connection:
        connection.execute(text(f"UPDATE sqlmq_member SET heartbeat_at = heartbeat_at + {later}"))
        connection.execute(text(f"UPDATE sqlmq_claim SET changed_at = changed_at + {later}"))


if __name__ == "__main__":
    run(judge)
