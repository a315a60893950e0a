"""Scripts end without close. They must end soon and quietly, and what ``submit`` accepted must not vanish silently."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

from case import Case, crowding, last_line, messages_in, run
from sqlmq import MQ

END_SECONDS = 40
SOON_SECONDS = 15

HEAD = """
import asyncio, sys, threading, time
from sqlmq import MQ, AsyncMQ, Message

url = sys.argv[1]
mq = MQ(url)
producer = mq.producer("ends")
"""


@dataclass(frozen=True)
class Script:
    """The end of a script: how many messages it sends, and its exit status."""

    text: str
    messages: int = 1
    status: int = 0


SCRIPTS = {
    "submit, then the end": Script("for _ in range(500): producer.submit(Message(b'x'))", 500),
    "submit, then sys.exit(3)": Script("for _ in range(500): producer.submit(Message(b'x'))\nsys.exit(3)", 500, 3),
    "submit, then an exception": Script(
        "for _ in range(500): producer.submit(Message(b'x'))\nraise SystemError('of the script')", 500, 1
    ),
    "a consumer is left open": Script(
        """
producer.produce(Message(b"x"))
consumer = mq.consumer("ends", "open")
consumer.consume(timeout=20)
"""
    ),
    "a daemon thread consumes": Script(
        """
consumer = mq.consumer("ends", "daemon")
threading.Thread(target=lambda: [None for message in consumer], daemon=True).start()
producer.produce(Message(b"x"))
time.sleep(1)
"""
    ),
    "a daemon thread runs": Script(
        """
consumer = mq.consumer("ends", "running-daemon")
threading.Thread(target=lambda: consumer.run(lambda message: time.sleep(0.01)), daemon=True).start()
producer.produce(Message(b"x"))
time.sleep(1)
"""
    ),
    "a transaction is open": Script(
        """
producer.produce(Message(b"x"))
consumer = mq.consumer("ends", "transaction")
transaction = consumer.transaction(timeout=20)
transaction.__enter__()
"""
    ),
    "asyncio, nothing is closed": Script(
        """
async def main():
    mq = AsyncMQ(url)
    producer = await mq.producer("ends")
    await producer.produce(Message(b"x"))
    consumer = await mq.consumer("ends", "asyncio")
    await consumer.consume(timeout=20)
asyncio.run(main())
"""
    ),
    "asyncio, submit": Script(
        """
async def main():
    mq = AsyncMQ(url)
    producer = await mq.producer("ends")
    for _ in range(300): producer.submit(Message(b"x"))
asyncio.run(main())
""",
        300,
    ),
}


def judge(case: Case) -> None:
    with MQ(case.url) as mq:
        mq.create_topic("ends", 3)
    for name, script in SCRIPTS.items():
        run_script(case, name, script)


def run_script(case: Case, name: str, script: Script) -> None:
    before = messages_in(case.url, "ends")
    began = time.monotonic()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", HEAD + script.text, case.url],
            capture_output=True,
            text=True,
            check=False,
            timeout=END_SECONDS * crowding(),
        )
    except subprocess.TimeoutExpired:
        case.fault(f"{name}: does not end within {END_SECONDS} s")
        return
    seconds = time.monotonic() - began
    arrived = messages_in(case.url, "ends") - before
    said = last_line(ended.stderr)
    if arrived != script.messages:
        case.fault(
            f"{name}: {arrived} of {script.messages} messages arrived, status {ended.returncode}, it said {said!r}"
        )
    if ended.returncode != script.status:
        case.fault(f"{name}: ended with {ended.returncode}: {said}")
    if seconds > SOON_SECONDS * crowding():
        case.fault(f"{name}: ended after {seconds:.0f} s")
    if said and script.status != 1:
        case.fault(f"{name}: ended with noise: {said}")


if __name__ == "__main__":
    run(judge)
