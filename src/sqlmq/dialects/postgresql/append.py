"""Appending on Postgres: by a function of our own, in one round trip; or by COPY, if there is much.

Through psycopg, arrays go out in binary form, laid out here: psycopg's own way takes twice the time. In a session of the
application's, whose driver can be another, they go through SQLAlchemy, as lists.
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
from sqlmq.errors import UnknownTopicError
from sqlmq.model.message import has_any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlmq.model.message import RecordBatch

ARRAY_MESSAGES = 5_000
"""Messages in one statement at the most. COPY is faster for more, but waits three times more often with the lock held."""
ARRAY_BYTES = 16 * 1024 * 1024
"""Bytes of values in one statement at the most, but for a single message: the server holds them all at once."""
COPY_MESSAGES = 1_000
"""Messages laid out for COPY at a time; the server works on one piece while the next is made."""

# What our own function raises, in words that every driver hands on.
_UNKNOWN_PARTITION = re.compile(r"the topic of partition id (\d+) was deleted")

_MANY = ("bigint[]", "integer[]", "bytea[]", "bytea[]", "text[]", "integer[]")
_KEYLESS = ("bigint[]", "bytea[]", "text[]", "integer")
_ONE = ("bigint", "bytea", "bytea", "text", "integer")
_KNOWN = ("bigint[]", "integer[]")
_GROWN = -1
"""What a function for one message gives if the topic has other than the partitions known; those for many give nothing."""
_CURSOR = "sqlmq_appending"
_KEPT_BYTES = 65_536
"""How much a cursor may have sent to be kept: it holds that until it sends something else."""
_BIGINT, _INTEGER, _BYTEA, _TEXT = 20, 23, 17, 25

_pack_bigint = struct.Struct("!q").pack
_pack_integer = struct.Struct("!i").pack
_NULL = _pack_integer(-1)
_LENGTHS = list(map(_pack_integer, range(2_048)))
"""What most fields have before them: to look it up takes a third of packing it."""
# Dimensions, whether there may be nulls, type of the elements; how many, and the index of the first.
# https://github.com/postgres/postgres/blob/REL_18_0/src/backend/utils/adt/arrayfuncs.c#L1272
_pack_array_head = struct.Struct("!iiIii").pack
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_COLUMNS = ("partition_id", "msg_offset", "key", "value", "headers")
_pack_copy_head = struct.Struct("!hiqiq").pack  # how many columns, and the first two of them
_JSONB_VERSION = b"\x01"


class AppendStatements:
    """The statements, for tables and functions whose names have *prefix* before them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._append = self._call("sqlmq_append", _MANY, "psycopg").encode()
        self._append_to_any = self._call("sqlmq_append_to_any", _KEYLESS, "psycopg").encode()
        self._append_one = self._call("sqlmq_append_one", _ONE, "psycopg").encode()
        self._next_offsets = self._call("sqlmq_next_offsets", _KNOWN, "psycopg").encode()
        self._copy = f"COPY {prefix}sqlmq_message ({', '.join(_COPY_COLUMNS)}) FROM STDIN (FORMAT binary)".encode()

    def append(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        """As ``Dialect.append``; on a connection of psycopg's, which our own transactions have."""
        return _with_cursor(conn, parts, contents, lambda cursor: self._run(cursor, parts, contents))

    def append_to_any(
        self, conn: Connection, part: PartitionSlice, others: Sequence[int], contents: RecordBatch
    ) -> tuple[int, int]:
        """As ``Dialect.append_to_any``, for what fits into arrays."""
        wanted = _array(_BIGINT, [_pack_bigint(id_) for id_ in (part.partition_id, *others)])
        columns = _array(_BYTEA, contents.values), _array(_TEXT, contents.headers)
        parameters = (wanted, *columns, part.topic_partitions)
        chosen, base = _with_cursor(
            conn, [part], contents, lambda cursor: _bases(_only(cursor.execute(self._append_to_any, parameters)))
        )
        return chosen, base

    def publish(self, conn: Connection, parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int] | None:
        """As ``Dialect.publish``."""
        if not fits_arrays(contents):
            # What was published of one piece could not be taken back when the next finds its topic grown.
            self._check_not_grown(conn, parts)
        found: dict[int, int] = {}
        for some_parts, some in _pieces(parts, contents):
            bases = self._publish(conn, some_parts, some)
            for part, base in zip(some_parts, bases or (), strict=bases is not None):
                found.setdefault(part.partition_id, base)
        return [found[part.partition_id] for part in parts] if found else None

    def _run(self, cursor: psycopg.Cursor[Any], parts: Sequence[PartitionSlice], contents: RecordBatch) -> list[int]:
        if len(contents.values) == 1:
            return _base(_only(cursor.execute(self._append_one, _one(parts, contents))))
        ids = _array(_BIGINT, [_pack_bigint(part.partition_id) for part in parts])
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
    """Have *run* append *contents* to *parts*, by a cursor that is kept with its connection.

    To make one takes a fifth of what the driver takes in all. It is kept with what it has sent, if that is not much.
    """
    connection = conn.connection.driver_connection
    assert isinstance(connection, psycopg.Connection)  # noqa: S101 - what check_engine made sure of
    if not (connection.autocommit or conn.in_transaction()):
        conn.begin()  # SQLAlchemy does not see that the cursor begins one, and would not commit it
    info = conn.info
    cursor: psycopg.Cursor[Any] | None = info.pop(_CURSOR, None)
    if cursor is None:
        cursor = connection.cursor(binary=True)
        cursor.adapters.register_dumper(_Array, _ArrayDumper)
    try:
        result = run(cursor)
    except psycopg.Error as error:
        _raise_if_unknown(error, parts)
        raise
    if sum(map(len, contents.values)) <= _KEPT_BYTES:
        info[_CURSOR] = cursor
    return result


class _Array:
    """An array as the server takes it; the statement says of what type."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> bytes:
        return obj.data


def _executed(conn: Connection, statement: str, parameters: tuple[object, ...], parts: Sequence[PartitionSlice]) -> Any:  # noqa: ANN401 - a column of any type
    try:
        return conn.exec_driver_sql(statement, parameters).scalar_one()
    except DBAPIError as error:
        # The statement's parameters are messages, which belong in no log.
        error.hide_parameters = True
        _raise_if_unknown(error.orig, parts)
        raise


def fits_arrays(contents: RecordBatch) -> bool:
    """Whether one statement takes all of *contents*."""
    count = len(contents.values)
    return count == 1 or (count <= ARRAY_MESSAGES and sum(map(len, contents.values)) <= ARRAY_BYTES)


def _columns(parts: Sequence[PartitionSlice], contents: RecordBatch) -> tuple[_Array | None, ...]:
    """How many messages each of *parts* has, and what they hold."""
    return (
        _array(_INTEGER, [_pack_integer(part.messages) for part in parts]),
        _array(_BYTEA, contents.keys),
        _array(_BYTEA, contents.values),
        _array(_TEXT, contents.headers),
        _known(parts),
    )


def _known(parts: Sequence[PartitionSlice]) -> _Array | None:
    return _array(_INTEGER, [_pack_integer(part.topic_partitions) for part in parts])


def _array(element_oid: int, column: Sequence[bytes | None]) -> _Array | None:
    if not has_any(column):
        return None
    head = _pack_array_head(1, 1, element_oid, len(column), 1)
    return _Array(b"".join([head, *_by_turns(*_measured(column))]))


def _measured(column: Sequence[bytes | None]) -> tuple[list[bytes], Sequence[bytes]]:
    """The lengths of the fields of *column*, as they stand before each in binary forms, and the fields."""
    try:
        fields = cast("Sequence[bytes]", column)
        sizes = list(map(len, fields))
    except TypeError:  # there are nulls
        lengths = [_NULL if field is None else _pack_integer(len(field)) for field in column]
        return lengths, [field or b"" for field in column]
    try:
        return [_LENGTHS[size] for size in sizes], fields
    except IndexError:
        return list(map(_pack_integer, sizes)), fields


def _by_turns(*columns: Sequence[bytes]) -> list[bytes]:
    """The first of each of *columns*, the second of each, and so on."""
    merged = [b""] * (len(columns[0]) * len(columns))
    for number, column in enumerate(columns):
        merged[number :: len(columns)] = column
    return merged


def _one(parts: Sequence[PartitionSlice], contents: RecordBatch) -> tuple[object, ...]:
    """The parameters for a single message."""
    headers = None if contents.headers[0] is None else contents.headers[0].decode()
    return parts[0].partition_id, contents.keys[0], contents.values[0], headers, parts[0].topic_partitions


def _copied(parts: Sequence[PartitionSlice], bases: Sequence[int], contents: RecordBatch) -> Iterator[bytes]:
    """The rows in COPY's binary form."""
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
    """What is appended, cut where one statement has enough."""
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
    """What of *parts* has its place from *first* on, up to *end*."""
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
