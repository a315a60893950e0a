"""Options and arguments are checked when they are given, by their type and by their range."""

from __future__ import annotations

import inspect
import math
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlmq import MQ
from sqlmq.aio import AsyncMQ
from sqlmq.errors import InvalidGroupError, InvalidPartitionError, InvalidTopicError
from sqlmq.model.config import MQConfig
from sqlmq.model.positions import check_start
from sqlmq.model.validation import (
    MAX_PARTITIONS,
    check_due,
    check_group,
    check_ids,
    check_partition,
    check_partitioner,
    check_partitions,
    check_timeout,
    check_topic,
)

NUMBERS = [field.name for field in fields(MQConfig) if field.type != "bool"]
WHOLE_NUMBERS = ["default_partitions", "max_message_bytes", "prefetch", "prefetch_bytes"]


@pytest.mark.parametrize("kind", [MQ, AsyncMQ])
def test_the_keywords_of_an_mq_and_their_defaults_are_those_of_its_config(kind: type[MQ | AsyncMQ]) -> None:
    parameters = inspect.signature(kind).parameters

    keywords = {name: one.default for name, one in parameters.items() if name not in {"database", "schema", "clock"}}

    assert keywords == {field.name: field.default for field in fields(MQConfig)}


def test_the_defaults_are_good() -> None:
    assert MQConfig().lease_seconds == 10


def test_options_cannot_be_changed() -> None:
    options: Any = MQConfig()

    with pytest.raises(FrozenInstanceError):
        options.prefetch = 1


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", [0, -1])
def test_a_number_that_is_not_positive_is_refused_by_name(name: str, number: int) -> None:
    options: dict[str, Any] = {name: number}

    with pytest.raises(ValueError, match=name):
        MQConfig(**options)


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - set(WHOLE_NUMBERS)))
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_of_seconds_that_is_not_finite_is_refused_by_name(name: str, number: float) -> None:
    options: dict[str, Any] = {name: number}

    with pytest.raises(ValueError, match=name):
        MQConfig(**options)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("given_", ["1", None, True, [1]], ids=repr)
def test_what_is_no_number_is_refused_by_name(name: str, given_: object) -> None:
    options: dict[str, Any] = {name: given_}

    with pytest.raises(TypeError, match=name):
        MQConfig(**options)


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_a_fraction_of_what_is_counted_is_refused(name: str) -> None:
    options: dict[str, Any] = {name: 1.5}

    with pytest.raises(TypeError, match=name):
        MQConfig(**options)


@pytest.mark.parametrize("name", ["create_topics", "notify"])
@pytest.mark.parametrize("given_", [None, "yes", 1], ids=repr)
def test_a_switch_is_a_bool(name: str, given_: Any) -> None:
    options: dict[str, Any] = {name: given_}

    with pytest.raises(TypeError, match=name):
        MQConfig(**options)


@given(st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,48}[a-zA-Z0-9]", fullmatch=True))
def test_a_name_by_the_rule_is_a_topic(name: str) -> None:
    assert check_topic(name) == name


@given(st.text())
def test_any_text_is_a_topic_by_the_rule_or_refused(name: str) -> None:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ends = letters + "0123456789"
    good = 2 <= len(name) <= 50 and name[0] in letters and name[-1] in ends and set(name) <= set(ends + "_.-")

    if good:
        assert check_topic(name) == name
    else:
        with pytest.raises(InvalidTopicError):
            check_topic(name)


@pytest.mark.parametrize("name", ["", "_a", "a b", "a\n", "x" * 101])
def test_a_bad_group_is_refused(name: str) -> None:
    with pytest.raises(InvalidGroupError):
        check_group(name)


@given(st.integers(1, MAX_PARTITIONS).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
def test_each_partition_of_a_topic_is_good(count_and_number: tuple[int, int]) -> None:
    count, number = count_and_number

    assert check_partitions(count) == count
    assert check_partition("orders", number, count) == number


@given(count=st.integers(1, MAX_PARTITIONS), number=st.integers())
def test_any_other_partition_is_refused(count: int, number: int) -> None:
    if 0 <= number < count:
        return
    with pytest.raises(InvalidPartitionError) as caught:
        check_partition("orders", number, count)

    assert caught.value.partition == number


@pytest.mark.parametrize("timeout", [0, 0.5, 10, 1e9])
def test_a_good_timeout_is_seconds(timeout: float) -> None:
    assert check_timeout(timeout) == timeout


def test_no_timeout_is_none() -> None:
    assert check_timeout(None) is None


@pytest.mark.parametrize("bad", [-1, math.nan, -math.inf])
def test_a_timeout_before_now_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        check_timeout(bad)


def test_choices_are_checked() -> None:
    for check, bad in ((check_start, "now"), (check_partitioner, "random"), (check_partitioner, [])):
        with pytest.raises(ValueError, match=r"must be '.* or .*, not"):
            check(bad)


# --- When a message is due ---

offsets = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(timezones=offsets | st.timezones()))
def test_every_moment_there_is_stays_itself_or_is_over_or_refused(moment: datetime) -> None:
    try:
        due = check_due(None, moment)
    except ValueError:
        assert moment >= datetime(9999, 1, 1, tzinfo=UTC)
        return

    assert isinstance(due, datetime)
    assert due.tzinfo is UTC
    # Not 1970 itself, which is the moment of what is no delayed message. Compared in UTC: what no clock of its time zone
    # has shown, an hour that summer time leaves out, equals nothing elsewhere.
    earliest = datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)
    assert due == (earliest if moment <= earliest else moment.astimezone(UTC))


@given(st.floats() | st.integers())
def test_a_delay_is_a_number_of_seconds_from_now_to_three_centuries(seconds: float) -> None:
    try:
        due = check_due(seconds, None)
    except ValueError:
        assert not 0 <= seconds <= 9.5e9
        return

    assert isinstance(due, float)
    assert due == seconds


def test_a_scheduled_message_needs_a_delay_or_a_moment() -> None:
    with pytest.raises(ValueError, match=r"delay_seconds= or deliver_at="):
        check_due(None, None)


@given(st.lists(st.integers()))
def test_ids_that_no_message_can_have_are_left_out(ids: list[int]) -> None:
    assert check_ids(ids) == list(dict.fromkeys(one for one in ids if 0 < one < 2**63))
