"""COMMIT takes effect and its answer is lost: the caller is told so, and nothing is sent a second time."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Self

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlmq import MQ, Message, OutcomeUnknownError
from tests.contract.shop import Shop, staged
from tests.contract.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from tests.conftest import DatabaseUnderTest

pytestmark = [pytest.mark.faults, pytest.mark.parametrize("database", ["postgres"], indirect=True)]

# As a statement ends on the wire, unlike READ COMMITTED.
COMMIT = b"COMMIT\0"


class Proxy:
    """Stands before the server, and can swallow the answer to a statement and cut the connection off instead."""

    def __init__(self, server: URL) -> None:
        self._server = (server.host or "", server.port or 5432)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._word: bytes | None = None
        self.seen: list[bytes] = []
        self.lost = 0
        self.url = server.set(host="127.0.0.1", port=self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            self._cut(one)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for one in self._sockets:
            one.close()

    def lose_answer_to(self, word: bytes) -> None:
        """Swallow what the server says to the next that a client sends with *word* in it."""
        self._word = word

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                swallowing = threading.Event()
                self._start(self._pass_on, client, server, swallowing, True)
                self._start(self._pass_on, server, client, swallowing, False)

    def _pass_on(self, source: socket.socket, target: socket.socket, swallowing: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if asks:
                    self.seen.append(data)
                    if self._word is not None and self._word in data:
                        self._word = None
                        swallowing.set()
                elif swallowing.is_set():
                    self.lost += 1
                    break
                target.sendall(data)
        self._cut(source)
        self._cut(target)

    @staticmethod
    def _cut(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def shop(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> Shop:
    return Shop(mq, engine, database)


@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_session_whose_commit_is_not_answered_says_so_and_sends_nothing_again(
    shop: Shop, database: DatabaseUnderTest, driver: str, level: str
) -> None:
    with Proxy(make_url(database.url)) as proxy:
        engine = create_engine(proxy.url.set(drivername=f"postgresql+{driver}")).execution_options(
            isolation_level=level
        )
        with Session(engine) as session:
            shop.sell(session, "a")
            proxy.lose_answer_to(COMMIT)

            with pytest.raises(DBAPIError) as raised:
                session.commit()
            session.rollback()
            shop.sell(session, "b")
            session.commit()
        engine.dispose()
    until(lambda: staged(shop.engine, None) == 0, "everything in the log")

    assert raised.value.connection_invalidated
    assert proxy.lost == 1
    assert sum(data.count(COMMIT) for data in proxy.seen) == 2
    assert shop.events == shop.orders == ["a", "b"]


def test_a_session_that_is_cut_off_while_it_publishes_has_published_nothing(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    with Proxy(make_url(database.url)) as proxy:
        engine = create_engine(proxy.url, pool_size=1, max_overflow=0)
        with Session(engine) as session:
            publication = shop.sell(session, "a")
            proxy.lose_answer_to(b"sqlmq_publish")

            with pytest.raises(DBAPIError) as raised:
                session.commit()
            session.rollback()
            shop.sell(session, "b")
            session.commit()
        engine.dispose()

    assert raised.value.connection_invalidated
    assert (proxy.lost, publication.result) == (1, None)
    assert shop.events == shop.orders == ["b"]


@pytest.mark.parametrize(("count", "word"), [(1, b"sqlmq_append"), (5_001, COMMIT)])
def test_a_producer_whose_own_commit_is_not_answered_says_so_and_sends_nothing_again(
    shop: Shop, database: DatabaseUnderTest, count: int, word: bytes
) -> None:
    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url) as mq:
        producer = mq.producer("events")
        proxy.lose_answer_to(word)

        with pytest.raises(OutcomeUnknownError, match="may have taken effect or not"):
            producer.produce_many([Message(b"a", b"k")] * count)
        producer.produce(Message(b"b", b"k"))

    assert proxy.lost == 1
    assert shop.events == ["a"] * count + ["b"]
    with shop.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlmq_message")).scalar_one() == count + 1


def test_a_producer_that_is_cut_off_in_the_middle_of_many_messages_sends_them_once(
    shop: Shop, database: DatabaseUnderTest
) -> None:
    with Proxy(make_url(database.url)) as proxy, MQ(proxy.url) as mq:
        producer = mq.producer("events")
        proxy.lose_answer_to(b"COPY")

        results = producer.produce_many([Message(b"a", b"k")] * 5_001)

    assert proxy.lost == 1
    assert [result.offset for result in results] == list(range(5_001))
    assert shop.events == ["a"] * 5_001
