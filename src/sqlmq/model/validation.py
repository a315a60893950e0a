"""Checks of arguments. A message names the parameter, what it must be, and what it was.

The first functions check any parameter of a kind: TypeError for another type, ValueError for a value out of range. The
functions behind them know the rules of one parameter.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from sqlmq.errors import InvalidGroupError, InvalidPartitionError, InvalidTopicError, InvalidURLError
from sqlmq.model.partitioner import PARTITIONERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    C = TypeVar("C", bound=str)

Due: TypeAlias = float | datetime
"""When a message is due: in so many seconds by the database's clock, or at a moment in UTC."""

MAX_PARTITIONS = 10_000
"""Every membership decision reads one claim for each partition, so their number has a limit."""

_NAME_BYTES = 63
"""https://www.postgresql.org/docs/current/limits.html"""
_MEMBER_NAME_LENGTH = 200
_ENDLESS_SECONDS = 1e9
_MOST_DELAY_SECONDS = 9.5e9
_LARGEST_FLOAT = sys.float_info.max
_LARGEST_ID = 2**63 - 1
# The tables use the moment 1970-01-01 for messages that are due as soon as they are committed.
_EARLIEST = datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)

_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,48}[A-Za-z0-9]")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")


def integer(name: str, value: object, *, least: int | None = 1, most: int | None = None) -> int:
    """Return *value* if it is an int from *least* to *most*; None is no limit."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(name, "int", value)
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most:,}"
        message = f"{name} must be {limits}, not {value}."
        raise ValueError(message)
    return value


def number(
    name: str, value: object, *, may_be_zero: bool = True, most: float = _LARGEST_FLOAT, kind: str = "a number"
) -> float:
    """Return *value* if it is an int or a float from 0 to *most*, by default any finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, kind, value)
    # Not `value < 0`, which is false for NaN.
    if not 0 <= value <= most or (value == 0 and not may_be_zero):
        limits = f"0 to {most:,.0f}" if most < _LARGEST_FLOAT else "0 or more" if may_be_zero else "more than 0"
        message = f"{name} must be {limits}{' and finite' if most == _LARGEST_FLOAT else ''}, not {value}."
        raise ValueError(message)
    return value


def seconds(name: str, value: object, *, may_be_zero: bool = True, most: float = _LARGEST_FLOAT) -> float:
    """Return *value* as a float if it is a number of seconds from 0 to *most*."""
    return float(number(name, value, may_be_zero=may_be_zero, most=most, kind="a number of seconds"))


def boolean(name: str, value: object) -> bool:
    """Return *value* if it is True or False."""
    if not isinstance(value, bool):
        raise _wrong_type(name, "bool", value)
    return value


def text(name: str, value: object) -> str:
    """Return *value* if it is a str."""
    if not isinstance(value, str):
        raise _wrong_type(name, "str", value)
    return value


def choice(name: str, value: object, choices: Sequence[C]) -> C:
    """Return *value* if it is one of *choices*. Raises ValueError for anything else."""
    if value not in choices:
        *others, last = map(repr, choices)
        message = f"{name} must be {', '.join(others)} or {last}, not {value!r}."
        raise ValueError(message)
    return cast("C", value)


def moment(name: str, value: object) -> datetime:
    """Return *value*, an aware datetime, in UTC. A moment before 1970 becomes the first microsecond after its start."""
    if not isinstance(value, datetime):
        raise _wrong_type(name, "a datetime", value)
    if value.utcoffset() is None:
        message = f"{name} must be timezone-aware, for example datetime.now(UTC) + timedelta(hours=1)."
        raise ValueError(message)
    if value >= _LATEST:
        message = (
            f"{name} must be before the year {_LATEST.year}, which is the last that databases store; it is {value}."
        )
        raise ValueError(message)
    # Compare first: astimezone() overflows for the first and the last day of the calendar.
    return _EARLIEST if value <= _EARLIEST else value.astimezone(UTC)


def check_topic(name: object) -> str:
    """Return *name* if a topic can have it: 2 to 50 characters. Raises InvalidTopicError, which states the rule."""
    if not _TOPIC.fullmatch(text("topic", name)):
        raise InvalidTopicError(cast("str", name))
    return cast("str", name)


def check_group(name: object) -> str:
    """Return *name* if a group can have it: 1 to 100 characters. Raises InvalidGroupError, which states the rule."""
    if not _GROUP.fullmatch(text("group", name)):
        raise InvalidGroupError(cast("str", name))
    return cast("str", name)


def check_partitions(count: object) -> int:
    """Return *count* if a topic can have that many partitions. Raises InvalidPartitionError."""
    count = integer("partitions", count, least=None)
    if not 1 <= count <= MAX_PARTITIONS:
        message = f"A topic has 1 to {MAX_PARTITIONS:,} partitions, not {count}."
        raise InvalidPartitionError(message, partition=count)
    return count


def check_growth(topic: str, before: int, partitions: int) -> int:
    """Return *partitions* if *topic* can grow from *before* to them. Raises InvalidPartitionError.

    They must be a multiple, so that a key stays in its partition or goes to a new one.
    """
    if partitions % before or partitions < before:
        multiples = [str(before * factor) for factor in (2, 3, 4) if before * factor <= MAX_PARTITIONS]
        advice = f"such as {', '.join(multiples)}" if multiples else f"and {MAX_PARTITIONS:,} is the maximum"
        message = (
            f"Topic {topic!r} has {before} partition{'' if before == 1 else 's'} and can't have {partitions}. It grows "
            f"to a multiple, {advice}, so that a key stays in its partition or goes to a new one."
        )
        raise InvalidPartitionError(message, partition=partitions)
    return partitions


def check_partition(topic: str, number: object, partitions: int) -> int:
    """Return *number* if *topic*, which has *partitions* partitions, has that one. Raises InvalidPartitionError."""
    number = check_partition_number(number)
    if not 0 <= number < partitions:
        message = f"Topic {topic!r} has the partitions 0 to {partitions - 1}; partition {number} does not exist."
        raise InvalidPartitionError(message, partition=number)
    return number


def check_partition_number(number: object) -> int:
    """Return *number* if it is an int. Only ``check_partition`` knows the topic's partitions."""
    return integer("partition", number, least=None)


def check_offset(offset: object) -> int:
    """Return *offset* if a message can have it."""
    return integer("offset", offset, least=0)


def check_member_name(name: object) -> str:
    """Return *name* if a consumer can have it: 1 to 200 characters that every database stores."""
    name = text("name", name)
    if not 1 <= len(name) <= _MEMBER_NAME_LENGTH or any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in name):
        message = f"name must have 1 to {_MEMBER_NAME_LENGTH} characters, without NUL and lone surrogates."
        raise ValueError(message)
    return name


def check_partitioner(name: object) -> str:
    """Return *name* if it names a partitioner."""
    return choice("partitioner", name, sorted(PARTITIONERS))


def check_schema(name: object) -> str | None:
    """Return *name* if a schema can have it. None is the connection's default schema."""
    if name is not None and "\x00" in text("schema", name):
        message = "schema must not have a NUL character."
        raise ValueError(message)
    return cast("str | None", name)


def check_postgresql_name(name: str) -> None:
    """Raise InvalidURLError if Postgres would cut off the end of *name*, so that it is another one's name, too."""
    if len(name.encode()) > _NAME_BYTES:
        message = f"The name of the schema is too long: {name!r}. Postgres keeps {_NAME_BYTES} bytes of a name."
        raise InvalidURLError(message)


def check_key(key: object) -> bytes | None:
    """Return *key* if it is bytes or None."""
    if key is not None and not isinstance(key, bytes):
        raise _wrong_type("key", "bytes or None", key)
    return key


def check_timeout(timeout: object) -> float | None:
    """Return *timeout*, 0 seconds or more. None, and 30 years or more, wait without end: None."""
    if timeout is None:
        return None
    checked = number("timeout", timeout, most=math.inf, kind="a number of seconds or None")
    return float(checked) if checked <= _ENDLESS_SECONDS else None


def check_due(delay_seconds: object, deliver_at: object) -> Due:
    """Return when a message with one of these two arguments is due."""
    if delay_seconds is not None and deliver_at is not None:
        message = "Give delay_seconds= or deliver_at=, not both."
        raise ValueError(message)
    if delay_seconds is not None:
        return seconds("delay_seconds", delay_seconds, most=_MOST_DELAY_SECONDS)
    if deliver_at is None:
        message = "When is the message due? Give delay_seconds= or deliver_at=."
        raise ValueError(message)
    return moment("deliver_at", deliver_at)


def check_ids(ids: Iterable[object]) -> list[int]:
    """Return *ids* of delayed messages, each once, without numbers that no message has as its id."""
    checked = (integer("id", id_, least=None) for id_ in ids)
    return [id_ for id_ in dict.fromkeys(checked) if 0 < id_ <= _LARGEST_ID]


def check_after(after: object) -> tuple[int, int] | None:
    """Return *after* if it is the place of a parked message, a partition and an offset, or None."""
    is_place = isinstance(after, tuple) and len(after) == 2 and all(type(number) is int for number in after)
    if after is not None and not is_place:
        message = f"after must be a partition and an offset, the place of a parked message, not {after!r}."
        raise TypeError(message)
    return cast("tuple[int, int] | None", after)


def check_no_timeout(timeout: object) -> None:
    """Raise ValueError for a timeout beside ``session=``."""
    if timeout is not None:
        message = "timeout has no meaning with session=: the message is sent when the transaction commits."
        raise ValueError(message)


def _wrong_type(name: str, expected: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {expected}, not {type(value).__name__}.")
