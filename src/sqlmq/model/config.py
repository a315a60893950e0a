"""What a user may set, with its unit, its default and its reason; checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from sqlmq.errors import InvalidGroupError, InvalidPartitionError, InvalidTopicError
from sqlmq.model.partitioner import PARTITIONERS

if TYPE_CHECKING:
    from collections.abc import Iterable

ParkedState: TypeAlias = Literal["waiting", "held", "stopped", "dead"]
"""Where a parked message is: aside, tried in its place, in its place and nobody tries it, a dead letter."""

MAX_PARTITIONS = 10_000
"""More would make every membership decision read as many claims."""

_MEMBER_NAME_LENGTH = 200
_AGES_SECONDS = 1e9
_MOST_DELAY_SECONDS = 9.5e9
# The moment 1970-01-01 is that of messages which are due as soon as they are committed.
_EARLIEST = datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)
_LATEST = datetime(9999, 1, 1, tzinfo=UTC)
_LARGEST_ID = 2**63 - 1

_TOPIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,48}[A-Za-z0-9]")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")


@dataclass(frozen=True, slots=True)
class MQConfig:
    """How an MQ behaves. Every number of seconds may have a fraction."""

    create_topics: bool = True
    """Make a topic that a producer or consumer names and that does not exist; else that is an UnknownTopicError."""
    default_partitions: int = 3
    """How many partitions a topic made that way gets."""
    max_message_bytes: int = 1024 * 1024
    """The largest value, key or headers a producer takes, and a copy of a parked message has."""
    lease_seconds: float = 10.0
    """How long a consumer that is not heard of keeps its partitions. A heartbeat goes out three times as often."""
    max_poll_seconds: float = 300.0
    """After how long without asking for messages a consumer gives its partitions back."""
    commit_interval_seconds: float = 0.2
    """How long finished messages may wait to be committed together. A crash delivers those again."""
    durable_commits: bool = True
    """Wait for the disk when finished messages are committed. Without, a crash of the server may bring those of about
    the last second again; messages and effects are as durable as ever. Means something on Postgres only."""
    prefetch: int = 4000
    """How many messages a consumer reads ahead, over all its partitions: half of them while the others are handled."""
    prefetch_bytes: int = 8 * 1024 * 1024
    """How many bytes of values it reads ahead; one message of each partition always fits."""
    poll_min_seconds: float = 0.005
    """How soon an idle consumer looks again at first."""
    poll_max_seconds: float = 1.0
    """How long it waits at most between two looks."""
    response_timeout_seconds: float = 30.0
    """How long the database may keep silent while it is asked; then the connection is given up. On Postgres only."""
    notify: bool = True
    """Tell, and hear from, other processes at once, where the database can; else their consumers find out by polling."""

    @property
    def read_messages(self) -> int:
        """How many messages one look reads, unless more are asked for."""
        return max(1, self.prefetch // 2)

    @property
    def read_bytes(self) -> int:
        """How many bytes of values one look reads."""
        return max(1, self.prefetch_bytes // 2)

    def __post_init__(self) -> None:
        for field in fields(self):
            number = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(number, bool):
                    message = f"{field.name} must be bool, not {type(number).__name__}."
                    raise TypeError(message)
                continue
            if isinstance(number, bool) or not isinstance(number, int if field.type == "int" else (int, float)):
                message = f"{field.name} must be {field.type}, not {type(number).__name__}."
                raise TypeError(message)
            if not 0 < number < float("inf"):
                message = f"{field.name} must be more than 0 and finite, not {number}."
                raise ValueError(message)
        check_partitions(self.default_partitions)


Due: TypeAlias = float | datetime
"""When a message is due: in so many seconds by the database's clock, or at a moment in UTC."""


OnEvicted = Literal["raise", "earliest"]
"""What a consumer does about messages that retention took from its group: raise, or go on with the oldest there is."""


def check_on_evicted(policy: object) -> None:
    """Raise ValueError unless *policy* is one."""
    if policy not in get_args(OnEvicted):
        message = f"on_evicted is 'raise' or 'earliest', not {policy!r}."
        raise ValueError(message)


def check_topic(name: object) -> str:
    """Return *name* if it can name a topic: 2 to 50 characters, see InvalidTopicError."""
    if not isinstance(name, str):
        message = f"A topic's name must be str, not {type(name).__name__}."
        raise TypeError(message)
    if not _TOPIC.fullmatch(name):
        raise InvalidTopicError(name)
    return name


def check_group(name: object) -> str:
    """Return *name* if it can name a group: 1 to 100 characters, see InvalidGroupError."""
    if not isinstance(name, str):
        message = f"A group's name must be str, not {type(name).__name__}."
        raise TypeError(message)
    if not _GROUP.fullmatch(name):
        raise InvalidGroupError(name)
    return name


def check_partitions(count: object) -> int:
    """Return *count* if a topic can have so many partitions."""
    if isinstance(count, bool) or not isinstance(count, int):
        message = f"A number of partitions must be int, not {type(count).__name__}."
        raise TypeError(message)
    if not 1 <= count <= MAX_PARTITIONS:
        message = f"A topic has 1 to {MAX_PARTITIONS:,} partitions, not {count}."
        raise InvalidPartitionError(message, partition=count)
    return count


def check_growth(topic: str, before: int, partitions: int) -> int:
    """Return *partitions* if *topic*, which has *before* of them, can get so many: a multiple, so that keys stay or move on."""
    if partitions % before or partitions < before:
        multiples = [str(before * factor) for factor in (2, 3, 4) if before * factor <= MAX_PARTITIONS]
        advice = f"as {', '.join(multiples)}" if multiples else f"but {MAX_PARTITIONS:,} are the most"
        message = (
            f"Topic {topic!r} has {before} partition{'' if before == 1 else 's'}, and can't have {partitions}. It grows "
            f"to a multiple, {advice}, so that a key either stays in its partition or goes to a new one."
        )
        raise InvalidPartitionError(message, partition=partitions)
    return partitions


def check_partition(topic: str, number: object, partitions: int) -> int:
    """Return *number* if *topic*, which has *partitions* of them, has a partition with that number."""
    number = check_partition_number(number)
    if not 0 <= number < partitions:
        message = f"Topic {topic!r} has the partitions 0 to {partitions - 1}; there is no partition {number}."
        raise InvalidPartitionError(message, partition=number)
    return number


def check_partition_number(number: object) -> int:
    """Return *number* if a partition could be named by it; whether a topic has that one is for ``check_partition``."""
    if isinstance(number, bool) or not isinstance(number, int):
        message = f"A partition is named by its number, an int, not {type(number).__name__}."
        raise TypeError(message)
    return number


def check_partitioner(name: object) -> str:
    """Return *name* if it names a partitioner."""
    if not isinstance(name, str) or name not in PARTITIONERS:
        message = f"There is no partitioner {name!r}; there are {', '.join(sorted(PARTITIONERS))}."
        raise ValueError(message)
    return name


def check_member_name(name: object) -> str:
    """Return *name* if a member can be called so: 1 to 200 characters, none of them NUL or half of one."""
    if not isinstance(name, str):
        message = f"A consumer's name must be str, not {type(name).__name__}."
        raise TypeError(message)
    if not 1 <= len(name) <= _MEMBER_NAME_LENGTH or any(c == "\x00" or "\ud800" <= c <= "\udfff" for c in name):
        message = f"A consumer's name has 1 to {_MEMBER_NAME_LENGTH} characters, without NUL and lone surrogates."
        raise ValueError(message)
    return name


def check_schema(name: object) -> str | None:
    """Return *name* if a schema can be called so; None is the connection's default."""
    if name is None:
        return None
    if not isinstance(name, str):
        message = f"schema must be str or None, not {type(name).__name__}."
        raise TypeError(message)
    if "\x00" in name:
        message = "A schema's name can't have a NUL character."
        raise ValueError(message)
    return name


def check_ack(ack: object) -> None:
    """Raise ValueError unless *ack* says when a message counts as done."""
    if ack not in ("auto", "on_delivery"):
        message = f"ack is 'after' (at least once) or 'before' (at most once), not {ack!r}."
        raise ValueError(message)


def check_max_messages(count: object) -> int:
    """Return *count* if so many messages can be asked for."""
    return check_count("max_messages", count)


def check_count(name: str, count: object) -> int:
    """Return *count*, given as the parameter *name*, if it is 1 or more."""
    if isinstance(count, bool) or not isinstance(count, int):
        message = f"{name} must be int, not {type(count).__name__}."
        raise TypeError(message)
    if count < 1:
        message = f"{name} must be 1 or more, not {count}."
        raise ValueError(message)
    return count


def check_seconds(name: str, seconds: object, *, is_zero_good: bool = True) -> float:
    """Return *seconds*, given as the parameter *name*, if it is a number of them."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        message = f"{name} must be a number of seconds, not {type(seconds).__name__}."
        raise TypeError(message)
    if not (0 <= seconds < float("inf")) or (seconds == 0 and not is_zero_good):
        message = f"{name} must be {'0 or more' if is_zero_good else 'more than 0'} and finite, not {seconds}."
        raise ValueError(message)
    return float(seconds)


def check_timeout(timeout: object) -> float | None:
    """Return *timeout*, seconds from 0 up, or None for no end, which is what 30 years are."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        message = f"timeout must be a number of seconds or None, not {type(timeout).__name__}."
        raise TypeError(message)
    if not timeout >= 0:
        message = f"timeout must be 0 or more seconds, not {timeout}."
        raise ValueError(message)
    return float(timeout) if timeout <= _AGES_SECONDS else None


def check_due(delay_seconds: object, deliver_at: object) -> Due | None:
    """When a message is due that was given these two, of which one has to be None; None if both are.

    That is a number of seconds from now, or a moment in UTC, after 1970, which stands for all before it.
    """
    if delay_seconds is not None and deliver_at is not None:
        message = "delay_seconds and deliver_at exclude each other."
        raise ValueError(message)
    if delay_seconds is not None:
        return _checked_delay(delay_seconds)
    return None if deliver_at is None else check_moment("deliver_at", deliver_at)


def check_moment(name: str, moment: object) -> datetime:
    """Return *moment*, given as the parameter *name*, in UTC; 1970 stands for all before it."""
    if not isinstance(moment, datetime):
        message = f"{name} must be a datetime, not {type(moment).__name__}."
        raise TypeError(message)
    if moment.utcoffset() is None:
        message = (
            f"{name} has no time zone, so it is no moment yet. Say which one it is in, as in "
            f"{name}.replace(tzinfo=ZoneInfo('Europe/Paris')), or datetime.now(UTC) + timedelta(hours=1)."
        )
        raise ValueError(message)
    if moment >= _LATEST:
        message = f"{name} must be before the year {_LATEST.year}, or no database keeps it; it is {moment}."
        raise ValueError(message)
    # Compared before it is converted, which the first and last days there are do not survive.
    return _EARLIEST if moment <= _EARLIEST else moment.astimezone(UTC)


def check_ids(ids: Iterable[object]) -> list[int]:
    """Return those of *ids* that a delayed message can have, each once."""
    found = list(ids)
    for given in found:
        if isinstance(given, bool) or not isinstance(given, int):
            message = f"A delayed message is named by its id, an int, not {type(given).__name__}."
            raise TypeError(message)
    return [given for given in dict.fromkeys(found) if isinstance(given, int) and 0 < given <= _LARGEST_ID]


def check_no_timeout(timeout: object) -> None:
    """Raise ValueError for a timeout where a message waits for somebody else's transaction."""
    if timeout is not None:
        message = "With session= there is nothing to wait for: the message goes when the transaction commits."
        raise ValueError(message)


def check_offset(offset: object) -> int:
    """Return *offset* if a message can have it."""
    if isinstance(offset, bool) or not isinstance(offset, int):
        message = f"offset must be int, not {type(offset).__name__}."
        raise TypeError(message)
    if offset < 0:
        message = f"offset must be 0 or more, not {offset}."
        raise ValueError(message)
    return offset


def check_key(key: object) -> bytes | None:
    """Return *key* if it is one, or None."""
    if key is not None and not isinstance(key, bytes):
        message = f"key must be bytes or None, not {type(key).__name__}."
        raise TypeError(message)
    return key


def check_state(state: object) -> ParkedState | None:
    """Return *state* if a parked message can be in it, or None."""
    if state is not None and state not in get_args(ParkedState):
        message = f"state is 'waiting', 'held', 'stopped' or 'dead', not {state!r}."
        raise ValueError(message)
    return cast("ParkedState | None", state)


def check_after(after: object) -> tuple[int, int] | None:
    """Return *after* if it is a partition and an offset, or None."""
    if after is None:
        return None
    is_place = isinstance(after, tuple) and len(after) == 2 and all(type(number) is int for number in after)
    if not is_place:
        message = f"after must be a partition and an offset, as the place of a parked message, not {after!r}."
        raise TypeError(message)
    return cast("tuple[int, int]", after)


def check_no_timeout_for_delayed(timeout: object) -> None:
    """Raise ValueError for a timeout where a message does not wait for its turn."""
    if timeout is not None:
        message = "A delayed message is stored at once and waits for no other: leave timeout= out."
        raise ValueError(message)


def _checked_delay(delay_seconds: object) -> float:
    if isinstance(delay_seconds, bool) or not isinstance(delay_seconds, int | float):
        message = f"delay_seconds must be a number of seconds, not {type(delay_seconds).__name__}."
        raise TypeError(message)
    if not 0 <= delay_seconds <= _MOST_DELAY_SECONDS:
        message = f"delay_seconds must be 0 to {_MOST_DELAY_SECONDS:,.0f} (300 years), not {delay_seconds}."
        raise ValueError(message)
    return float(delay_seconds)
