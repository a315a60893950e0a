"""What a database must be able to do for us, and what most of them do the same way.

A dialect is the only place that knows which database it is on. It begins no transaction by itself: ``begin`` only says
how a writing one has to begin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

from sqlmq.schema import tables

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from sqlalchemy import URL, ColumnElement, Connection, Engine, Insert, Row, Select, Table
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.errors import SqlmqError
    from sqlmq.model.message import LogRow, RecordBatch
    from sqlmq.reports.doctor import DatabaseStatus


_SMALL_BYTES = 1024
"""Where the allowance for a row is less than this, values are likely to exceed it."""

_value_of = itemgetter(3)

_FEWEST_PARTITIONS, _FEWEST_ROWS = 8, 50


def most_partitions(limit: int) -> int:
    """How many partitions a read of *limit* rows spreads over: many rows of one cost much less than one of many each."""
    return max(_FEWEST_PARTITIONS, limit // _FEWEST_ROWS)


class PartitionSlice(NamedTuple):
    """So many messages, one after the other, that go to one partition."""

    topic: str
    """The topic's name, for errors to tell."""
    partition_id: int
    messages: int
    topic_partitions: int
    """How many partitions the topic has, as far as is known."""


class TopicGrownError(Exception):
    """A topic has other than the partitions that were known; nothing was appended."""


class Position(NamedTuple):
    """Where to read on in one partition."""

    partition_id: int
    offset: int


class HeldPosition(NamedTuple):
    """A group's new position in one partition, and the epoch of the claim that entitles to it."""

    partition_id: int
    epoch: int
    offset: int
    in_flight_to: int | None


class LockedRow(NamedTuple):
    """The row that ``hold`` has locked, if there was one, and what tells its transaction from a later one."""

    row: Row[Any] | None
    token: str | None


class Holder(NamedTuple):
    """A transaction that holds claims of groups."""

    pid: int
    """Of the server's process."""
    application: str
    """What the session calls itself; often nothing."""
    state: str
    """``active``, ``idle in transaction``, ...; empty where we may not see it."""
    seconds: float
    """For how long it has been open."""


class Listening(ABC):
    """A connection that hears what ``Dialect.notify`` sends from anywhere. Used by one thread, but for ``interrupt``."""

    @abstractmethod
    def wait(self, seconds: float) -> set[str]:
        """Wait for payloads, up to *seconds*, and return those that have come. Raises when the connection is lost."""

    @abstractmethod
    def interrupt(self) -> None:
        """End the wait and every later one, from another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class ConnectionSocket(ABC):
    """The wire of a connection, seen from another thread than the one that waits for an answer on it."""

    @abstractmethod
    def silent_seconds(self) -> float | None:
        """Since when nothing has been sent or received; None where that can't be known."""

    @abstractmethod
    def request_cancel(self, seconds: float) -> None:
        """Ask the server to end the statement, and wait up to *seconds* until it has heard that."""

    @abstractmethod
    def shut_down(self) -> None:
        """Break the connection, for whoever waits too."""


class Dialect(ABC):
    """One database, and the schema our tables are in."""

    name: ClassVar[str]
    creates_schema_itself: ClassVar[bool] = False
    """Whether the tables are made on first use, without being asked for."""
    one_writer: ClassVar[bool] = False
    """Whether the database has room for a single writing transaction at a time."""

    has_line: ClassVar[bool] = False
    """Whether there is a network between, whose silence has to be noticed."""
    has_change_token: ClassVar[bool] = False
    """Whether ``change_token`` tells something."""
    can_notify: ClassVar[bool] = False
    """Whether ``notify`` reaches other processes."""
    reads_in_parallel: ClassVar[bool] = False
    """Whether a thread that reads leaves the processor to others for most of the time."""
    moments_from_us: ClassVar[int] = 0
    """From where the moments of ``LogRow`` count, in microseconds after 1970-01-01 UTC."""

    def __init__(self, schema: str | None) -> None:
        self.schema = schema
        self.tables = tables(schema)
        self._identities: WeakKeyDictionary[Engine, tuple[object, ...]] = WeakKeyDictionary()

    @abstractmethod
    def create_engine(self, url: URL) -> Engine:
        """Make the engine for a URL of our own; never called for an engine that the user made."""

    @abstractmethod
    def create_async_engine(self, url: URL) -> AsyncEngine:
        """Make an engine for asyncio, for the URL of an engine of our own."""

    @abstractmethod
    def blocking_url(self, url: URL) -> URL:
        """*url* with the driver that we use, where it names one for asyncio; other drivers are left for us to refuse."""

    def is_private(self, url: URL) -> bool:
        """Whether nobody but the engine made from *url* sees what is in that database."""
        del url
        return False

    @abstractmethod
    def check_engine(self, engine: Engine) -> None:
        """Raise InvalidURLError if a user's engine has a driver that can't be used."""

    @abstractmethod
    def for_transactions(self, engine: Engine) -> Engine:
        """The same pool, for transactions in which offsets can be numbered, whatever the defaults are."""

    @abstractmethod
    def for_single_statements(self, engine: Engine) -> Engine:
        """The same pool, for single statements that need no BEGIN and COMMIT of their own."""

    def begin(self, conn: Connection) -> None:  # noqa: B027 - most databases need nothing: SQLAlchemy begins
        """Begin a writing transaction on *conn*, which is in none."""

    @abstractmethod
    def is_autocommit(self, conn: Connection) -> bool:
        """Whether *conn*, which SQLAlchemy takes to be in a transaction, commits each statement by itself."""

    @abstractmethod
    def lock_and_watch(
        self, conn: Connection, wanted: Select[Any], *, quiet_seconds: float, vanished_seconds: float
    ) -> LockedRow:
        """Run *wanted*, which locks a row, in a transaction that the server ends when nobody is behind it any more.

        That is when its owner sends nothing for *quiet_seconds*, or can't be reached for *vanished_seconds*; a lower
        limit that is there already stays. The limits end with the transaction. Raises IsolationError, with nothing
        locked, if later statements would not see what was committed before the lock was there.
        """

    @abstractmethod
    def is_same_transaction(self, token: str | None) -> ColumnElement[bool]:
        """Whether a statement runs in the very transaction in which ``hold`` gave *token*."""

    def release_savepoint(self, conn: Connection) -> bool:
        """Be done with ``hold``, right before COMMIT; return whether the transaction was still the same."""
        del conn
        return True

    def can_append_in_one_statement(self, conn: Connection) -> bool:
        """Whether an append outside any transaction is one of its own, in one round trip, if it is not too large."""
        del conn
        return False

    def autocommitting(self, conn: Connection) -> contextlib.AbstractContextManager[None]:
        """Let statements that the driver alone sees commit by themselves, on *conn*, which is in no transaction.

        The same by SQLAlchemy's isolation level takes three times as long, which for a single message counts.
        """
        raise NotImplementedError

    def takes_one_statement(self, contents: RecordBatch) -> bool:
        """Whether an append of *contents* is not too large for that."""
        del contents
        return True

    def limit_lock_wait(self, conn: Connection, seconds: float) -> None:  # noqa: B027 - some have a limit of their own
        """Have statements of this transaction fail, for a passing reason, that wait longer than that for a lock."""

    @abstractmethod
    def lock_schema(self, conn: Connection) -> None:
        """Let one migration run at a time, until the transaction ends."""

    @abstractmethod
    def now(self) -> ColumnElement[object]:
        """This moment by the database's clock, as it is stored."""

    def began_at(self) -> ColumnElement[object]:
        """When the transaction began by the database's clock, which its messages have for a timestamp, as it is stored."""
        return self.now()

    @abstractmethod
    def seconds_from_now(self, seconds: float) -> ColumnElement[object]:
        """The moment *seconds* from now by the database's clock, as it is stored."""

    @abstractmethod
    def moment(self, at: datetime) -> ColumnElement[object]:
        """*at*, an aware moment, as it is stored."""

    @abstractmethod
    def microseconds(self, moment: ColumnElement[object]) -> ColumnElement[int]:
        """*moment* as microseconds after 1970-01-01 UTC, whatever time zone and date style the session has."""

    @abstractmethod
    def moment_of(self, stored: Any) -> datetime:  # noqa: ANN401 - what the driver makes of the column
        """A moment as it is *stored*, aware, UTC."""

    @abstractmethod
    def moment_shown(self, shown: Any) -> datetime | None:  # noqa: ANN401 - what the driver makes of a view's column
        """A moment as our views show it, aware, UTC; None if there is none."""

    @abstractmethod
    def database_status(self, conn: Connection) -> DatabaseStatus:
        """What the database says of itself."""

    def may_read(self, conn: Connection, table: str, column: str) -> bool:
        """Whether the session may read *column* of *table*, a table or view of ours."""
        del conn, table, column
        return True

    def claim_holders(self, conn: Connection) -> list[Holder]:
        """The transactions that hold claims of groups locked now, as far as the database tells; the oldest first."""
        del conn
        return []

    @abstractmethod
    def age_seconds(self, moment: ColumnElement[object]) -> ColumnElement[float]:
        """Seconds since *moment*, by the database's clock."""

    @abstractmethod
    def insert_new(self, table: Table, unique: Sequence[str]) -> Insert:
        """An INSERT that leaves alone a row which is there already, by the columns *unique*."""

    @abstractmethod
    def insert_or_update(
        self, table: Table, unique: Sequence[str], changed: Sequence[str], kept: Sequence[str] = ()
    ) -> Insert:
        """An INSERT that changes a row which is there already, by the columns *unique*.

        Columns *changed* get the new value; columns *kept* only where there is none yet.
        """

    def commit_held(
        self,
        conn: Connection,
        group_id: int,
        member_id: int,
        positions: Sequence[HeldPosition],
        *,
        durably: bool,
        marking: bool,
    ) -> set[int] | None:
        """Lock those claims that *member_id* still has, and insert the group's *positions* there, in one statement.

        Returns the ids of those partitions; None, and does nothing, where that takes several statements. A position
        that is there already is no error; if *marking*, it is told what is in hand. Unless *durably*, a server that
        crashes right after may have forgotten it.
        """
        del conn, group_id, member_id, positions, durably, marking
        return None

    @abstractmethod
    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        """Number the messages *contents*, which lie in order of *parts*, and add them to the log.

        Returns the offset of the first message of each part. The partitions' rows, by whose ids the parts ascend, are
        locked in that order until the transaction ends. Raises UnknownTopicError if one of the partitions is gone, and
        TopicGrownError, with nothing appended, if one of the topics has other than the partitions known.
        """

    def append_to_any(
        self, conn: Connection, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
    ) -> tuple[int, int]:
        """As ``append``, to *part*; or to one of the partitions *others*, if nobody appends there now and to it somebody.

        Where that can't be told, it is *part*. Returns the partition's id, and the offset of the first message.
        """
        del others
        (base,) = self.append(conn, [part], contents)
        return part.partition_id, base

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        """As ``append``, in a transaction of any isolation level, on a connection of any driver.

        Where the level does not let it see the newest offset, the messages are staged, without a lock; then None.
        """
        return self.append(conn, parts, contents)

    def identity(self, conn: Connection, *, fresh: bool) -> tuple[object, ...]:
        """What tells the database of *conn* from all others, until its server starts again.

        Unless it has to be *fresh*, the answer may be an old one for the same engine.
        """
        if fresh or conn.engine not in self._identities:
            self._identities[conn.engine] = self.identify(conn)
        return self._identities[conn.engine]

    @abstractmethod
    def identify(self, conn: Connection) -> tuple[object, ...]:
        """Ask what ``identity`` tells."""

    def read(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        """Read up to *limit* rows, a fair part from each of the first partitions that have any, in order of offset in each.

        How many partitions that are, ``most_partitions`` says; those come first whose *positions* do. Stops in each partition before its part of *max_bytes* of values is exceeded, but never before its first row.
        """
        # Adding up sizes doubles what a read costs, and needs no doing where so many rows can't be too much together.
        if (small := max_bytes // limit) >= _SMALL_BYTES:
            rows = self.read_small(conn, positions, limit, small)
            if None not in map(_value_of, rows):
                return rows
        return self.read_within(conn, positions, limit, max_bytes)

    @abstractmethod
    def read_small(self, conn: Connection, positions: Sequence[Position], limit: int, small: int) -> list[LogRow]:
        """As ``read``, with None for values of more than *small* bytes, and without adding up."""

    @abstractmethod
    def read_within(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        """As ``read``, adding up the sizes."""

    @abstractmethod
    def ready(self, conn: Connection, positions: Collection[Position]) -> set[Position]:
        """Those of *positions* from which ``read`` would read something."""

    def change_token(self, conn: Connection) -> int:
        """A number that changes when another connection has written, read at next to no cost."""
        raise NotImplementedError

    def notify(self, conn: Connection, payloads: Collection[str]) -> None:
        """Send *payloads* to all who listen to the same tables, with *conn* in no transaction."""
        raise NotImplementedError

    def listen(self, engine: Engine, awaited: Callable[[object], contextlib.AbstractContextManager[None]]) -> Listening:
        """Listen, on a connection made as *engine* makes its own, but outside its pool.

        What is asked on that of the driver is asked in a block of *awaited*.
        """
        raise NotImplementedError

    def line(self, connection: object) -> ConnectionSocket | None:
        """The line of a driver's *connection*; None if there is none that could be cut."""
        del connection
        return None

    @abstractmethod
    def translate(self, error: Exception, where: str) -> SqlmqError | None:
        """Our error for a driver's *error* at the database *where*; None if it is not the database's doing."""

    def quotes_rows(self, error: Exception) -> bool:
        """Whether the driver's *error* can hold parts of a row, which belong in no log."""
        del error
        return False

    @abstractmethod
    def is_transient(self, error: Exception) -> bool:
        """Whether a transaction that failed so may succeed if it is run again from its beginning."""

    @abstractmethod
    def is_disconnect(self, error: Exception) -> bool:
        """Whether the connection broke without a last word from the server."""


def without_secrets(url: URL) -> str:
    """*url* as it may be shown: without password and query, which can hold one."""
    return url._replace(password=None, query=type(url.query)()).render_as_string(hide_password=True)
