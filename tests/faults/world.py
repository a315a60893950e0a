"""One queue on one database for many cases, what is used of it, and how the database is looked at between them."""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from sqlalchemy import Engine, create_engine, event

from sqlmq import MQ, AsyncMQ, Message, SqlmqError
from sqlmq.database.append_connection import AppendConnection
from tests.faults.wire import BACKGROUND
from tests.support.blocking import blocking
from tests.support.engines import with_savepoints
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from sqlmq.database.append_connection import AutocommitConnection
    from tests.conftest import DatabaseUnderTest
    from tests.support.blocking import Loop

PARTITIONS = 2
FEED = 6
"""How many messages the topic `feed` has, half of them in each partition."""


class Held:
    """The pooled connections that somebody has at the moment, by the thread that took them; of every engine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[int, str] = {}
        event.listen(Engine, "checkout", self._take)
        event.listen(Engine, "checkin", self._give)
        event.listen(Engine, "detach", self._give)
        self._give_spare, self._take_spare = AppendConnection.give, AppendConnection.take
        setattr(AppendConnection, "give", lambda spare, one: self._put_by(spare, one))  # noqa: B010, PLW0108 - of a class
        setattr(AppendConnection, "take", lambda spare: self._take_up(spare))  # noqa: B010, PLW0108

    def remove(self) -> None:
        setattr(AppendConnection, "give", self._give_spare)  # noqa: B010
        setattr(AppendConnection, "take", self._take_spare)  # noqa: B010
        event.remove(Engine, "checkout", self._take)
        event.remove(Engine, "checkin", self._give)
        event.remove(Engine, "detach", self._give)

    @property
    def by_callers(self) -> list[str]:
        with self._lock:
            return [name for name in self._threads.values() if name not in BACKGROUND]

    def _take(self, _connection: object, record: object, _proxy: object) -> None:
        with self._lock:
            self._threads[id(record)] = threading.current_thread().name

    def _give(self, _connection: object, record: object) -> None:
        with self._lock:
            self._threads.pop(id(record), None)

    # One that is kept for the next append is nobody's.

    def _put_by(self, spare: AppendConnection, one: AutocommitConnection) -> None:
        record = one.connection.connection._connection_record
        self._give_spare(spare, one)
        if one in spare._kept:
            self._give(None, record)

    def _take_up(self, spare: AppendConnection) -> AutocommitConnection:
        one = self._take_spare(spare)
        self._take(None, one.connection.connection._connection_record, None)
        return one


class World:
    """A database with a queue in use: topics `orders` and `feed`, a table of the application's, and a way to look at it all."""

    def __init__(self, database: DatabaseUnderTest, loop: Loop | None = None) -> None:
        self.database = database
        self.way = "sync" if loop is None else "asyncio"
        self.held = Held()
        self.loop = loop
        self.engine = with_savepoints(database.url)
        if not database.is_postgres:
            # SQLAlchemy takes a transaction to be over whose COMMIT has failed, and rolls nothing back.
            event.listen(self.engine, "checkin", lambda conn, _: conn and conn.rollback())
            # Nor before it closes a connection that an interrupt has left in the middle of a statement.
            event.listen(self.engine, "invalidate", lambda conn, *_: conn.rollback())
        self.state = QueueState(create_engine(database.url, isolation_level="AUTOCOMMIT"), database.schema)
        self._numbers = itertools.count()
        self.mq = self.make_mq()
        self.mq.create_topic("orders", PARTITIONS)
        self.mq.create_topic("feed", PARTITIONS)
        self.producer = self.mq.producer("orders")
        feed = self.mq.producer("feed")
        for number in range(FEED):
            feed.produce_with_partition(Message(b"%d" % number, b"k%d" % number), number % PARTITIONS)
        self.state.execute("CREATE TABLE effect (name VARCHAR(50))")

    def make_mq(self) -> MQ:
        options: dict[str, Any] = {
            "schema": self.database.schema,
            "default_partitions": PARTITIONS,
            "commit_interval_seconds": 60.0,
            "poll_max_seconds": 0.02,
        }
        if self.loop is not None:
            return blocking(AsyncMQ(self.database.url, **options), self.loop)
        return MQ(self.database.url, **options)

    def close(self) -> None:
        try:
            self.mq.close()
            self.engine.dispose()
            self.state.engine.dispose()
            if self.loop is not None:
                self.loop.close()
            assert self.held.by_callers == []
        finally:
            self.held.remove()

    def name(self, prefix: str = "x") -> str:
        """A name that nothing else has."""
        return f"{prefix}{next(self._numbers)}"

    # What the database says.

    def effects(self, name: str) -> int:
        return self.state.count("SELECT count(*) FROM effect WHERE name = :name", name=name)

    def free_claims(self, group: str) -> None:
        """Do what whoever joins does: free what a close has left that was interrupted, and called again."""
        self.state.execute(
            "UPDATE sqlmq_claim SET member_id = NULL WHERE member_id NOT IN (SELECT id FROM sqlmq_member)"
            " AND group_id IN (SELECT id FROM sqlmq_group WHERE name = :name)",
            name=group,
        )

    # What must hold between two cases.

    def check_nothing_is_held(self) -> None:
        """No connection is taken, no transaction open, but by the threads of the background, which end theirs by themselves."""
        until(lambda: self.held.by_callers == [], "connections given back to the pool", seconds=5)
        if self.database.is_postgres:
            until(lambda: self.state.busy_sessions() == [], "no transaction open", seconds=5)


class Scene(ABC):
    """One operation on objects of its own, or shared ones, that can be called again and again, and what it must have done."""

    may_raise: ClassVar[tuple[type[BaseException], ...]] = ()
    """What may be raised beside our own errors, where the documentation says so."""
    is_once = False
    """Whether a second call does what the first did, and no more: closing, making what is there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.mq = world.mq

    @abstractmethod
    def call(self) -> None:
        """Do it."""

    @abstractmethod
    def check(self, sure: int, perhaps: int) -> None:
        """Assert that it was done as often as it returned, and, if its outcome is unknown, once more or not."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Part with what was made for it."""


class Closing(Scene):
    """Something is closed. A second call fails as the first did."""

    is_once = True
    group: str

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.error: Exception | None = None
        self.is_interrupted = False

    @abstractmethod
    def close_it(self) -> None:
        """Close it."""

    def call(self) -> None:
        if self.error is not None:
            with pytest.raises(type(self.error)):
                self.close_it()
            return
        try:
            self.close_it()
        except (SqlmqError, ExceptionGroup) as error:
            self.error = error
            raise
        except KeyboardInterrupt:
            self.is_interrupted = True
            raise

    def close(self) -> None:
        if self.is_interrupted:
            self.world.free_claims(self.group)


def between(found: int, sure: int, perhaps: int, what: str) -> None:
    assert sure <= found <= sure + perhaps, f"{what}: {found}, after {sure} that returned and {perhaps} unknown"


class Deadline:
    """How long a case may take: it is tried again for five seconds at the most."""

    SECONDS = 20.0

    def __init__(self) -> None:
        self._began = time.monotonic()

    def check(self) -> None:
        seconds = time.monotonic() - self._began
        assert seconds < self.SECONDS, f"took {seconds:.1f} seconds"
