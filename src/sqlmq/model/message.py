"""Messages: `Message` as an application produces it, `ReceivedMessage` as it comes from the log, and columns of many.

A received message also has what only the log knows: topic, partition, offset and timestamp. Its headers and its timestamp are
decoded on access, because most handlers use neither.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from sqlmq.errors import InvalidMessageError, MessageTooLargeError, OffsetGapError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_decode = json.JSONDecoder().raw_decode
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

LogRow: TypeAlias = tuple[int, int, bytes | None, bytes, str | bytes | None, int]
"""A row of the log from the driver: partition id, offset, key, value, headers as JSON, and the time it was written.

The time counts microseconds from the dialect's ``moments_from_us``. A plain tuple, which is the fastest to make.
"""


class Message:
    """A value to produce, with an optional key and headers. Immutable.

    *value* and *key* are any bytes. Messages with the same key go to the same partition and stay in order; ``b""`` is a key.
    *headers* map text to text, for what is not the message itself, for example a content type or a trace.

    Raises ``TypeError`` for values of other types, and InvalidMessageError for headers that a database can't store: NUL
    characters and lone surrogates.

    Messages are equal if value, key and headers are equal. For received messages, place and timestamp must be equal too.
    """

    # A frozen dataclass takes 2.6 us to make and this half a microsecond; a consumer makes one for each message.
    __slots__ = ("_headers", "_headers_json", "_key", "_value")

    _value: bytes
    _key: bytes | None
    _headers: Mapping[str, str] | None
    _headers_json: str | bytes | None

    def __init__(self, value: bytes, key: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
        self._value = _as_bytes("value", value)
        self._key = None if key is None else _as_bytes("key", key)
        self._headers = MappingProxyType(dict(headers)) if headers else _NO_HEADERS
        self._headers_json = _encode_headers(self._headers) if headers else None

    @property
    def value(self) -> bytes:
        """The content of the message."""
        return self._value

    @property
    def key(self) -> bytes | None:
        """The key, which decides the partition and so the order; None if the message has none."""
        return self._key

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, read-only; empty if there are none."""
        if self._headers is None:
            raw = self._headers_json
            text = raw.decode() if isinstance(raw, bytes) else raw
            # Half the time of json.loads, which detects other encodings and skips white space.
            self._headers = MappingProxyType(_decode(text)[0]) if text else _NO_HEADERS
        return self._headers

    @property
    def headers_json(self) -> str | None:
        """The headers as the stored JSON text; None if there are none."""
        raw = self._headers_json
        return raw.decode() if isinstance(raw, bytes) else raw

    def check_size(self, max_message_bytes: int) -> None:
        """Raise MessageTooLargeError if the value, the key or the headers exceed *max_message_bytes*."""
        if len(self._value) > max_message_bytes:
            raise MessageTooLargeError("value", len(self._value), max_message_bytes)
        if self._key is not None and len(self._key) > max_message_bytes:
            raise MessageTooLargeError("key", len(self._key), max_message_bytes)
        raw = self._headers_json
        if raw is not None and (size := len(raw.encode() if isinstance(raw, str) else raw)) > max_message_bytes:
            raise MessageTooLargeError("headers", size, max_message_bytes)

    def __eq__(self, other: object) -> bool:
        return self._facts() == other._facts() if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._key, self._value))

    def __reduce__(self) -> tuple[object, ...]:
        return Message, (self._value, self._key, dict(self.headers))

    def __repr__(self) -> str:
        """Describe the message by sizes instead of contents, so that a logged message discloses nothing."""
        return f"<Message {self._sizes()}>"

    def _sizes(self) -> str:
        key = "no key" if self._key is None else f"key of {len(self._key)} bytes"
        return f"{key}, value of {len(self._value)} bytes"

    def _facts(self) -> tuple[object, ...]:
        return (self._value, self._key, self.headers)


class ReceivedMessage(Message):
    """A message from the log, with its place there: what consumers, handlers and ``tail`` get. Immutable.

    You can produce it again, for example to another topic: its value, key and headers are sent. Two received messages are
    equal if value, key, headers, place and timestamp are. A received message never equals a plain ``Message``, which has no
    place. You can make one in a test of a handler; *timestamp* is aware.
    """

    __slots__ = ("_offset", "_partition", "_timestamp_us", "_topic")

    _topic: str
    _partition: int
    _offset: int
    _timestamp_us: int

    def __init__(
        self,
        value: bytes,
        key: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        topic: str,
        partition: int,
        offset: int,
        timestamp: datetime,
    ) -> None:
        super().__init__(value, key, headers)
        self._topic = topic
        self._partition = partition
        self._offset = offset
        self._timestamp_us = microseconds_since_1970(timestamp)

    @classmethod
    def from_rows(
        cls, topic: str, partition: int, rows: Iterable[LogRow], *, moments_from_us: int = 0
    ) -> list[ReceivedMessage]:
        """Build messages from rows of the log. Their times count from *moments_from_us* microseconds after 1970, UTC."""
        messages = []
        # Assignments in a loop: a call for each message would double the time for a message.
        for _, offset, key, value, headers_json, moment in rows:
            message = cls.__new__(cls)
            message._value = value
            message._key = key
            message._headers = None
            message._headers_json = headers_json
            message._topic = topic
            message._partition = partition
            message._offset = offset
            message._timestamp_us = moment + moments_from_us
            messages.append(message)
        return messages

    @property
    def topic(self) -> str:
        """The name of the message's topic."""
        return self._topic

    @property
    def partition(self) -> int:
        """The number of the message's partition."""
        return self._partition

    @property
    def offset(self) -> int:
        """The message's offset in the partition; the first message has 0."""
        return self._offset

    @property
    def timestamp(self) -> datetime:
        """The time at which its transaction began to append it, by the database's clock: aware, UTC."""
        return moment_at(self._timestamp_us)

    def __hash__(self) -> int:
        return hash((self._topic, self._partition, self._offset))

    def __reduce__(self) -> tuple[object, ...]:
        row = (0, self._offset, self._key, self._value, self._headers_json, self._timestamp_us)
        return _received, (self._topic, self._partition, row)

    def __repr__(self) -> str:
        return f"<ReceivedMessage {self._topic}/{self._partition}@{self._offset} {self._sizes()}>"

    def _facts(self) -> tuple[object, ...]:
        return (*super()._facts(), self._topic, self._partition, self._offset, self._timestamp_us)


def _received(topic: str, partition: int, row: LogRow) -> ReceivedMessage:
    return ReceivedMessage.from_rows(topic, partition, [row])[0]


class FetchedRecords:
    """Rows of one partition, in order of offset, from which messages can be built.

    Messages are built on delivery, while the next batch is being fetched.
    """

    __slots__ = ("moments_from_us", "partition", "rows", "topic")

    def __init__(self, topic: str, partition: int, rows: Sequence[LogRow], *, moments_from_us: int = 0) -> None:
        self.topic = topic
        self.partition = partition
        self.rows = rows
        self.moments_from_us = moments_from_us

    def __len__(self) -> int:
        return len(self.rows)

    def offsets(self) -> list[int]:
        """The column of offsets."""
        return [row[1] for row in self.rows]

    def messages(self) -> list[ReceivedMessage]:
        """Build the messages."""
        return ReceivedMessage.from_rows(self.topic, self.partition, self.rows, moments_from_us=self.moments_from_us)


class RecordBatch(NamedTuple):
    """Messages as columns of keys, values and headers. Operations on columns are cheaper than steps for each message."""

    keys: Sequence[bytes | None]
    values: Sequence[bytes]
    headers: Sequence[bytes | None]
    """As JSON, in UTF-8; None for none."""

    @classmethod
    def of(cls, messages: Sequence[Message]) -> RecordBatch:
        """Return the columns of *messages*, in their order."""
        keys = [message._key for message in messages]
        values = [message._value for message in messages]
        headers = [message._headers_json for message in messages]
        if has_any(headers):
            # Text comes from received messages that are produced again.
            headers = [raw.encode() if isinstance(raw, str) else raw for raw in headers]
        return cls(keys, values, cast("list[bytes | None]", headers))

    def is_within(self, max_bytes: int) -> bool:
        """Whether no value, no key and no headers have more than *max_bytes*."""
        for column in self:
            if has_any(column):
                sizes = sizes_of(column)
                if sum(sizes) > max_bytes and max(sizes) > max_bytes:
                    return False
        return True

    def in_order(self, places: Sequence[int]) -> RecordBatch:
        """Return the messages at the indexes *places*, in that order."""
        keys, values, headers = self
        return RecordBatch([keys[i] for i in places], [values[i] for i in places], [headers[i] for i in places])

    def between(self, first: int, end: int) -> RecordBatch:
        """Return the messages from index *first* up to, but without, *end*."""
        return RecordBatch(self.keys[first:end], self.values[first:end], self.headers[first:end])


@dataclass(frozen=True, slots=True)
class DelayedMessage:
    """A message that waits until it is due. Then it gets an offset, and its id ends."""

    id: int
    """The id for ``mq.admin.cancel_delayed``."""
    topic: str
    partition: int
    """The partition it will go to."""
    deliver_at: datetime
    """The time at which it is due, by the database's clock: aware, UTC."""
    key: bytes | None = field(repr=False)
    value_bytes: int
    """The size of its value."""


class ProducerResult(NamedTuple):
    """The place of a message in the log, valid after its transaction has committed."""

    topic: str
    partition: int
    offset: int


class Publication:
    """A message that is published when its transaction commits, and never if the transaction is rolled back.

    Made by ``Producer.produce`` with ``session=``.
    """

    __slots__ = ("_partition", "_result", "_topic")

    def __init__(self, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = partition
        self._result: ProducerResult | None = None

    @property
    def topic(self) -> str:
        """The name of the topic."""
        return self._topic

    @property
    def partition(self) -> int:
        """The number of the partition that the message goes to."""
        return self._partition

    @property
    def result(self) -> ProducerResult | None:
        """The message's place in the log, after the transaction has committed.

        It stays None after a rollback, and in a transaction above READ COMMITTED, where the place is known only after
        the commit. If COMMIT itself fails, the value means nothing: SQLAlchemy reports that error only to the caller of
        commit.
        """
        return self._result

    def move_to(self, partition: int) -> None:
        """Change the partition: the topic has grown, and the key decides again."""
        self._partition = partition

    def set_result(self, result: ProducerResult | None) -> None:
        """Set the place in the log; None if the transaction was rolled back."""
        self._result = result

    def __repr__(self) -> str:
        where = "not in the log" if self._result is None else f"at offset {self._result.offset}"
        return f"<Publication to {self._topic}/{self._partition}, {where}>"


def has_any(column: Sequence[object]) -> bool:
    """Whether *column* has an element that is not None."""
    return (bool(column) and column[0] is not None) or column.count(None) < len(column)


def sizes_of(column: Sequence[bytes | None]) -> list[int]:
    """Return the sizes of the fields of *column*; 0 for None."""
    try:
        return list(map(len, cast("Sequence[bytes]", column)))
    except TypeError:
        return [0 if field is None else len(field) for field in column]


def check_dense(topic: str, partition: int, found: Sequence[int], start: int) -> None:
    """Raise OffsetGapError unless the offsets *found* are consecutive from *start*."""
    expected = list(range(start, start + len(found)))
    if found != expected:
        gap = next(place for place in range(len(found)) if found[place] != expected[place])
        raise OffsetGapError(topic, partition, expected=expected[gap], found=found[gap])


def microseconds_since_1970(at: datetime) -> int:
    """Return the microseconds from 1970-01-01 UTC to *at*, an aware datetime."""
    return (at - _EPOCH) // timedelta(microseconds=1)


def moment_at(microseconds: int) -> datetime:
    """Return the time *microseconds* after 1970-01-01 UTC: aware, UTC."""
    return _EPOCH + timedelta(microseconds=microseconds)


def _as_bytes(part: str, given: object) -> bytes:
    if isinstance(given, bytes):
        return given
    if isinstance(given, bytearray | memoryview):
        return bytes(given)
    hint = ""
    if isinstance(given, str):
        hint = "; encode it, as in text.encode()"
    elif isinstance(given, dict | list):
        hint = "; encode it, as in json.dumps(value).encode()"
    message = f"A message's {part} must be bytes, not {type(given).__name__}{hint}."
    raise TypeError(message)


def _encode_headers(headers: Mapping[str, object]) -> bytes:
    for name, text in headers.items():
        for what, given in (("name", name), ("value", text)):
            if not isinstance(given, str):
                message = f"A header's {what} must be str, not {type(given).__name__}: header {name!r}."
                raise TypeError(message)
            if "\x00" in given:
                message = f"The {what} of header {name!r} has a NUL character, which Postgres can't keep in text."
                raise InvalidMessageError(message)
    try:
        return json.dumps(dict(headers), ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        message = "The headers have a lone surrogate, which can't be stored. Repair the text first."
        raise InvalidMessageError(message) from None
