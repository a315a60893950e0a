"""Producing: what is acknowledged is in the log, once, in order, and byte for byte."""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from sqlmq import Message, OutcomeUnknownError, ProducerResult
from sqlmq.errors import ProducerClosedError
from sqlmq.model.partitioner import partition_for_key
from tests.support.waiting import PATIENCE_SECONDS, at_once, read_topic, receive, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlmq import MQ, ReceivedMessage
    from tests.conftest import DatabaseUnderTest, MakeMQ

# Each example starts where the one before ended, in the same topic.
few_examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


def round_trip(mq: MQ, *messages: Message) -> list[ReceivedMessage]:
    """Send *messages* to a partition and read them back from where the last round trip ended."""
    mq.create_topic("echo", 1)
    with mq.producer("echo") as producer, mq.consumer("echo", "readers") as consumer:
        producer.produce_many(messages)
        received = receive(consumer, len(messages))
        consumer.commit()
    return received


def assert_offsets_are_dense(results: list[ProducerResult]) -> None:
    by_partition: dict[int, list[int]] = {}
    for result in results:
        by_partition.setdefault(result.partition, []).append(result.offset)
    for offsets in by_partition.values():
        assert sorted(offsets) == list(range(len(offsets)))


@contextmanager
def writers_locked_out(engine: Engine, database: DatabaseUnderTest) -> Iterator[None]:
    """Hold, in a transaction of somebody else's, the lock that every append needs."""
    with engine.connect() as connection:
        if database.is_postgres:
            prefix = f"{database.schema}." if database.schema else ""
            connection.execute(text(f"SELECT id FROM {prefix}sqlmq_partition FOR UPDATE"))
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield
        connection.rollback()


# --- One message ---


@pytest.mark.pgbouncer
def test_a_produced_message_is_at_the_place_that_was_returned(mq: MQ) -> None:
    producer = mq.producer("orders")

    result = producer.produce(Message(b"42", b"customer 7", {"type": "paid"}))
    message = receive(mq.consumer("orders", "billing"), 1)[0]

    assert (message.topic, message.partition, message.offset) == result
    assert (message.value, message.key, message.headers) == (b"42", b"customer 7", {"type": "paid"})


def test_a_result_names_topic_partition_and_offset(mq: MQ) -> None:
    mq.create_topic("orders", 1)

    result = mq.producer("orders").produce(Message(b"42"))

    assert result == ProducerResult(topic="orders", partition=0, offset=0)


def test_an_arrived_message_has_the_databases_time_in_utc(mq: MQ, engine: Engine) -> None:
    database_now = "SELECT " + (
        "(julianday('now') - 2440587.5) * 86400.0" if engine.dialect.name == "sqlite" else "extract(epoch FROM now())"
    )

    with engine.connect() as connection:
        before = float(connection.execute(text(database_now)).scalar_one())
    mq.producer("orders").produce(Message(b""))
    with engine.connect() as connection:
        after = float(connection.execute(text(database_now)).scalar_one())
    timestamp = receive(mq.consumer("orders", "billing"), 1)[0].timestamp

    assert timestamp is not None
    assert timestamp.utcoffset() is not None
    assert before - 0.01 <= timestamp.timestamp() <= after + 0.01


def test_sending_a_message_does_not_change_it(mq: MQ) -> None:
    message = Message(b"42")

    mq.producer("orders").produce(message)

    assert type(message) is Message
    assert message == Message(b"42")


def test_a_received_message_can_be_sent_on(mq: MQ) -> None:
    (received,) = round_trip(mq, Message(b"42", b"k", {"a": "b"}))

    mq.producer("orders").produce(received)

    (again,) = receive(mq.consumer("orders", "billing"), 1)
    assert (again.value, again.key, again.headers) == (b"42", b"k", {"a": "b"})
    assert (received.topic, again.topic) == ("echo", "orders")
    assert again != received


def test_one_message_can_be_sent_again_and_again(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer, message = mq.producer("orders"), Message(b"42")

    offsets = [producer.produce(message).offset for _ in range(3)]

    assert offsets == [0, 1, 2]


def test_a_received_message_can_be_sent_on_to_another_topic(mq: MQ) -> None:
    mq.producer("orders").produce(Message(b"42", b"k", {"a": "b"}))
    received = receive(mq.consumer("orders", "billing"), 1)[0]

    mq.producer("copies").produce(received)

    copy = receive(mq.consumer("copies", "billing"), 1)[0]
    assert (copy.topic, copy.value, copy.key, copy.headers) == ("copies", b"42", b"k", {"a": "b"})


# --- Which partition ---


def test_messages_of_one_key_go_to_one_partition_in_order(mq: MQ) -> None:
    mq.create_topic("orders", 7)
    producer = mq.producer("orders")

    results = [producer.produce(Message(b"", b"customer 7")) for _ in range(10)]

    assert results == [("orders", partition_for_key("murmur2", b"customer 7", 7), offset) for offset in range(10)]


def test_every_producer_sends_a_key_to_the_same_partition(make_mq: MakeMQ) -> None:
    producers = [make_mq().producer("orders") for _ in range(2)]
    keys = [b"%d" % i for i in range(10)]

    partitions = [[producer.produce(Message(b"", key)).partition for key in keys] for producer in producers]

    assert partitions[0] == partitions[1]


def test_an_empty_key_is_a_key(mq: MQ) -> None:
    mq.create_topic("orders", 5)
    producer = mq.producer("orders")

    results = [producer.produce(Message(b"", b"")) for _ in range(5)]
    results += producer.produce_many([Message(b"", b"")] * 5)

    assert {result.partition for result in results} == {partition_for_key("murmur2", b"", 5)}
    assert receive(mq.consumer("orders", "billing"), 1)[0].key == b""


def test_messages_without_a_key_are_spread_evenly(mq: MQ) -> None:
    mq.create_topic("orders", 4)
    producer = mq.producer("orders")

    results = [producer.produce(Message(b"")) for _ in range(40)]

    assert Counter(result.partition for result in results) == dict.fromkeys(range(4), 10)


def test_messages_without_a_key_that_are_produced_together_go_to_one_partition(mq: MQ) -> None:
    results = mq.producer("orders").produce_many([Message(b"")] * 10)

    assert len({result.partition for result in results}) == 1


@pytest.mark.parametrize("key", [None, b"customer 7"], ids=["without key", "with key"])
def test_a_named_partition_is_used_whatever_the_key(mq: MQ, key: bytes | None) -> None:
    mq.create_topic("orders", 4)
    producer = mq.producer("orders")

    results = [producer.produce_with_partition(Message(b"", key), partition) for partition in range(4)]

    assert results == [("orders", partition, 0) for partition in range(4)]


def test_a_message_can_be_submitted_to_a_named_partition(mq: MQ) -> None:
    mq.create_topic("orders", 4)

    assert mq.producer("orders").submit(Message(b""), partition=3).result(PATIENCE_SECONDS) == ("orders", 3, 0)


def test_two_topics_have_offsets_of_their_own(mq: MQ) -> None:
    for topic in ("aa", "bb"):
        mq.create_topic(topic, 1)

    assert [mq.producer(topic).produce(Message(b"")).offset for topic in ("aa", "bb", "aa")] == [0, 0, 1]


# --- submit ---


def test_submitted_messages_are_acknowledged_through_their_futures(mq: MQ) -> None:
    producer = mq.producer("orders")

    futures = [producer.submit(Message(b"%d" % i, b"k")) for i in range(100)]

    assert [future.result(PATIENCE_SECONDS).offset for future in futures] == list(range(100))


def test_messages_submitted_by_one_thread_keep_their_order(mq: MQ) -> None:
    mq.create_topic("orders", 1)

    with mq.producer("orders") as producer:
        for i in range(3_000):
            producer.submit(Message(b"%d" % i))

    assert values(read_topic(mq, "orders")[0]) == [b"%d" % i for i in range(3_000)]


def test_close_waits_for_what_was_submitted(mq: MQ) -> None:
    producer = mq.producer("orders")
    futures = [producer.submit(Message(b"", b"k")) for _ in range(500)]

    producer.close()

    assert all(future.done() for future in futures)
    assert mq.admin.describe_topic("orders").messages == 500


@pytest.mark.sync_only(reason="an asyncio future is cancelled even when its message is on its way")
def test_a_cancelled_future_sends_nothing(mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")

    with writers_locked_out(engine, database):
        first = producer.submit(Message(b"first"))
        second = producer.submit(Message(b"second"))
        third = producer.submit(Message(b"third"))
        # The first may or may not be under way by now; if it is, the others wait behind it.
        is_cancelled = second.cancel()
    for future in (first, third):
        future.result(PATIENCE_SECONDS)

    expected = [b"first", b"third"] if is_cancelled else [b"first", b"second", b"third"]
    producer.close()
    assert values(read_topic(mq, "orders")[0]) == expected


# --- produce_many ---


@pytest.mark.pgbouncer
def test_results_of_many_are_in_the_order_of_the_messages(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    messages = [Message(b"%d" % i, b"%d" % (i % 10)) for i in range(200)]

    results = mq.producer("orders").produce_many(messages)

    log = read_topic(mq, "orders")
    assert [log[result.partition][result.offset].value for result in results] == values(messages)
    assert_offsets_are_dense(results)


def test_many_messages_of_one_partition_keep_their_order(mq: MQ) -> None:
    mq.producer("orders").produce_many(Message(b"%d" % i, b"k") for i in range(200))

    (messages,) = read_topic(mq, "orders").values()
    assert values(messages) == [b"%d" % i for i in range(200)]


def test_many_can_come_from_a_generator(mq: MQ) -> None:
    results = mq.producer("orders").produce_many(Message(b"", b"k") for _ in range(3))

    assert [result.offset for result in results] == [0, 1, 2]


def test_a_generator_that_fails_half_way_sends_nothing(mq: MQ) -> None:
    def messages() -> Iterator[Message]:
        yield Message(b"")
        raise RuntimeError

    producer = mq.producer("orders")

    with pytest.raises(RuntimeError):
        producer.produce_many(messages())

    assert mq.admin.describe_topic("orders").messages == 0


def test_no_messages_are_no_error(mq: MQ) -> None:
    assert mq.producer("orders").produce_many([]) == []


def test_one_bad_message_among_many_sends_none(make_mq: MakeMQ) -> None:
    mq = make_mq(max_message_bytes=100)
    producer = mq.producer("orders")

    with pytest.raises(ValueError, match="101 bytes"):
        producer.produce_many([Message(b"good"), Message(bytes(101)), Message(b"good")])

    assert mq.admin.describe_topic("orders").messages == 0


def test_many_that_the_database_refuses_half_way_are_all_refused(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    producer = mq.producer("orders")
    prefix = f"{database.schema}." if database.schema else ""
    trigger = f"""
        CREATE FUNCTION {prefix}refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON {prefix}sqlmq_message
        FOR EACH ROW WHEN (new.msg_offset = 5500) EXECUTE FUNCTION {prefix}refuse()
    """
    if not database.is_postgres:
        trigger = """
            CREATE TRIGGER refuse BEFORE INSERT ON sqlmq_message WHEN new.msg_offset = 5500
            BEGIN SELECT raise(ABORT, 'refused'); END
        """
    with engine.begin() as connection:
        connection.exec_driver_sql(trigger)

    with pytest.raises(Exception, match="refused"):
        producer.produce_many([Message(b"", b"k")] * 6_000)

    assert mq.admin.describe_topic("orders").messages == 0


@pytest.mark.pgbouncer
def test_more_messages_than_one_statement_takes_are_one_transaction(mq: MQ) -> None:
    results = mq.producer("orders").produce_many(Message(b"", b"%d" % (i % 50)) for i in range(12_001))

    assert len(results) == 12_001
    assert_offsets_are_dense(results)
    assert mq.admin.describe_topic("orders").messages == 12_001


def test_more_messages_than_one_statement_takes_come_back_as_they_were(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    keys = [None, b"", b"a", b"\x00\xff", b"c" * 100]
    headers = [None, {"": ""}, {"name": "größer \N{HORSE}", "other": "\"'\\"}]
    messages = [Message(b"%d" % i * (i % 7), keys[i % 5], headers[i % 3]) for i in range(6_000)]

    results = mq.producer("orders").produce_many(messages)

    log = read_topic(mq, "orders")
    assert len(log) > 1
    found = [log[result.partition][result.offset] for result in results]
    assert [(m.key, m.value, m.headers) for m in found] == [(m.key, m.value, m.headers) for m in messages]
    assert_offsets_are_dense(results)
    assert mq.producer("orders").produce_with_partition(Message(b""), 0).offset == len(log[0])


def test_more_bytes_than_one_statement_takes_are_one_transaction(mq: MQ) -> None:
    mq.create_topic("orders", 2)
    big = [bytes([i]) * 1_000_000 for i in range(20)]

    results = mq.producer("orders").produce_many(Message(value, b"%d" % (i % 5)) for i, value in enumerate(big))

    log = read_topic(mq, "orders")
    assert [log[result.partition][result.offset].value for result in results] == big


# --- Byte for byte ---


def test_value_and_key_come_back_byte_for_byte(mq: MQ) -> None:
    contents = [
        b"",
        b"\x00",
        bytes(range(256)),
        b"\xff\xfe\x80",
        "žluťoučký 🐎".encode(),
        b"\\x00",
        b"%s",
        b"'\"; --",
        bytes(100),
    ]

    received = round_trip(mq, *[Message(content, content) for content in contents])

    assert [(message.value, message.key) for message in received] == [(content, content) for content in contents]


def test_no_key_and_an_empty_key_are_different(mq: MQ) -> None:
    received = round_trip(mq, Message(b""), Message(b"", b""))

    assert [message.key for message in received] == [None, b""]


def test_bytes_like_values_come_back_as_bytes(mq: MQ) -> None:
    array: Any = bytearray(b"array")
    view: Any = memoryview(b"view")

    received = round_trip(mq, Message(array), Message(view, array))

    assert [(message.value, message.key) for message in received] == [(b"array", None), (b"view", b"array")]


def test_a_message_without_headers_arrives_with_none(mq: MQ) -> None:
    (message,) = round_trip(mq, Message(b""))

    assert message.headers == {}


HEADERS: list[dict[str, str]] = [
    {"": ""},
    {"name": ""},
    {"\u202eright to left": "\u05d0"},
    {"control": "".join(map(chr, range(1, 32)))},
    {"astral": "\U0001f40e\U0010ffff"},
    {"quotes": "\"'\\"},
    {"escapes": r"\u0000 \x00 \n"},
    {"not a character": "\ufffe\uffff"},
    {f"h{i}": "x" for i in range(1_000)},
    {"long": "x" * 500_000},
]


def test_headers_come_back_as_they_were(mq: MQ) -> None:
    received = round_trip(mq, *[Message(b"", headers=headers) for headers in HEADERS])

    assert [message.headers for message in received] == HEADERS


def test_composed_and_decomposed_characters_stay_different(mq: MQ) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")

    (message,) = round_trip(mq, Message(b"", headers={composed: "composed", decomposed: "decomposed"}))

    assert message.headers == {composed: "composed", decomposed: "decomposed"}


def test_composed_and_decomposed_keys_stay_different(mq: MQ) -> None:
    keys = [unicodedata.normalize(form, "é").encode() for form in ("NFC", "NFD")]

    received = round_trip(mq, *(Message(b"", key) for key in keys))

    assert [message.key for message in received] == keys


@few_examples
@given(
    messages=st.lists(
        st.builds(
            Message,
            st.binary(max_size=300),
            st.none() | st.binary(max_size=50),
            st.dictionaries(texts, texts, max_size=5),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_message_comes_back_as_it_was(mq: MQ, messages: list[Message]) -> None:
    received = round_trip(mq, *messages)

    assert [(m.value, m.key, m.headers) for m in received] == [(m.value, m.key, m.headers) for m in messages]


# --- timeout ---


def test_a_timeout_does_not_matter_when_all_goes_well(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")

    results = [
        producer.produce(Message(b""), timeout=PATIENCE_SECONDS),
        producer.produce_with_partition(Message(b""), 0, timeout=PATIENCE_SECONDS),
    ]

    assert [result.offset for result in results] == [0, 1]


def test_a_message_under_way_at_its_timeout_has_an_unknown_outcome(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.produce(Message(b"before"))

    with writers_locked_out(engine, database), pytest.raises(OutcomeUnknownError, match="being sent"):
        producer.produce(Message(b"under way"), timeout=0.3)
    producer.close()

    assert values(read_topic(mq, "orders")[0]) == [b"before", b"under way"]


def test_a_message_that_waits_behind_another_at_its_timeout_is_never_sent(
    mq: MQ, engine: Engine, database: DatabaseUnderTest
) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    producer.produce(Message(b"before"))

    with writers_locked_out(engine, database):
        with pytest.raises(OutcomeUnknownError):
            producer.produce(Message(b"under way"), timeout=0.3)
        with pytest.raises(TimeoutError, match=r"not sent within 0\.1 seconds, and will not be"):
            producer.produce(Message(b"behind"), timeout=0.1)
    after = producer.produce(Message(b"after"))

    assert after.offset == 2
    assert values(read_topic(mq, "orders")[0]) == [b"before", b"under way", b"after"]


# --- Many threads ---


@pytest.mark.pgbouncer
def test_many_threads_share_a_producer(mq: MQ) -> None:
    mq.create_topic("orders", 3)
    producer = mq.producer("orders")

    def produce(thread: int) -> list[ProducerResult]:
        return [producer.produce(Message(b"%d/%d" % (thread, i), b"%d" % i)) for i in range(20)]

    results = at_once(lambda thread=thread: produce(thread) for thread in range(64))  # type: ignore[misc]

    assert_offsets_are_dense([result for own in results for result in own])
    log = read_topic(mq, "orders")
    for thread, own in enumerate(results):
        sent = [b"%d/%d" % (thread, i) for i in range(20)]
        assert [log[result.partition][result.offset].value for result in own] == sent
    assert sum(map(len, log.values())) == 64 * 20


def test_each_thread_finds_its_messages_in_the_order_it_sent_them(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")

    def produce(thread: int) -> None:
        for i in range(30):
            producer.produce(Message(b"%d" % i, b"%d" % thread))

    at_once(lambda thread=thread: produce(thread) for thread in range(8))  # type: ignore[misc]

    messages = read_topic(mq, "orders")[0]
    for thread in range(8):
        own = [message.value for message in messages if message.key == b"%d" % thread]
        assert own == [b"%d" % i for i in range(30)]


def test_many_producers_of_several_queues_leave_no_gap(make_mq: MakeMQ) -> None:
    make_mq().create_topic("orders", 2)
    queues = [make_mq(), make_mq()]
    producers = [queues[i % 2].producer("orders") for i in range(8)]

    def produce(i: int) -> list[ProducerResult]:
        return [
            *(producers[i].produce(Message(b"", b"%d" % n)) for n in range(10)),
            *producers[i].produce_many(Message(b"", b"%d" % n) for n in range(10)),
        ]

    results = at_once(lambda i=i: produce(i) for i in range(8))  # type: ignore[misc]

    assert_offsets_are_dense([result for own in results for result in own])
    assert queues[0].admin.describe_topic("orders").messages == 160


def test_producers_of_many_to_several_partitions_in_any_order_do_not_wait_for_each_other_for_ever(
    make_mq: MakeMQ,
) -> None:
    producers = [make_mq(default_partitions=8).producer("orders") for _ in range(4)]
    keys = [b"%d" % i for i in range(40)]

    def produce(i: int) -> None:
        for _ in range(10):
            producers[i].produce_many(Message(b"", key) for key in (keys if i % 2 else reversed(keys)))

    at_once(lambda i=i: produce(i) for i in range(4))  # type: ignore[misc]

    assert make_mq().admin.describe_topic("orders").messages == 4 * 10 * 40


# --- Closed ---


def test_a_closed_producer_refuses_every_call(mq: MQ) -> None:
    producer = mq.producer("orders")

    producer.close()

    for call in (
        lambda: producer.produce(Message(b"")),
        lambda: producer.produce(Message(b""), timeout=1),
        lambda: producer.produce_with_partition(Message(b""), 0),
        lambda: producer.submit(Message(b"")),
        lambda: producer.produce_many([Message(b"")]),
        lambda: producer.produce_many([]),
    ):
        with pytest.raises(ProducerClosedError, match="orders"):
            call()
    assert mq.admin.describe_topic("orders").messages == 0


def test_closing_a_producer_again_is_no_error(mq: MQ) -> None:
    producer = mq.producer("orders")

    for _ in range(3):
        producer.close()

    assert producer.closed


def test_a_producer_is_closed_by_many_threads_at_once(mq: MQ) -> None:
    producer = mq.producer("orders")

    at_once([producer.close] * 8)

    assert producer.closed


def test_a_producer_closes_at_the_end_of_a_with_block(mq: MQ) -> None:
    with mq.producer("orders") as producer:
        producer.produce(Message(b""))

    assert producer.closed


def test_closing_one_producer_leaves_another_of_its_topic_open(mq: MQ) -> None:
    closed, other = mq.producer("orders"), mq.producer("orders")

    closed.close()

    assert other.produce(Message(b"")).topic == "orders"


def test_a_message_sent_while_the_producer_closes_is_acknowledged_or_refused(mq: MQ) -> None:
    mq.create_topic("orders", 1)
    producer = mq.producer("orders")
    has_begun = threading.Event()
    acknowledged: list[int] = []

    def produce() -> None:
        with pytest.raises(ProducerClosedError):  # noqa: PT012 - until it is refused
            while True:
                acknowledged.append(producer.produce(Message(b"")).offset)
                has_begun.set()

    def submit() -> None:
        futures = []
        with pytest.raises(ProducerClosedError):  # noqa: PT012 - until it is refused
            while True:
                futures.append(producer.submit(Message(b"")))
        acknowledged.extend(future.result(PATIENCE_SECONDS).offset for future in futures)

    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(produce), threads.submit(produce), threads.submit(submit)]
        assert has_begun.wait(PATIENCE_SECONDS)
        producer.close()
        for call in calls:
            call.result(PATIENCE_SECONDS)

    assert sorted(acknowledged) == list(range(mq.admin.describe_topic("orders").messages))


def test_the_name_of_the_topic_is_told(mq: MQ) -> None:
    producer = mq.producer("orders")

    assert producer.topic == "orders"
    assert repr(producer) == "<Producer of 'orders'>"
