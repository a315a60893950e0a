"""A consumer runs as a task inside a web server (uvicorn's lifespan). SIGTERM must end the server too, not only the consumer."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from case import Case, NotTriedError, crowding, rest, run
from sqlmq import AsyncMQ, Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    from sqlmq import ReceivedMessage

    Event = MutableMapping[str, Any]

READY = "READY"
STARTED_SECONDS = 1.5
END_SECONDS = 20


def judge(case: Case) -> None:
    if find_spec("uvicorn") is None:
        raise NotTriedError("uvicorn is not installed.")
    for number in (signal.SIGTERM, signal.SIGINT):
        server = subprocess.Popen(
            [sys.executable, sys.argv[0], case.url, "serve"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with server:
            wait_until_ready(server)
            rest(STARTED_SECONDS)
            server.send_signal(number)
            try:
                server.wait(END_SECONDS * crowding())
            except subprocess.TimeoutExpired:
                case.fault(f"{number.name}: the server still runs after {END_SECONDS} s")
                server.kill()


def wait_until_ready(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    if not any(READY in line for line in server.stdout):
        raise AssertionError("The server ended before it was ready.")


def serve(case: Case, _mode: str) -> None:
    import uvicorn

    async def application(
        scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            await live(case.url, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    uvicorn.run(application, host="127.0.0.1", port=free_port(), log_level="info")


async def live(url: str, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]) -> None:
    await receive()
    async with AsyncMQ(url) as mq:
        producer = await mq.producer("web")
        await producer.produce(Message(b"x"))
        consumer = await mq.consumer("web", "group")

        async def handle(_message: ReceivedMessage) -> None:
            print(READY, flush=True)

        running = asyncio.create_task(consumer.run(handle))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        consumer.stop()
        await running
    await send({"type": "lifespan.shutdown.complete"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    run(judge, child=serve)
