"""Append on Postgres: by a SQL function, in one round trip; or by COPY, for many messages.

The functions are in ``migrations/sql/postgresql/append.sql``: lock, newest offset, insert.

Through psycopg, arrays are sent in binary form, packed here: psycopg takes twice the time for it, gives a list of numbers
the type that its largest one needs, and prepares a statement for each combination of types. In an application's session,
whose driver can be another, they are sent through SQLAlchemy, as lists.
"""

from __future__ import annotations

import re
import struct
from itertools import chain, islice, pairwise, repeat
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy.exc import DBAPIError

from sqlmq.dialects.base import PartitionSlice, TopicGrownError
from sqlmq.dialects.postgresql.session.conventions import cannot_encode, encoded
from sqlmq.errors import UnknownTopicError
from sqlmq.model.message import has_any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq.model.message import RecordBatch

ARRAY_MESSAGES = 5_000
"""The most messages in one statement. COPY is faster for more, but waits three times more often while it locks."""
ARRAY_BYTES = 16 * 1024 * 1024
"""The most bytes of values in one statement, except for a single message: the server holds them all at once."""
COPY_MESSAGES = 1_000
"""How many messages are packed for COPY at a time. The server works on one piece while the next is packed."""

# An error of our own function. Every driver passes on its text.
_UNKNOWN_PARTITION = re.compile(r"the topic of partition id (\d+) was deleted")

_MANY = ("bigint[]", "integer[]", "bytea[]", "bytea[]", "text[]", "integer[]")
_KEYLESS = ("bigint[]", "bytea[]", "text[]", "integer")
_ONE = ("bigint", "bytea", "bytea", "text", "integer")
_KNOWN = ("bigint[]", "integer[]")
_GROWN = -1
"""What the functions for one message return if the topic has grown. Those for many return no offsets."""
_CURSOR = "sqlmq_appending"
_KEPT_BYTES = 65_536
"""The most bytes a kept cursor may have sent: it holds them until it sends something else."""
_BIGINT, _INTEGER, _BYTEA, _TEXT = 20, 23, 17, 25

_pack_bigint = struct.Struct("!q").pack
_pack_integer = struct.Struct("!i").pack
_NULL = _pack_integer(-1)
_LENGTHS = list(map(_pack_integer, range(2_048)))
"""The packed lengths of most fields. A look-up takes a third of the time of packing."""
# The head of an array: dimensions, whether it has nulls, type of the elements, their number, index of the first.
# https://github.com/postgres/postgres/blob/REL_18_0/src/backend/utils/adt/arrayfuncs.c#L1272
_pack_array_head = struct.Struct("!iiIii").pack
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_COLUMNS = ("partition_id", "msg_offset", "key", "value", "headers")
_pack_copy_head = struct.Struct("!hiqiq").pack  # the number of columns, and the first two columns
_JSONB_VERSION = b"\x01"


class AppendStatements:
    """The statements for tables and functions whose names begin with *prefix*."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._append = self._call("sqlmq_append", _MANY, "psycopg").encode()
        self._append_to_any = self._call("sqlmq_append_to_any", _KEYLESS, "psycopg").encode()
        self._append_one = self._call("sqlmq_append_one", _ONE, "psycopg").encode()
        self._next_offsets = self._call("sqlmq_next_offsets", _KNOWN, "psycopg").encode()
        self._copy = f"COPY {prefix}sqlmq_message ({', '.join(_COPY_COLUMNS)}) FROM STDIN (FORMAT binary)".encode()

    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        """Append as ``Dialect.append``, on a connection of psycopg, which our own transactions have."""
        return _with_cursor(conn, parts, contents, lambda cursor: self._run(cursor, parts, contents))

    def append_to_any(
        self, conn: Connection, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
    ) -> tuple[int, int]:
        """Append as ``Dialect.append_to_any``, if *contents* fit into arrays."""
        wanted = bigints((part.partition_id, *others))

        def run(cursor: psycopg.Cursor[Any]) -> list[int]:
            columns = _array(_BYTEA, contents.values), _array(_TEXT, encoded(cursor.connection, contents).headers)
            return _bases(_only(cursor.execute(self._append_to_any, (wanted, *columns, part.topic_partitions))))

        chosen, base = _with_cursor(conn, [part], contents, run)
        return chosen, base

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        """Append as ``Dialect.publish``."""
        if not fits_arrays(contents):
            # Check first: a piece that was published can't be undone when the next one finds its topic grown.
            self._check_not_grown(conn, parts)
        found: dict[int, int] = {}
        for some_parts, some in _pieces(parts, contents):
            bases = self._publish(conn, some_parts, some)
            for part, base in zip(some_parts, bases or (), strict=bases is not None):
                found.setdefault(part.partition_id, base)
        return [found[part.partition_id] for part in parts] if found else None

    def _run(self, cursor: psycopg.Cursor[Any], parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        if len(contents.values) == 1:  # sent as text, which the driver encodes
            return _base(_only(cursor.execute(self._append_one, _one(parts, contents))))
        contents = encoded(cursor.connection, contents)
        ids = bigints([part.partition_id for part in parts])
        if fits_arrays(contents):
            return _bases(_only(cursor.execute(self._append, (ids, *_columns(parts, contents)))))
        bases = _bases(_only(cursor.execute(self._next_offsets, (ids, _known(parts)))))
        with cursor.copy(self._copy) as copy:
            for piece in _copied(parts, bases, contents):
                copy.write(piece)
        return bases

    def _publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        if len(contents.values) == 1:
            statement = self._call("sqlmq_publish_one", _ONE, conn.dialect.driver)
            parameters: tuple[object, ...] = _one(parts, contents)
        else:
            statement = self._call("sqlmq_publish", _MANY, conn.dialect.driver)
            headers = [None if raw is None else raw.decode() for raw in contents.headers]
            columns = [
                list(column) if has_any(column) else None for column in (contents.keys, contents.values, headers)
            ]
            ids, known = [part.partition_id for part in parts], [part.topic_partitions for part in parts]
            parameters = (ids, [part.messages for part in parts], *columns, known)
        bases = _executed(conn, statement, parameters, parts)
        if bases is None:
            return None
        return _base(bases) if isinstance(bases, int) else _bases(bases)

    def _check_not_grown(self, conn: Connection, parts: Sequence[PartitionSlice]) -> None:
        ids, known = [part.partition_id for part in parts], [part.topic_partitions for part in parts]
        if _executed(conn, self._call("sqlmq_is_grown", _KNOWN, conn.dialect.driver), (ids, known), parts):
            raise TopicGrownError

    def _call(self, function: str, types: Sequence[str], driver: str) -> str:
        if driver == "asyncpg":
            arguments = [f"${number}::{type_}" for number, type_ in enumerate(types, 1)]
            return f"SELECT {self._prefix}{function}({', '.join(arguments)})"
        # Binary where the driver leaves the choice.
        mark = "%b" if driver in ("psycopg", "psycopg_async") else "%s"
        arguments = [f"{mark}::{type_}" for type_ in types]
        return f"SELECT {self._prefix.replace('%', '%%')}{function}({', '.join(arguments)})"


def _with_cursor(
    conn: Connection,
    parts: Sequence[PartitionSlice],
    contents: RecordBatch,
    run: Callable[[psycopg.Cursor[Any]], list[int]],
) -> list[int]:
    """Call *run* to append *contents* to *parts*, with a cursor that stays with its connection.

    Creating a cursor takes a fifth of the driver's whole time. A kept cursor holds what it sent, so it is kept only if
    that is small.
    """
    connection = begun(conn)
    info = conn.info
    cursor: psycopg.Cursor[Any] | None = info.pop(_CURSOR, None)
    if cursor is None:
        cursor = array_cursor(connection)
    try:
        result = run(cursor)
    except psycopg.Error as error:
        _raise_if_unknown(error, parts)
        raise
    except UnicodeEncodeError as error:
        raise cannot_encode(error) from None
    if sum(map(len, contents.values)) <= _KEPT_BYTES:
        info[_CURSOR] = cursor
    return result


def _executed(conn: Connection, statement: str, parameters: tuple[object, ...], parts: Sequence[PartitionSlice]) -> Any:  # noqa: ANN401 - a column of any type
    try:
        return conn.exec_driver_sql(statement, parameters).scalar_one()
    except DBAPIError as error:
        # The statement's parameters are messages, which must not get into logs.
        error.hide_parameters = True
        _raise_if_unknown(error.orig, parts)
        raise
    except UnicodeEncodeError as error:
        raise cannot_encode(error) from None


def fits_arrays(contents: RecordBatch) -> bool:
    """Whether one statement can take all of *contents*."""
    count = len(contents.values)
    return count == 1 or (count <= ARRAY_MESSAGES and sum(map(len, contents.values)) <= ARRAY_BYTES)


def _columns(parts: Sequence[PartitionSlice], contents: RecordBatch) -> tuple[Array | None, ...]:
    """Return the parameters: the number of messages of each of *parts*, and the columns."""
    return (
        integers([part.messages for part in parts]),
        _array(_BYTEA, contents.keys),
        _array(_BYTEA, contents.values),
        _array(_TEXT, contents.headers),
        _known(parts),
    )


def _known(parts: Sequence[PartitionSlice]) -> Array | None:
    return integers([part.topic_partitions for part in parts])


def _one(parts: Sequence[PartitionSlice], contents: RecordBatch) -> tuple[object, ...]:
    """Return the parameters for a single message."""
    headers = None if contents.headers[0] is None else contents.headers[0].decode()
    return parts[0].partition_id, contents.keys[0], contents.values[0], headers, parts[0].topic_partitions


def _copied(parts: Sequence[PartitionSlice], bases: Sequence[int], contents: RecordBatch) -> Iterator[bytes]:
    """Return the rows in COPY's binary form."""
    ids = chain.from_iterable(repeat(part.partition_id, part.messages) for part in parts)
    offsets = chain.from_iterable(range(base, base + part.messages) for part, base in zip(parts, bases, strict=True))
    heads = map(_pack_copy_head, repeat(len(_COPY_COLUMNS)), repeat(8), ids, repeat(8), offsets)
    yield _COPY_HEAD
    for first in range(0, len(contents.values), COPY_MESSAGES):
        some = contents.between(first, first + COPY_MESSAGES)
        headers = [None if raw is None else _JSONB_VERSION + raw for raw in some.headers]
        columns = chain.from_iterable(map(_measured, (some.keys, some.values, headers)))
        yield b"".join(_by_turns(list(islice(heads, len(some.values))), *columns))


def _pieces(
    parts: Sequence[PartitionSlice], contents: RecordBatch
) -> Iterator[tuple[Sequence[PartitionSlice], RecordBatch]]:
    """Split *contents* into pieces that fit into one statement each."""
    cuts = [0]
    size = 0
    for place, value in enumerate(contents.values):
        size += len(value)
        if place - cuts[-1] == ARRAY_MESSAGES or (size > ARRAY_BYTES and place > cuts[-1]):
            cuts.append(place)
            size = len(value)
    for first, end in pairwise([*cuts, len(contents.values)]):
        yield _between(parts, first, end), contents.between(first, end)


def _between(parts: Sequence[PartitionSlice], first: int, end: int) -> list[PartitionSlice]:
    """Return the parts of the messages from *first* to *end*."""
    found = []
    began = 0
    for part in parts:
        count = min(began + part.messages, end) - max(began, first)
        if count > 0:
            found.append(part._replace(messages=count))
        began += part.messages
    return found


def _only(cursor: psycopg.Cursor[Any]) -> Any:  # noqa: ANN401 - a column of any type
    ((one,),) = cursor.fetchall()
    return one


def _base(base: int) -> list[int]:
    if base == _GROWN:
        raise TopicGrownError
    return [base]


def _bases(bases: list[int]) -> list[int]:
    if not bases:
        raise TopicGrownError
    return bases


def _raise_if_unknown(error: BaseException | None, parts: Sequence[PartitionSlice]) -> None:
    if gone := _UNKNOWN_PARTITION.search(str(error)):
        topic = next(part.topic for part in parts if part.partition_id == int(gone[1]))
        raise UnknownTopicError(topic) from error


class Array:
    """A packed array. The statement casts it to its type."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


def begun(conn: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection of *conn*, which is one of ours, for statements that SQLAlchemy does not see."""
    connection = conn.connection.driver_connection
    assert isinstance(connection, psycopg.Connection)  # noqa: S101 - check_engine ensures it
    if not (connection.autocommit or conn.in_transaction()):
        conn.begin()  # or SQLAlchemy would not commit the transaction that the cursor begins
    return connection


def array_cursor(connection: psycopg.Connection[Any]) -> psycopg.Cursor[Any]:
    """Return a new cursor that takes packed arrays, and fetches in binary form."""
    cursor = connection.cursor(binary=True)
    cursor.adapters.register_dumper(Array, _ArrayDumper)
    return cursor


def bigints(numbers: Sequence[int | None]) -> Array | None:
    """Pack an array of bigint."""
    return _array(_BIGINT, [None if number is None else _pack_bigint(number) for number in numbers])


def integers(numbers: Sequence[int]) -> Array | None:
    """Pack an array of integer."""
    return _array(_INTEGER, [_pack_integer(number) for number in numbers])


def _array(element_oid: int, column: Sequence[bytes | None]) -> Array | None:
    """Pack the fields of *column*, each in its binary form. None if all are null."""
    if not has_any(column):
        return None
    head = _pack_array_head(1, 1, element_oid, len(column), 1)
    return Array(b"".join([head, *_by_turns(*_measured(column))]))


def _measured(column: Sequence[bytes | None]) -> tuple[list[bytes], Sequence[bytes]]:
    """Return the packed lengths of the fields of *column*, and the fields."""
    try:
        fields = cast("Sequence[bytes]", column)
        sizes = list(map(len, fields))
    except TypeError:  # a field is null
        lengths = [_NULL if field is None else _pack_integer(len(field)) for field in column]
        return lengths, [field or b"" for field in column]
    try:
        return [_LENGTHS[size] for size in sizes], fields
    except IndexError:
        return list(map(_pack_integer, sizes)), fields


def _by_turns(*columns: Sequence[bytes]) -> list[bytes]:
    """Return the first field of each of *columns*, then the second of each, and so on."""
    merged = [b""] * (len(columns[0]) * len(columns))
    for number, column in enumerate(columns):
        merged[number :: len(columns)] = column
    return merged
