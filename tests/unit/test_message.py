"""A message keeps what it was made of, can't be changed, and gives nothing away when it is shown."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq.errors import InvalidMessageError, MessageTooLargeError
from sqlmq.model.message import Message, ProducerResult, ReceivedMessage

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
made = st.builds(Message, st.binary(), st.none() | st.binary(), st.dictionaries(texts, texts))


def received(message: Message, *, offset: int = 7) -> ReceivedMessage:
    row = (1, offset, message.key, message.value, message.headers_json, 1_500_000)
    return ReceivedMessage.from_rows("orders", 2, [row])[0]


def test_a_message_has_what_it_was_made_of() -> None:
    message = Message(b"value", b"key", {"a": "b"})

    assert (message.value, message.key, message.headers) == (b"value", b"key", {"a": "b"})


def test_key_and_headers_may_be_left_out() -> None:
    message = Message(b"value")

    assert (message.key, message.headers, message.headers_json) == (None, {}, None)


@given(made)
def test_an_arrived_message_has_the_headers_that_were_sent(message: Message) -> None:
    assert received(message).headers == message.headers


def test_headers_may_arrive_as_bytes() -> None:
    (message,) = ReceivedMessage.from_rows("orders", 0, [(1, 0, None, b"", '{"ä":"ö"}'.encode(), 0)])

    assert (message.headers, message.headers_json) == ({"ä": "ö"}, '{"ä":"ö"}')


def test_an_arrived_message_tells_its_place_and_moment() -> None:
    message = received(Message(b""))

    assert (message.topic, message.partition, message.offset) == ("orders", 2, 7)
    assert message.timestamp == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)


@pytest.mark.parametrize("name", ["value", "key", "headers", "topic", "partition", "offset", "timestamp", "other"])
def test_a_message_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Message(b""), name, b"")


def test_headers_cannot_be_changed() -> None:
    headers: Any = Message(b"", headers={"a": "b"}).headers

    with pytest.raises(TypeError):
        headers["a"] = "c"


def test_changing_what_a_message_was_made_of_does_not_change_it() -> None:
    value: Any = bytearray(b"value")
    headers = {"a": "b"}
    message = Message(value, None, headers)

    value[0] = 0
    headers["a"] = "c"

    assert (message.value, message.headers, message.headers_json) == (b"value", {"a": "b"}, '{"a":"b"}')


@pytest.mark.parametrize("bad", [None, "text", 1, [1], object()], ids=lambda bad: type(bad).__name__)
def test_a_value_that_is_no_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="value must be bytes"):
        Message(bad)


@pytest.mark.parametrize("bad", ["text", 1, 0, "", [1]], ids=repr)
def test_a_key_that_is_no_bytes_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="key must be bytes"):
        Message(b"", bad)


def test_text_is_refused_with_a_hint() -> None:
    text: Any = "text"

    with pytest.raises(TypeError, match="encode"):
        Message(text)


@pytest.mark.parametrize("bad", [{1: "a"}, {"a": 1}, {"a": None}, {"a": b"b"}, {b"a": "b"}, {"a": {}}], ids=repr)
def test_a_header_that_is_no_text_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"header's (name|value) must be str"):
        Message(b"", headers=bad)


@pytest.mark.parametrize("bad", [1, "ab", [("a",)], True], ids=repr)
def test_headers_that_are_no_mapping_are_refused(bad: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Message(b"", headers=bad)


@pytest.mark.parametrize("bad", ["\x00", "a\x00b", "\ud800", "a\udfffb"], ids=ascii)
def test_text_that_no_database_keeps_is_refused(bad: str) -> None:
    for headers in ({bad: "x"}, {"x": bad}):
        with pytest.raises(InvalidMessageError, match=r"NUL|surrogate"):
            Message(b"", headers=headers)


@given(made)
def test_messages_of_the_same_parts_are_equal(message: Message) -> None:
    same = Message(message.value, message.key, dict(message.headers))

    assert message == same
    assert hash(message) == hash(same)


def test_messages_of_different_parts_or_places_differ() -> None:
    message = Message(b"v", b"k", {"a": "b"})
    others = [Message(b"w", b"k", {"a": "b"}), Message(b"v", None, {"a": "b"}), Message(b"v", b"k"), received(message)]

    assert all(message != other for other in others)
    assert received(message, offset=1) != received(message, offset=2)
    assert message != b"v"


@given(made)
def test_messages_survive_pickling_and_copying(message: Message) -> None:
    for one in (message, received(message)):
        assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - what was pickled just before
        assert copy.deepcopy(one) == one


@given(made)
def test_received_messages_of_the_same_place_are_equal_and_have_the_same_hash(message: Message) -> None:
    assert received(message) == received(message)
    assert hash(received(message)) == hash(received(message))


def test_a_received_message_can_be_made_for_a_test_of_a_handler() -> None:
    at = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)

    made_here = ReceivedMessage(b"v", b"k", {"a": "b"}, topic="orders", partition=2, offset=7, timestamp=at)

    assert made_here == received(Message(b"v", b"k", {"a": "b"}))
    assert made_here.timestamp == at


def test_a_message_that_was_not_received_has_no_place() -> None:
    for name in ("topic", "partition", "offset", "timestamp"):
        assert not hasattr(Message(b""), name)


@pytest.mark.parametrize("name", ["value", "key", "headers", "topic", "partition", "offset", "timestamp", "other"])
def test_a_received_message_cannot_be_changed(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(received(Message(b"")), name, b"")


def test_repr_shows_sizes_and_no_contents() -> None:
    shown = repr(received(Message(b"secret", b"secret", {"secret": "secret"})))

    assert shown == "<ReceivedMessage orders/2@7 key of 6 bytes, value of 6 bytes>"


def test_each_part_is_measured_by_itself() -> None:
    Message(bytes(10), bytes(10), {"a": "bcd"}).check_size(11)

    with pytest.raises(MessageTooLargeError, match="key has 12 bytes"):
        Message(bytes(10), bytes(12)).check_size(11)


def test_a_result_is_a_tuple_of_topic_partition_and_offset() -> None:
    assert ProducerResult("orders", 1, 2) == ("orders", 1, 2)
