"""A TCP proxy that stands before a Postgres server and does to connections what networks do.

It runs in a thread with an event loop of its own; every method may be called from the test's thread, and has taken effect
when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sqlalchemy import URL

T = TypeVar("T")

COMMIT = b"COMMIT\0"
"""COMMIT as a statement ends on the wire, unlike READ COMMITTED."""

_PATIENCE_SECONDS = 30.0
_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Road:
    """How bytes travel, in both directions."""

    latency_seconds: float = 0.0
    slice_bytes: int = _MOST_BYTES
    bytes_per_second: float | None = None


@dataclass(eq=False)
class Link:
    """One connection of a client, and the one to the server that belongs to it."""

    client: socket.socket
    server: socket.socket
    said: list[bytes] = field(default_factory=list)
    """What the client has sent."""
    is_silent: bool = False
    """Whether bytes are swallowed from now on, while both ends are told that they have arrived."""
    answer_bytes_left: int | None = None
    """After how many more bytes of the server's the connection is cut."""
    is_over: bool = False

    def has_said(self, words: bytes) -> bool:
        """Whether the client has sent *words*; those of the start too, with its ``application_name``."""
        return words in b"".join(self.said)


class Proxy:
    """Passes everything on to *server*, until it is told otherwise. ``url`` is where clients find it, at *host*."""

    def __init__(self, server: URL, host: str = "127.0.0.1") -> None:
        self._server = (server.host or "", server.port or 5432)
        self._listener = socket.create_server((host, 0))
        self._listener.setblocking(False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._road = Road()
        self._answers: bool = True
        self._word: bytes | None = None
        self._word_bytes = 0
        self.lost = 0
        """How many answers were cut off."""
        self.links: list[Link] = []
        self.url = server.set(host=host, port=self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        self._in_loop(lambda: self._begin(self._accept()))
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_SECONDS)
        self._loop.close()

    @property
    def seen(self) -> list[bytes]:
        """What clients have sent, in no order between them."""
        return [data for link in self.links for data in link.said]

    @property
    def open_links(self) -> list[Link]:
        """The connections that there are."""
        return [link for link in self.links if not link.is_over]

    def slow_down(self, road: Road) -> None:
        """Have everything travel by *road* from now on."""
        self._in_loop(lambda: setattr(self, "_road", road))

    def lose_answer_to(self, word: bytes, *, after_bytes: int = 0) -> None:
        """Cut the next connection whose client sends *word*, once *after_bytes* of the server's answer have passed."""

        def expect() -> None:
            self._word, self._word_bytes = word, after_bytes

        self._in_loop(expect)

    def reset(self, which: Callable[[Link], bool] = lambda _: True) -> int:
        """Reset the connections *which* are meant, all by default, as a firewall does; return how many there were."""
        return self._in_loop(lambda: self._each(which, lambda link: self._cut(link, resetting=True)))

    def silence(self, which: Callable[[Link], bool] = lambda _: True) -> int:
        """Swallow what is sent on the connections *which* are meant: both ends believe that they are connected."""
        return self._in_loop(lambda: self._each(which, lambda link: setattr(link, "is_silent", True)))

    def black_hole(self) -> None:
        """Silence all connections, and answer no new one, though it is accepted."""
        self._in_loop(lambda: setattr(self, "_answers", False))
        self.silence()

    def heal(self) -> None:
        """Answer new connections again; those that were silenced stay so."""
        self._in_loop(lambda: setattr(self, "_answers", True))

    def _each(self, which: Callable[[Link], bool], do: Callable[[Link], object]) -> int:
        chosen = [link for link in self.open_links if which(link)]
        for link in chosen:
            do(link)
        return len(chosen)

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            client.setblocking(False)
            server = socket.socket()
            server.setblocking(False)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(client, server, is_silent=not self._answers)
            self.links.append(link)
            self._begin(self._serve(link))

    async def _serve(self, link: Link) -> None:
        try:
            await self._loop.sock_connect(link.server, self._server)
        except OSError:
            self._cut(link)
            return
        self._begin(self._pass_on(link, link.client, link.server))
        self._begin(self._pass_on(link, link.server, link.client))

    async def _pass_on(self, link: Link, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := await self._loop.sock_recv(source, _MOST_BYTES):
                if source is link.client:
                    self._listen_to(link, data)
                elif link.answer_bytes_left is not None:
                    data = data[: link.answer_bytes_left]
                    link.answer_bytes_left -= len(data)
                if not link.is_silent:
                    await self._send(target, data)
                if link.answer_bytes_left == 0 and source is link.server:
                    self.lost += 1
                    break
        self._cut(link)

    def _listen_to(self, link: Link, data: bytes) -> None:
        link.said.append(data)
        if self._word is not None and self._word in data:
            self._word = None
            link.answer_bytes_left = self._word_bytes

    async def _send(self, target: socket.socket, data: bytes) -> None:
        road = self._road
        if road.latency_seconds:
            await asyncio.sleep(road.latency_seconds)
        for start in range(0, len(data), road.slice_bytes):
            piece = data[start : start + road.slice_bytes]
            await self._loop.sock_sendall(target, piece)
            if road.bytes_per_second:
                await asyncio.sleep(len(piece) / road.bytes_per_second)

    def _cut(self, link: Link, *, resetting: bool = False) -> None:
        if link.is_over:
            return
        link.is_over = True
        for end in (link.client, link.server):
            if resetting:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Who waits for it in the loop would wait for whatever gets its number next.
            self._loop.remove_reader(end)
            self._loop.remove_writer(end)
            end.close()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self.links:
            self._cut(link)
        self._listener.close()

    def _in_loop(self, do: Callable[[], T]) -> T:
        async def done() -> T:
            return do()

        return self._wait(done())

    def _wait(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_SECONDS)
