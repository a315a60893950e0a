"""The MQ: one database, its topics, producers and consumers."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Self, get_args

from sqlmq.admin.access import DatabaseAccess
from sqlmq.admin.admin import Admin
from sqlmq.consumer.consumer import Consumer
from sqlmq.consumer.coordinator import Subscription
from sqlmq.consumer.core import Ack, ConsumerCore
from sqlmq.database.database import Database
from sqlmq.errors import InvalidTopicError
from sqlmq.hooks.clock import check_clock
from sqlmq.hooks.failpoints import arm_by_environment
from sqlmq.model import validation
from sqlmq.model.config import MQConfig, OnEvicted
from sqlmq.model.positions import check_start
from sqlmq.model.retention import Retention, check_retention
from sqlmq.model.validation import (
    check_group,
    check_member_name,
    check_partitioner,
    check_partitions,
    check_schema,
    check_topic,
)
from sqlmq.operations.admin import topics as admin_topics
from sqlmq.producer.batcher import Batcher
from sqlmq.producer.core import ProducerCore
from sqlmq.producer.producer import Producer
from sqlmq.resources import Resources

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy import URL, Engine

    from sqlmq.hooks.clock import Clock
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.positions import Start


class MQ:
    """A message queue in a SQL database. Thread-safe.

    *database* is a URL (``sqlite:///file.db``, ``postgresql://user:password@host/name``), a SQLAlchemy URL, or an Engine,
    which is used as it is and never disposed. If a URL names a driver for asyncio, ours for the same database is used.
    *schema* is the schema of the tables on Postgres; by default, the connection's default schema. The first call that
    needs the database connects; on SQLite it also creates the tables.

    Close it, or use it in a ``with`` statement. One is enough for a program. An MQ that was dropped, with all that was made
    from it, closes itself and emits a ResourceWarning.

    - *create_topics*: create a missing topic for a producer or consumer; if off, they raise UnknownTopicError.
    - *default_partitions*: the number of partitions of a topic that is created without a number.
    - *max_message_bytes*: the largest value, key or headers that a producer accepts and that ``parked`` copies.
    - *lease_seconds*: how long a consumer keeps its partitions after its last heartbeat.
    - *max_poll_seconds*: how long a consumer keeps its partitions after its last call for messages.
    - *commit_interval_seconds*: how long the offsets of finished messages may wait to be committed together.
    - *durable_commits*: on Postgres, these commits wait for the disk; if off, a server crash may redeliver messages.
    - *prefetch*, *prefetch_bytes*: how much a consumer reads ahead.
    - *poll_min_seconds*, *poll_max_seconds*: the first and the longest pause of an idle consumer between two polls.
    - *response_timeout_seconds*: on Postgres, how long a response may take before the connection is given up.
    - *notify*: on Postgres, wake waiting consumers of other processes by NOTIFY, and listen for theirs.
    - *clock*: time, waits and random numbers, for tests; the system's by default.

    Raises InvalidURLError, and ``TypeError`` or ``ValueError`` for invalid options.
    """

    def __init__(
        self,
        database: str | URL | Engine,
        *,
        schema: str | None = None,
        create_topics: bool = True,
        default_partitions: int = 3,
        max_message_bytes: int = 1024 * 1024,
        lease_seconds: float = 10.0,
        max_poll_seconds: float = 300.0,
        commit_interval_seconds: float = 0.2,
        durable_commits: bool = True,
        prefetch: int = 4000,
        prefetch_bytes: int = 8 * 1024 * 1024,
        poll_min_seconds: float = 0.005,
        poll_max_seconds: float = 1.0,
        response_timeout_seconds: float = 30.0,
        notify: bool = True,
        clock: Clock | None = None,
    ) -> None:
        config = MQConfig(
            create_topics=create_topics,
            default_partitions=default_partitions,
            max_message_bytes=max_message_bytes,
            lease_seconds=lease_seconds,
            max_poll_seconds=max_poll_seconds,
            commit_interval_seconds=commit_interval_seconds,
            durable_commits=durable_commits,
            prefetch=prefetch,
            prefetch_bytes=prefetch_bytes,
            poll_min_seconds=poll_min_seconds,
            poll_max_seconds=poll_max_seconds,
            response_timeout_seconds=response_timeout_seconds,
            notify=notify,
        )
        self._open(open_database(database, schema, config, clock), config)

    def _open(self, database: Database, config: MQConfig) -> None:
        self._database = database
        self._config = config
        self._resources = Resources(database, config)
        self._in_use = self._resources.new_handle()
        self._background = self._resources.background
        self._access = DatabaseAccess(database, config, self._in_use)
        self._admin = Admin(
            self._access, self._background.registry, self._background.retention, self._background.notifier
        )

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine: the given Engine, or the one made from the URL."""
        return self._database.engine

    @property
    def schema(self) -> str | None:
        """The schema that holds the tables; None for the connection's default."""
        return self._database.schema

    @property
    def admin(self) -> Admin:
        """The operations of an operator: topics, groups, lag, retention, parked and delayed messages."""
        return self._admin

    def create_topic(
        self,
        topic: str,
        partitions: int | None = None,
        *,
        partitioner: str | None = None,
        retention: Retention | None = None,
    ) -> bool:
        """Create a topic with *partitions*, numbered from 0, and return whether it is new.

        Without *partitions* it gets the MQ's ``default_partitions``. An existing topic stays unchanged; that is no error, but
        a warning in the log if it has fewer partitions.
        *partitioner* decides which partition a key goes to: ``murmur2`` (the default; as Kafka's Java client), ``fnv1a``
        or ``crc32``. It is stored with the topic and can't change: another partitioner for an existing topic raises
        TopicConflictError. *retention* limits what the topic keeps: by default everything, see ``admin.set_retention``.
        """
        wanted = self._config.default_partitions if partitions is None else partitions
        check_topic(topic)
        check_partitions(wanted)
        if partitioner is not None:
            check_partitioner(partitioner)
        if retention is not None:
            check_retention(retention)
        is_new = self._access.write(admin_topics.create_topic, topic, wanted, partitioner, retention)
        if not is_new and partitions is not None:
            self._access.log_if_smaller(topic, partitions)
        return is_new

    def delete_topics(self, *topics: str) -> list[str]:
        """Delete *topics* with their messages and groups, and return the names of those that existed.

        A topic that does not exist, or an invalid name, is no error. Producers and consumers of a deleted
        topic get UnknownTopicError. One transaction removes the topics; then their messages are deleted, some thousands
        in each transaction.
        """
        names = []
        for topic in topics:
            with contextlib.suppress(InvalidTopicError):  # no such topic can exist
                names.append(check_topic(topic))
        self._database.check_outside_block("delete topics")
        deleted = self._access.write(admin_topics.delete_topics, names)
        while self._access.write(admin_topics.purge):
            pass
        return deleted

    def producer(self, topic: str) -> Producer:
        """Create a producer for *topic*. A missing topic is created, unless ``create_topics`` is off."""
        found = self._access.find_or_create_topic(topic)
        core = ProducerCore(
            self._database,
            found,
            max_message_bytes=self._config.max_message_bytes,
            notifier=self._background.notifier,
            scheduler=self._background.scheduler,
        )
        batcher = Batcher(core)
        producer = Producer(core, batcher, self._in_use)
        self._resources.add_producer(producer, batcher)
        return producer

    def consumer(
        self,
        topic: str,
        group: str,
        *,
        start: Start = "earliest",
        ack: Ack = "auto",
        name: str | None = None,
        on_evicted: OnEvicted = "raise",
    ) -> Consumer:
        """Create a consumer that reads *topic* as a member of *group*.

        A missing group is created, and a missing topic, unless ``create_topics`` is off. *start* is where a new group
        begins: ``earliest``, ``latest`` (after the newest message), or an aware datetime (the first message since then).
        An existing group continues at its position.

        ``ack="auto"`` finishes a message when the application asks for the next one: at least once. ``ack="on_delivery"``
        commits it before it is delivered: at most once. *name* is the name of the member in lists; host and process by default.
        *on_evicted* decides what happens when retention has deleted messages that the group had not read: ``raise``
        EvictedError, or continue at the ``earliest`` remaining message and log a warning that names the deleted ones.
        """
        check_group(group)
        start = check_start(start)
        validation.choice("ack", ack, get_args(Ack))
        validation.choice("on_evicted", on_evicted, get_args(OnEvicted))
        if name is not None:
            check_member_name(name)
        found = self._access.find_or_create_topic(topic)
        subscription = Subscription(
            found, group, start, _member_name(self._database.clock) if name is None else name, on_evicted
        )
        self._background.registry.start_threads()
        self._background.scheduler.watch()
        self._background.retention.start()
        core = ConsumerCore(self._database, self._background.registry, subscription, self._config, ack)
        self._resources.add_consumer(core)
        return Consumer(core, self._in_use)

    def observe(self, observer: Observer | None) -> None:
        """Call *observer* around every send and every handler from now on; None removes it. There is one at a time.

        Handlers that ``run`` has already started are not affected. ``sqlmq.opentelemetry`` provides an observer.
        """
        self._database.observer = observer

    def close(self) -> None:
        """Close every producer and consumer of this MQ, then the connections, unless the Engine was given.

        Their errors are raised together in one ExceptionGroup. A second call has the same result. If the database does
        not respond, closing ends after five seconds.
        """
        self._database.check_outside_block("close its MQ")
        self._access.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        schema = f", schema {self.schema!r}" if self.schema else ""
        return f"<MQ on {self._database.where}{schema}{' (closed)' if self._access.closed else ''}>"


def open_database(database: str | URL | Engine, schema: str | None, config: MQConfig, clock: Clock | None) -> Database:
    """Return the Database of an MQ. Does not connect. Raises InvalidURLError, TypeError or ValueError."""
    arm_by_environment()
    return Database(database, check_schema(schema), config.response_timeout_seconds, check_clock(clock))


def open_mq(database: Database, config: MQConfig) -> MQ:
    """Return an MQ on an open *database*. AsyncMQ uses it."""
    mq = MQ.__new__(MQ)
    mq._open(database, config)  # noqa: SLF001 - of this module
    return mq


def _member_name(clock: Clock) -> str:
    """Return the default name of a member: host and process for people, and a token that is unique in the process."""
    return f"{socket.gethostname()}:{os.getpid()}:{clock.token()[:8]}"
