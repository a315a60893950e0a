"""``main`` starts threads that are no daemons, and returns. What they send and read must work, and the process must end."""

from __future__ import annotations

import subprocess
import sys

from case import Case, crowding, last_line, run

ROUNDS = 5
END_SECONDS = 40

HEAD = f"""
import asyncio, sys, threading, time
from sqlmq import MQ, AsyncMQ, Message

url = sys.argv[1]
mq = MQ(url)
producer = mq.producer("outlive")
done = 0

def work(step):
    global done
    time.sleep(0.5)
    for _ in range({ROUNDS}):
        try:
            step()
            done += 1
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            break
    mq.close()
    print(done, flush=True)

def start(target, *arguments):
    threading.Thread(target=target, args=arguments).start()
"""

SCRIPTS = {
    "produce": "start(work, lambda: producer.produce(Message(b'x')))",
    "produce(timeout=)": "start(work, lambda: producer.produce(Message(b'x'), timeout=5))",
    "submit": "start(work, lambda: producer.submit(Message(b'x')).result(5))",
    "submit, then produce": """
def step():
    try:
        producer.submit(Message(b"x"))
    except RuntimeError:
        pass
    producer.produce(Message(b"y"))
start(work, step)
""",
    "consume": """
for _ in range(9):
    producer.produce(Message(b"x"))
consumer = mq.consumer("outlive", "group")
start(work, lambda: consumer.consume(timeout=10))
""",
    "asyncio": f"""
async def main():
    global done
    async with AsyncMQ(url) as mq:
        producer = await mq.producer("outlive")
        for _ in range({ROUNDS}):
            await asyncio.wait_for(producer.produce(Message(b"x")), 10)
            done += 1
def loop():
    time.sleep(0.5)
    asyncio.run(main())
    mq.close()
    print(done, flush=True)
start(loop)
""",
    "run": f"""
for _ in range({ROUNDS}):
    producer.produce(Message(b"x"))
consumer = mq.consumer("outlive", "run")
def run():
    time.sleep(0.5)
    summary = consumer.run(lambda message: None, idle_seconds=1)
    mq.close()
    print(min(summary.handled, {ROUNDS}), flush=True)
start(run)
""",
}


def judge(case: Case) -> None:
    for name, script in SCRIPTS.items():
        run_script(case, name, script)


def run_script(case: Case, name: str, script: str) -> None:
    try:
        ended = subprocess.run(
            [sys.executable, "-c", HEAD + script, case.url],
            capture_output=True,
            text=True,
            check=False,
            timeout=END_SECONDS * crowding(),
        )
    except subprocess.TimeoutExpired as error:
        case.fault(f"{name}: the process never ends; it said {last_line(error.stderr)!r}")
        return
    if ended.stdout.strip() != str(ROUNDS):
        case.fault(f"{name}: {ended.stdout.strip() or 0} of {ROUNDS} done: {last_line(ended.stderr)}")


if __name__ == "__main__":
    run(judge)
