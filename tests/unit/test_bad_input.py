"""Input that is refused before a database is asked, by the synchronous face and by the one for asyncio.

Each test has a table of bad input, and lists what was not refused. `nowhere` is a queue whose database can't be opened:
a call that is not refused fails there. `queue` is one in memory, for calls of a producer or consumer, which need a topic.
"""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from sqlmq import MQ, AsyncMQ, Message, SqlmqError
from sqlmq.errors import (
    DatabaseError,
    InvalidGroupError,
    InvalidPartitionError,
    InvalidTopicError,
    InvalidURLError,
    MessageTooLargeError,
)
from tests.support.blocking import Loop, blocking
from tests.support.injections import INJECTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NOT_TEXT: list[Any] = [None, 1, 1.5, True, b"orders", ["orders"], object()]
NOT_A_NUMBER: list[Any] = ["1", b"1", [1], object(), True]
FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
FACES: list[type[MQ | AsyncMQ]] = [MQ, AsyncMQ]
each_face = pytest.mark.parametrize("face", FACES)


class MakeMQ(Protocol):
    """Makes a queue object of one of the faces, for a URL."""

    def __call__(self, url: str, **options: Any) -> MQ: ...


@pytest.fixture(scope="module", params=["sync", "asyncio"])
def make_mq(request: pytest.FixtureRequest) -> Iterator[MakeMQ]:
    with ExitStack() as closing:
        loop: Loop | None = None
        if request.param == "asyncio":
            loop = Loop()
            closing.callback(loop.close)

        def make(url: str, **options: Any) -> MQ:
            mq = MQ(url, **options) if loop is None else blocking(AsyncMQ(url, **options), loop)
            closing.callback(mq.close)
            return mq

        yield make


@pytest.fixture(scope="module")
def nowhere(make_mq: MakeMQ, tmp_path_factory: pytest.TempPathFactory) -> MQ:
    """A queue whose database can't be opened."""
    return make_mq(f"sqlite:///{tmp_path_factory.mktemp('nowhere') / 'missing' / 'queue.db'}")


@pytest.fixture(scope="module")
def queue(make_mq: MakeMQ) -> Iterator[MQ]:
    """A queue in memory that takes 1,000 bytes, with a topic of three partitions. No test may send or create anything."""
    mq = make_mq("sqlite://", max_message_bytes=1_000)
    mq.create_topic("orders", 3)
    yield mq
    assert mq.admin.topics() == ["orders"]
    assert mq.admin.describe_topic("orders").messages == 0
    assert mq.admin.delayed("orders") == []


def is_refused(
    error: type[Exception], match: str, call: Callable[..., object], /, *arguments: Any, **options: Any
) -> bool:
    """Return whether *call* raises *error* with a text in which *match* is found."""
    try:
        call(*arguments, **options)
    except (SqlmqError, TypeError, ValueError) as raised:
        return isinstance(raised, error) and re.search(match, str(raised)) is not None
    return False


def taken(
    error: type[Exception], match: str, calls: Iterable[Callable[..., object]], values: Iterable[Any]
) -> list[Any]:
    """Return those of *values* that one of *calls* does not refuse with *error*."""
    every = list(calls)
    return [value for value in values if not all(is_refused(error, match, call, value) for call in every)]


def send_calls(mq: MQ) -> list[Callable[..., object]]:
    producer = mq.producer("orders")
    return [producer.produce, producer.submit, lambda one: producer.produce_many([Message(b""), one])]


# --- Names ---

BAD_TOPICS = ["", "a", "x" * 51, "1a", "_a", "-a", ".a", "a_", "a-", "a.", "a b", " ab", "ab ", "ab\n", "a/b", "a\x00b"]
BAD_TOPICS += ["ä1", "aä", "a\ud800b", "日本", "٣٣", "a٣", "..", "a:b", "a%b", *INJECTIONS]
BAD_GROUPS = ["", "x" * 101, "_a", " a", "a b", "a\n", "a\x00", "ä", "a\ud800", *INJECTIONS]


def topic_calls(mq: MQ) -> list[Callable[..., object]]:
    return [mq.create_topic, mq.producer, mq.admin.describe_topic, mq.admin.groups]


def test_a_bad_topic_name_is_refused_everywhere(nowhere: MQ) -> None:
    calls = [*topic_calls(nowhere), lambda name: nowhere.consumer(name, "billing")]

    assert taken(InvalidTopicError, "2 to 50", calls, BAD_TOPICS) == []


def test_a_topic_name_that_is_no_text_is_refused(nowhere: MQ) -> None:
    assert taken(TypeError, "must be str", [*topic_calls(nowhere), nowhere.delete_topics], NOT_TEXT) == []


def test_deleting_a_topic_whose_name_none_can_have_is_no_error(make_mq: MakeMQ) -> None:
    mq = make_mq("sqlite://")
    mq.create_topic("orders")

    assert [name for name in BAD_TOPICS if mq.delete_topics(name) != []] == []
    assert mq.admin.topics() == ["orders"]
    assert mq.delete_topics("a b", "orders", "a b") == ["orders"]


def test_a_bad_group_name_is_refused_before_anything_is_made(nowhere: MQ) -> None:
    assert taken(InvalidGroupError, "1 to 100", [lambda name: nowhere.consumer("orders", name)], BAD_GROUPS) == []


def test_a_group_name_that_is_no_text_is_refused(nowhere: MQ) -> None:
    assert taken(TypeError, "must be str", [lambda name: nowhere.consumer("orders", name)], NOT_TEXT) == []


def test_a_bad_choice_for_a_consumer_is_refused(nowhere: MQ) -> None:
    options: list[dict[str, Any]] = [{"start": one} for one in ("Latest", 0, None)]
    options += [{"ack": one} for one in ("never", None)]
    said = r"'earliest', 'latest' or an aware datetime|'auto' or 'on_delivery'"

    assert taken(ValueError, said, [lambda one: nowhere.consumer("orders", "billing", **one)], options) == []


def test_an_unknown_partitioner_is_refused(nowhere: MQ) -> None:
    names: list[Any] = ["murmur3", "", "MURMUR2", 1, ["murmur2"], *INJECTIONS]

    calls = [lambda name: nowhere.create_topic("orders", partitioner=name)]

    assert taken(ValueError, "partitioner must be", calls, names) == []


def test_a_member_name_that_cannot_be_stored_is_refused_by_us(nowhere: MQ) -> None:
    def refusal(name: Any) -> Exception | None:
        try:
            nowhere.consumer("orders", "billing", name=name)
        except (SqlmqError, TypeError, ValueError) as raised:
            return raised
        return None

    refusals = [refusal(name) for name in ("x" * 201, "a\x00b", "a\ud800b", 1, b"name")]

    assert None not in refusals
    assert [one for one in refusals if isinstance(one, DatabaseError | UnicodeError)] == []


# --- Numbers ---


def test_a_partition_that_is_no_int_is_refused(queue: MQ) -> None:
    producer = queue.producer("orders")
    calls: list[Callable[..., object]] = [
        lambda one: producer.produce_with_partition(Message(b""), one),
        lambda one: producer.submit(Message(b""), partition=one),
    ]

    assert taken(TypeError, "partition", calls, [True, 1.0, "1", b"1", math.nan, [1]]) == []
    # Without a partition, submit chooses one.
    assert taken(TypeError, "partition", calls[:1], [None]) == []


def test_a_number_of_partitions_that_cannot_be_is_refused(nowhere: MQ) -> None:
    calls = [lambda count: nowhere.create_topic("orders", count)]

    assert taken(InvalidPartitionError, "1 to 10,000", calls, [0, -1, 10_001, 10**9, 2**63]) == []
    assert taken(TypeError, "partitions", calls, [True, 1.0, "3"]) == []


def test_a_number_of_partitions_to_grow_to_that_is_no_int_is_refused(nowhere: MQ) -> None:
    calls = [lambda count: nowhere.admin.add_partitions("orders", count)]

    assert taken(TypeError, "partitions", calls, ["4", 4.0, None, True]) == []


def test_a_timeout_that_cannot_be_is_refused(queue: MQ) -> None:
    producer, consumer = queue.producer("orders"), queue.consumer("orders", "billing")
    calls: list[Callable[..., object]] = [
        consumer.consume,
        lambda timeout: consumer.poll(timeout=timeout),
        lambda timeout: producer.produce(Message(b""), timeout=timeout),
    ]

    assert taken(ValueError, "timeout", calls, [-1, -0.001, math.nan, -math.inf]) == []
    assert taken(TypeError, "timeout", calls, NOT_A_NUMBER) == []


def test_a_number_of_messages_that_cannot_be_is_refused(queue: MQ) -> None:
    consumer = queue.consumer("orders", "billing")
    calls = [lambda count: consumer.poll(count, timeout=0)]

    assert taken(ValueError, "max_messages", calls, [0, -1]) == []
    assert taken(TypeError, "max_messages", calls, [None, True, 1.0, "1"]) == []


# --- Messages ---


def test_what_is_no_message_is_refused(queue: MQ) -> None:
    assert taken(TypeError, r"sqlmq\.Message", send_calls(queue), [None, b"42", "42", 42, {"value": b"42"}]) == []


@pytest.mark.parametrize("part", ["value", "key", "headers"])
def test_a_part_of_one_byte_too_many_is_refused_with_both_sizes(queue: MQ, part: str) -> None:
    headers = {"h": "x" * (1_001 - len('{"h":""}'))}
    message = {
        "value": Message(bytes(1_001)),
        "key": Message(b"", bytes(1_001)),
        "headers": Message(b"", None, headers),
    }

    for call in send_calls(queue):
        with pytest.raises(MessageTooLargeError, match=f"{part} has 1,001 bytes; max_message_bytes is 1,000") as caught:
            call(message[part])
        error = caught.value
        assert (error.part, error.size_bytes, error.max_message_bytes) == (part, 1_001, 1_000)


def test_headers_are_measured_in_bytes_not_in_characters(queue: MQ) -> None:
    with pytest.raises(MessageTooLargeError):
        queue.producer("orders").produce(Message(b"", headers={"h": "🐎" * 300}))


# --- When a message is due ---

BAD_MOMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"delay_seconds": -1}, ValueError, "must be 0 to"),
    ({"delay_seconds": -0.001}, ValueError, "must be 0 to"),
    ({"delay_seconds": math.nan}, ValueError, "must be 0 to"),
    ({"delay_seconds": math.inf}, ValueError, "must be 0 to"),
    ({"delay_seconds": 1e10}, ValueError, "must be 0 to 9,500,000,000"),
    ({"delay_seconds": 10**400}, ValueError, "must be 0 to"),
    ({"delay_seconds": "1"}, TypeError, "not str"),
    ({"delay_seconds": True}, TypeError, "not bool"),
    ({"delay_seconds": timedelta(1)}, TypeError, "not timedelta"),
    ({"deliver_at": datetime(2099, 1, 1)}, ValueError, "timezone-aware.*UTC"),  # noqa: DTZ001 - it is to be refused
    ({"deliver_at": datetime(9999, 1, 1, tzinfo=UTC)}, ValueError, "before the year 9999"),
    ({"deliver_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))}, ValueError, "before the year 9999"),
    ({"deliver_at": date(2099, 1, 1)}, TypeError, "not date"),
    ({"deliver_at": "2099-01-01T00:00:00Z"}, TypeError, "not str"),
    ({"deliver_at": 4_070_908_800}, TypeError, "not int"),
    ({"deliver_at": FUTURE, "delay_seconds": 1}, ValueError, "not both"),
    ({}, ValueError, "Give delay_seconds= or deliver_at="),
]


def test_a_moment_that_is_none_is_refused(queue: MQ) -> None:
    producer = queue.producer("orders")
    calls: list[Callable[..., object]] = [
        lambda **due: producer.schedule(Message(b""), **due),
        lambda **due: producer.schedule(Message(b""), partition=0, **due),
        lambda **due: producer.schedule_many([Message(b"")], **due),
    ]

    assert [
        due
        for due, error, complaint in BAD_MOMENTS
        if not all(is_refused(error, complaint, call, **due) for call in calls)
    ] == []


# --- Consumers that are run ---

BAD_RUNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": 0}, ValueError, "batch_size must be 1 or more"),
    ({"concurrency": 0}, ValueError, "concurrency must be 1 or more"),
    ({"max_parked": 0}, ValueError, "max_parked must be 1 or more"),
    ({"on_failure": "explode"}, ValueError, "on_failure must be 'park', 'dead', 'skip' or 'stop'"),
    ({"max_processing_seconds": 0}, ValueError, "max_processing_seconds must be more than 0"),
    ({"stop_seconds": -1}, ValueError, "stop_seconds must be 0 or more"),
    ({"idle_seconds": math.nan}, ValueError, "idle_seconds must be 0 or more"),
    ({"session": lambda: None}, ValueError, "session= is for transaction=True"),
    ({"retry": 3}, TypeError, "retry must be a sqlmq.Retry, not int"),
    ({"batch_size": "many"}, TypeError, "batch_size must be int, not str"),
    ({"transaction": True, "session": 1}, TypeError, "session= of run"),
]


def test_options_of_a_run_that_cannot_be_are_refused(queue: MQ) -> None:
    consumer = queue.consumer("orders", "billing")

    assert [
        options
        for options, error, complaint in BAD_RUNS
        if not is_refused(error, complaint, consumer.run, lambda _message: None, **options)
    ] == []


def test_at_most_once_can_not_be_run(queue: MQ) -> None:
    with pytest.raises(ValueError, match="ack='auto'"):
        queue.consumer("orders", "billing", ack="on_delivery").run(lambda _message: None)


# --- Operators ---


def test_a_change_of_parked_messages_has_to_say_of_which(nowhere: MQ) -> None:
    parked = nowhere.admin.parked("orders", "billing")
    changes: list[Callable[..., object]] = [
        parked.retry,
        parked.discard,
        lambda *which, **options: parked.copy_to("letters", *which, **options),
        lambda *which, **options: parked.move_to("letters", *which, **options),
    ]

    for change in changes:
        assert is_refused(ValueError, "everything=True", change)
        assert is_refused(ValueError, "everything=True", change, 0, 0, everything=True)
        assert is_refused(ValueError, "partition", change, offset=0)
        assert is_refused(TypeError, "key", change, key="a")
        assert is_refused(ValueError, "state", change, state="gone")


BAD_LISTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"limit": 0}, ValueError),
    ({"limit": "1"}, TypeError),
    ({"after": (0,)}, TypeError),
    ({"after": 5}, TypeError),
    ({"partition": "0"}, TypeError),
    ({"key": "a"}, TypeError),
    ({"state": "gone"}, ValueError),
]


def test_a_list_of_parked_messages_that_cannot_be_is_refused(nowhere: MQ) -> None:
    parked = nowhere.admin.parked("orders", "billing")

    assert [options for options, error in BAD_LISTS if not is_refused(error, "", parked.list, **options)] == []


BAD_RESETS: list[tuple[Any, dict[str, Any], type[Exception]]] = [
    (None, {}, ValueError),
    ("earliest", {"shift_by": 1}, ValueError),
    ("newest", {}, ValueError),
    (7, {}, TypeError),
    (None, {"shift_by": 1.5}, TypeError),
    (None, {"shift_by": True}, TypeError),
    (timedelta(seconds=-1), {}, ValueError),
    (datetime(2026, 1, 1), {}, ValueError),  # noqa: DTZ001 - that it has no time zone is what is refused
    ({}, {}, ValueError),
    ({0: -1}, {}, ValueError),
    ({0: "3"}, {}, TypeError),
    ({0: 3}, {"partitions": [0]}, ValueError),
    ("latest", {"partitions": ["0"]}, TypeError),
]


def test_a_move_of_a_group_that_makes_no_sense_is_refused(nowhere: MQ) -> None:
    moves = (nowhere.admin.preview_reset, nowhere.admin.reset_group)

    assert [
        (to, options)
        for to, options, error in BAD_RESETS
        if not all(is_refused(error, "", move, "orders", "billing", to, **options) for move in moves)
    ] == []


def test_a_start_without_a_time_zone_is_refused(nowhere: MQ) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        nowhere.consumer("orders", "audit", start=datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused


BAD_TAILS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"last": -1}, ValueError),
    ({"last": 1_001}, ValueError),
    ({"last": 1, "offset": 1}, ValueError),
    ({"last": "1"}, TypeError),
]


def test_tail_refuses_what_cannot_be(nowhere: MQ) -> None:
    assert [
        options for options, error in BAD_TAILS if not is_refused(error, "", nowhere.admin.tail, "orders", **options)
    ] == []


# --- URLs, schemas and options ---

BAD_URLS = [
    ("", "Not a database URL"),
    ("garbage", "Not a database URL"),
    ("://", "Not a database URL"),
    ("/tmp/queue.db", "Not a database URL"),  # noqa: S108 - nothing is made there
    ("postgresql://host:port/name", "Not a database URL|Cannot create an engine"),
    ("mysql://user@host/name", "postgresql and sqlite, not on 'mysql'"),
    ("oracle://user@host/name", "not on 'oracle'"),
    ("nonsense://user@host/name", "not on 'nonsense'"),
    ("postgresql+pg8000://host/name", r"postgresql\+psycopg://"),
    ("sqlite+pysqlcipher:///queue.db", "sqlite:///file.db"),
]


@each_face
def test_a_wrong_url_is_refused_with_a_hint(face: type[MQ | AsyncMQ]) -> None:
    assert [url for url, hint in BAD_URLS if not is_refused(InvalidURLError, hint, face, url)] == []


@each_face
def test_what_is_no_url_is_refused(face: type[MQ | AsyncMQ]) -> None:
    values: list[Any] = [None, 1, b"sqlite://", ["sqlite://"], object()]

    assert taken(TypeError, "URL or a SQLAlchemy Engine", [face], values) == []


@each_face
def test_a_schema_on_sqlite_is_refused(face: type[MQ | AsyncMQ]) -> None:
    calls = [lambda schema: face("sqlite://", schema=schema)]

    assert taken(InvalidURLError, "SQLite has no schemas", calls, ["mq", "", *INJECTIONS]) == []


@each_face
def test_a_schema_that_cannot_be_is_refused(face: type[MQ | AsyncMQ]) -> None:
    schemas: list[Any] = ["", 1, b"mq", "a\x00b"]
    calls = [lambda schema: face("postgresql://nobody@127.0.0.1:1/nothing", schema=schema)]

    assert taken(Exception, "schema", calls, schemas) == []


@each_face
def test_an_option_out_of_range_is_refused(face: type[MQ | AsyncMQ]) -> None:
    options: list[dict[str, Any]] = [{"lease_seconds": number} for number in (0, -1, math.nan, math.inf)]
    options += [{"default_partitions": number} for number in (0, 10**9)]
    options += [{name: 0} for name in ("max_poll_seconds", "prefetch", "prefetch_bytes", "max_message_bytes")]
    options += [{"commit_interval_seconds": -1}, {"poll_min_seconds": 0}]
    calls = [lambda one: face("sqlite://", **one)]

    assert taken(ValueError, r"must be more than 0|must be 1 or more|1 to 10,000", calls, options) == []


@each_face
def test_an_option_of_the_wrong_type_is_refused(face: type[MQ | AsyncMQ]) -> None:
    options: dict[str, list[Any]] = {
        "lease_seconds": ["10", True],
        "prefetch": [1.5, "9"],
        "default_partitions": [None],
    }

    assert [
        (name, value)
        for name, values in options.items()
        for value in values
        if not is_refused(TypeError, name, face, "sqlite://", **{name: value})
    ] == []
