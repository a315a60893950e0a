"""What a database must be able to do for us, with the methods that most databases share.

Only dialects know which database they are on. A dialect begins no transaction by itself: the caller decides when, and
``begin`` knows how a writing one begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import func, select

from sqlmq.schema import tables

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import URL, ColumnElement, Connection, Engine, Insert, Row, Select, Table
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sqlmq.errors import SqlmqError
    from sqlmq.model.message import LogRow, RecordBatch
    from sqlmq.reports.doctor import DatabaseStatus


_SMALL_BYTES = 1024
"""If the byte limit allows less than this for each row, values are likely to exceed it."""

_RANDOM_BITS = 31
"""Half of a positive bigint. The chance that an id equals a certain one from before is 1 to 2 billion."""

_value_of = itemgetter(3)

_FEWEST_PARTITIONS, _FEWEST_ROWS = 8, 50


def most_partitions(limit: int) -> int:
    """Return how many partitions a read of *limit* rows covers.

    Many rows of one partition cost much less than one row of each of many partitions.
    """
    return max(_FEWEST_PARTITIONS, limit // _FEWEST_ROWS)


class PartitionSlice(NamedTuple):
    """Consecutive messages of a batch that go to one partition."""

    topic: str
    """The topic's name, for error messages."""
    partition_id: int
    messages: int
    topic_partitions: int
    """How many partitions the topic has, as far as the producer knows."""


class TopicGrownError(Exception):
    """The topic's number of partitions is not the one that the producer knew. Nothing was appended."""


class Position(NamedTuple):
    """The next offset to read in one partition."""

    partition_id: int
    offset: int


class ClaimedPosition(NamedTuple):
    """A group's new position in one partition, and the epoch of the claim that allows to commit it."""

    partition_id: int
    epoch: int
    offset: int
    in_flight_to: int | None


class LockedRow(NamedTuple):
    """The row that ``lock_and_watch`` locked, if there was one, and a token of its transaction."""

    row: Row[Any] | None
    token: str | None


class ClaimHolder(NamedTuple):
    """A transaction that holds locks on claims."""

    pid: int
    """The id of the server's process."""
    application: str
    """The session's application_name; often empty."""
    state: str
    """``active``, ``idle in transaction``, ...; empty if the session may not see it."""
    seconds: float
    """How long the transaction has been open."""


class Listening(ABC):
    """A connection that receives what ``Dialect.notify`` sends. One thread uses it; any thread may ``interrupt``."""

    @abstractmethod
    def wait(self, seconds: float) -> set[str]:
        """Wait up to *seconds* and return the payloads that arrived. Raises if the connection is lost."""

    @abstractmethod
    def interrupt(self) -> None:
        """End the wait and every later one, from another thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class ConnectionSocket(ABC):
    """The socket of a connection, for another thread than the one that waits for an answer on it."""

    @abstractmethod
    def silent_seconds(self) -> float | None:
        """Return how long nothing has been sent or received; None if that is unknown."""

    @abstractmethod
    def request_cancel(self, seconds: float) -> None:
        """Ask the server to cancel the statement, and wait up to *seconds* for the request to be sent."""

    @abstractmethod
    def shut_down(self) -> None:
        """Break the connection, also for a thread that is waiting on it."""


class Dialect(ABC):
    """The differences of one database, and the schema of our tables."""

    name: ClassVar[str]
    creates_schema_itself: ClassVar[bool] = False
    """Whether the tables are created on first use, without a command."""
    has_functions: ClassVar[bool] = False
    """Whether the migrations create SQL functions."""
    one_writer: ClassVar[bool] = False
    """Whether the database allows one writing transaction at a time."""

    has_socket: ClassVar[bool] = False
    """Whether a network lies between, whose silence the watchdog has to notice."""
    has_change_token: ClassVar[bool] = False
    """Whether ``change_token`` works."""
    can_notify: ClassVar[bool] = False
    """Whether ``notify`` reaches other processes."""
    reads_in_parallel: ClassVar[bool] = False
    """Whether a reading thread leaves the processor to other threads most of the time."""
    moments_from_us: ClassVar[int] = 0
    """The origin of the timestamps in ``LogRow``, in microseconds after 1970-01-01 UTC."""

    def __init__(self, schema: str | None) -> None:
        self.schema = schema
        self.tables = tables(schema)
        self._identities: WeakKeyDictionary[Engine, tuple[object, ...]] = WeakKeyDictionary()
        self._new_ids: dict[str, ColumnElement[int]] = {}  # to build one takes 0.2 ms

    @abstractmethod
    def create_engine(self, url: URL) -> Engine:
        """Create an engine of ours for *url*. Never called for an engine that the user made."""

    @abstractmethod
    def create_async_engine(self, url: URL) -> AsyncEngine:
        """Create an asyncio engine for the URL of an engine of ours."""

    @abstractmethod
    def blocking_url(self, url: URL) -> URL:
        """Return *url* with our driver if it names one whose options can be translated. Other drivers are refused later."""

    def with_application_name(self, url: URL, name: str) -> URL:
        """Return *url* so that its connections have *name* where the database lists them, unless they have one."""
        del name
        return url

    def is_private(self, url: URL) -> bool:
        """Whether only the engine made from *url* can see that database."""
        del url
        return False

    @abstractmethod
    def check_engine(self, engine: Engine) -> None:
        """Raise InvalidURLError if the driver of a user's engine is not supported."""

    @abstractmethod
    def for_transactions(self, engine: Engine) -> Engine:
        """Return *engine*, with the same pool, in the isolation level that appends need."""

    @abstractmethod
    def for_single_statements(self, engine: Engine) -> Engine:
        """Return *engine*, with the same pool, for single statements without BEGIN and COMMIT."""

    def release_invalidated(self, engine: Engine) -> None:  # noqa: B027 - a server notices that a connection has ended
        """Make connections of *engine*, also of an application's, give up their locks as soon as they are invalidated."""

    def begin(self, conn: Connection) -> None:  # noqa: B027 - most databases need nothing: SQLAlchemy begins
        """Begin a writing transaction on *conn*, which is in none."""

    def check_in_place(self, conn: Connection) -> None:  # noqa: B027 - a server has no file that could be removed
        """Raise an error of the driver if the file of *conn* was removed or replaced. ``begin`` does that, too."""

    @abstractmethod
    def is_autocommit(self, conn: Connection) -> bool:
        """Whether *conn* commits each statement, although SQLAlchemy believes it is in a transaction."""

    @abstractmethod
    def lock_and_watch(
        self, conn: Connection, wanted: Select[Any], *, quiet_seconds: float, vanished_seconds: float
    ) -> LockedRow:
        """Run *wanted*, which locks a row, in a transaction that the server ends if its client disappears.

        The server ends it if the client sends nothing for *quiet_seconds*, or can't be reached for *vanished_seconds*.
        A lower limit of the session stays. The limits end with the transaction. Raises IsolationError, with nothing
        locked, if later statements would not see what was committed before the lock.
        """

    @abstractmethod
    def is_same_transaction(self, token: str | None) -> ColumnElement[bool]:
        """Whether a statement runs in the transaction for which ``lock_and_watch`` returned *token*."""

    def release_savepoint(self, conn: Connection) -> bool:
        """Release the savepoint of ``lock_and_watch``, right before COMMIT.

        Returns whether the transaction is still the same.
        """
        del conn
        return True

    def can_append_in_one_statement(self, conn: Connection) -> bool:
        """Whether a small append outside a transaction is its own transaction, in one round trip."""
        del conn
        return False

    def autocommitting(self, conn: Connection) -> contextlib.AbstractContextManager[None]:
        """Make the driver commit each statement on *conn*, which is in no transaction, for a block.

        SQLAlchemy's isolation level does the same in three times the time, which counts for a single message.
        """
        raise NotImplementedError

    def takes_one_statement(self, contents: RecordBatch) -> bool:
        """Whether an append of *contents* is small enough for one statement."""
        del contents
        return True

    def limit_lock_wait(self, conn: Connection, seconds: float) -> None:  # noqa: B027 - some have a limit of their own
        """Limit how long statements of this transaction wait for a lock. They fail with a transient error."""

    def check_session(self, conn: Connection) -> None:  # noqa: B027 - most databases agree on nothing
        """Raise SessionError if *conn*, an application's, is set up so that nothing of ours can work on it."""

    @abstractmethod
    def lock_schema(self, conn: Connection, version_table: str) -> None:
        """Allow one migration at a time, until the transaction ends. What follows sees what the one before has committed.

        Raises IsolationError if that is impossible because the transaction has an older snapshot.
        """

    @abstractmethod
    def now(self) -> ColumnElement[object]:
        """The current time by the database's clock, as it is stored."""

    def began_at(self) -> ColumnElement[object]:
        """The start of the transaction by the database's clock, which is the timestamp of its messages."""
        return self.now()

    @abstractmethod
    def seconds_from_now(self, seconds: float) -> ColumnElement[object]:
        """The moment *seconds* from now by the database's clock, as it is stored."""

    @abstractmethod
    def moment(self, at: datetime) -> ColumnElement[object]:
        """*at*, an aware moment, as it is stored."""

    @abstractmethod
    def microseconds(self, moment: ColumnElement[object]) -> ColumnElement[int]:
        """*moment* as microseconds after 1970-01-01 UTC, in any time zone and date style of the session."""

    @abstractmethod
    def moment_of(self, stored: Any) -> datetime:  # noqa: ANN401 - what the driver makes of the column
        """Return a *stored* moment, aware, in UTC."""

    @abstractmethod
    def moment_shown(self, shown: Any) -> datetime | None:  # noqa: ANN401 - what the driver makes of a view's column
        """Return a moment as our views show it, aware, in UTC, or None."""

    @abstractmethod
    def database_status(self, conn: Connection) -> DatabaseStatus:
        """Read the status of the database, for ``sqlmq doctor``."""

    def may_read(self, conn: Connection, table: str, column: str) -> bool:
        """Whether the session may read *column* of *table*, a table or view of ours."""
        del conn, table, column
        return True

    def claim_holders(self, conn: Connection) -> list[ClaimHolder]:
        """Return the transactions that hold locks on claims, the oldest first, as far as they are visible."""
        del conn
        return []

    def new_id(self, table: Table) -> ColumnElement[int]:
        """The id of a new row of *table*, above all others there, which no row had before in this or another database.

        Programs keep ids for as long as they live. If the tables are emptied, or restored from a dump, a sequence starts
        again and gives the same numbers to other topics. So the lower half of an id is random: to the database, an id
        from before is an unknown one, and nothing that is written for it reaches another topic (docs/design/identity.md).
        """
        found = self._new_ids.get(table.name)
        if found is None:
            unit = 1 << _RANDOM_BITS
            highest = select(func.coalesce(func.max(table.c.id), 0)).scalar_subquery()
            found = self._new_ids[table.name] = (highest // unit + 1) * unit + self.random_bits(_RANDOM_BITS)
        return found

    @abstractmethod
    def random_bits(self, bits: int) -> ColumnElement[int]:
        """A random number of up to 31 *bits*, drawn by the database for each row."""

    @abstractmethod
    def age_seconds(self, moment: ColumnElement[object]) -> ColumnElement[float]:
        """Seconds since *moment*, by the database's clock."""

    @abstractmethod
    def insert_new(self, table: Table, unique: Sequence[str]) -> Insert:
        """Return an INSERT that leaves an existing row with the same *unique* columns unchanged."""

    @abstractmethod
    def insert_or_update(
        self, table: Table, unique: Sequence[str], changed: Sequence[str], kept: Sequence[str] = ()
    ) -> Insert:
        """Return an INSERT that updates an existing row with the same *unique* columns.

        Columns *changed* get the new value; columns *kept* get it only if they are null.
        """

    def commit_claimed(
        self,
        conn: Connection,
        group_id: int,
        member_id: int,
        positions: Sequence[ClaimedPosition],
        *,
        durably: bool,
        updating_in_flight: bool,
    ) -> set[int] | None:
        """Lock the claims that *member_id* still has and insert the group's *positions* there, in one statement.

        Returns the ids of those partitions; None, without any change, if this database needs several statements. An
        existing position is not an error; if *updating_in_flight*, its in-flight offset is updated. Unless *durably*, a crash of
        the server right after may lose the commit.
        """
        del conn, group_id, member_id, positions, durably, updating_in_flight
        return None

    @abstractmethod
    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        """Append *contents*, which are in the order of *parts*, and return the first offset of each part.

        Locks the partitions' rows, in the ascending order of *parts*, until the transaction ends. Raises
        UnknownTopicError if a partition is gone; TopicGrownError, with nothing appended, if a topic has another number
        of partitions.
        """

    def append_to_any(
        self, conn: Connection, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
    ) -> tuple[int, int]:
        """Append like ``append``, to *part*, or to one of *others* if *part* is locked and that one is not.

        A database that can't tell uses *part*. Returns the partition's id and the offset of the first message.
        """
        del others
        (base,) = self.append(conn, [part], contents)
        return part.partition_id, base

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        """Append like ``append``, in a transaction of any isolation level, on a connection of any driver.

        If the level hides the newest offset, the messages are staged instead, without a lock, and the result is None.
        """
        return self.append(conn, parts, contents)

    def identity(self, conn: Connection, *, fresh: bool) -> tuple[object, ...]:
        """Return a value that no other database has, until its server restarts.

        Unless *fresh*, it may be a cached value of the same engine.
        """
        if fresh or conn.engine not in self._identities:
            self._identities[conn.engine] = self.identify(conn)
        return self._identities[conn.engine]

    @abstractmethod
    def identify(self, conn: Connection) -> tuple[object, ...]:
        """Ask the database for the value of ``identity``."""

    def read(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        """Read up to *limit* rows, an equal share from each of the first partitions that have any.

        Rows of a partition are in order of offset. ``most_partitions`` limits the number of partitions; the order of
        *positions* is their priority. A partition's rows stop before its share of *max_bytes* of values is exceeded,
        but its first row always comes.
        """
        # Adding up sizes doubles the cost of a read. It is not needed if *limit* small values can't exceed *max_bytes*.
        if (small := max_bytes // limit) >= _SMALL_BYTES:
            rows = self.read_small(conn, positions, limit, small)
            if None not in map(_value_of, rows):
                return rows
        return self.read_within(conn, positions, limit, max_bytes)

    @abstractmethod
    def read_small(self, conn: Connection, positions: Sequence[Position], limit: int, small: int) -> list[LogRow]:
        """Read like ``read``, with None for values of more than *small* bytes, without adding up sizes."""

    @abstractmethod
    def read_within(self, conn: Connection, positions: Sequence[Position], limit: int, max_bytes: int) -> list[LogRow]:
        """Read like ``read``, adding up the sizes."""

    @abstractmethod
    def ready(self, conn: Connection, positions: Collection[Position]) -> set[Position]:
        """Return those of *positions* from which ``read`` would return rows."""

    def change_token(self, conn: Connection) -> int:
        """Return a number that changes when another connection writes. Reading it costs almost nothing."""
        raise NotImplementedError

    def notify(self, conn: Connection, payloads: Collection[str]) -> None:
        """Send *payloads* to all connections that listen for the same tables. *conn* is in no transaction."""
        raise NotImplementedError

    def listen(self, engine: Engine, awaited: Callable[[object], contextlib.AbstractContextManager[None]]) -> Listening:
        """Listen on a new connection, made like those of *engine* but outside its pool.

        Every request on it runs inside a block of *awaited*, which limits how long the server may be silent.
        """
        raise NotImplementedError

    def connection_socket(self, connection: object) -> ConnectionSocket | None:
        """Return the socket of a driver's *connection*; None if it has none that could be shut down."""
        del connection
        return None

    @abstractmethod
    def translate(self, error: Exception, where: str) -> SqlmqError | None:
        """Return our error for the driver's *error* at the database *where*; None for other errors."""

    def quotes_rows(self, error: Exception) -> bool:
        """Whether the driver's *error* may quote parts of a row, which must not get into logs."""
        del error
        return False

    @abstractmethod
    def is_transient(self, error: Exception) -> bool:
        """Whether a transaction that failed with *error* may succeed if it runs again from its start."""

    @abstractmethod
    def is_disconnect(self, error: Exception) -> bool:
        """Whether *error* means that the connection is lost."""


@contextmanager
def closed_on_error(connection: DBAPIConnection) -> Iterator[None]:
    """Close *connection* if the block, a listener of the pool's ``connect`` event, fails.

    SQLAlchemy before 2.0.53 forgets such a connection without closing it.
    """
    try:
        yield
    except BaseException:
        with suppress(Exception):
            connection.close()
        raise


def without_secrets(url: URL) -> str:
    """Return *url* for display: without password and without query, which can contain one."""
    return url._replace(password=None, query=type(url.query)()).render_as_string(hide_password=True)
