"""Anything that can happen to a topic with limits, in any order, against a model that deletes one message at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqlmq import EvictedError, Retention
from tests.support.retention import DAY, AgedTopic

if TYPE_CHECKING:
    from sqlmq import MQ
    from tests.conftest import DatabaseUnderTest

NUMBERS = itertools.count()
BOTH = pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
EXPIRY_DAYS = 20


@dataclass(frozen=True)
class Put:
    count: int
    days_old: int
    size: int


@dataclass(frozen=True)
class Read:
    group: str
    at_most: int
    goes_on: bool
    """Whether it goes on after it was told what it has lost."""


@dataclass(frozen=True)
class Expire:
    group: str


@dataclass(frozen=True)
class Keep:
    days: int | None
    bytes: int | None
    messages: int | None
    max_days: int | None
    protect: bool

    @property
    def retention(self) -> Retention:
        # Between two days, so that no message is just at the limit.
        return Retention(
            None if self.days is None else (self.days + 0.5) * DAY,
            self.bytes,
            self.messages,
            self.protect,
            None if self.max_days is None else (self.max_days + 0.5) * DAY,
            EXPIRY_DAYS * DAY,
        )


Act = Put | Read | Expire | Keep
groups = st.sampled_from(["billing", "audit"])


@st.composite
def keeps(draw: st.DrawFn) -> Keep:
    days = draw(st.none() | st.integers(0, 6))
    protect = draw(st.booleans())
    max_days = draw(st.none() | st.integers(days or 0, 9)) if protect else None
    few = st.none() | st.integers(1, 12)
    return Keep(days, draw(st.none() | st.integers(1, 200)), draw(few), max_days, protect)


acts = st.lists(
    st.one_of(
        st.builds(Put, count=st.integers(1, 6), days_old=st.integers(0, 10), size=st.integers(0, 40)),
        st.builds(Read, group=groups, at_most=st.integers(1, 8), goes_on=st.booleans()),
        st.builds(Expire, group=groups),
        keeps(),
    ),
    min_size=3,
    max_size=12,
)


@dataclass
class Model:
    """A partition as it must be. Every group is away, and was heard of lately or long ago."""

    keep: Keep = field(default_factory=lambda: Keep(None, None, None, None, protect=True))
    messages: list[Put] = field(default_factory=list)
    """What each message was put with, from offset 0 on."""
    start: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    lost: dict[str, set[int]] = field(default_factory=dict)

    def trim(self) -> None:
        before = self.start
        while self.start < len(self.messages) and self._exceeds() and (self._is_free() or self._is_overdue()):
            self.start += 1
        for group, position in self.positions.items():
            self.lost.setdefault(group, set()).update(range(max(position, before), self.start))

    def _exceeds(self) -> bool:
        kept, keep = self.messages[self.start :], self.keep
        return (
            (keep.days is not None and kept[0].days_old > keep.days)
            or (keep.messages is not None and len(kept) > keep.messages)
            or (keep.bytes is not None and sum(one.size + len(b"key") for one in kept) > keep.bytes)
        )

    def _is_free(self) -> bool:
        needed = [at for group, at in self.positions.items() if group not in self.expired]
        return not self.keep.protect or all(self.start < at for at in needed)

    def _is_overdue(self) -> bool:
        return self.keep.max_days is not None and self.messages[self.start].days_old > self.keep.max_days


def do(topic: AgedTopic, model: Model, act: Act, name: str) -> None:
    match act:
        case Put():
            topic.put(act.count, days_old=act.days_old, value=b"x" * act.size)
            model.messages += [act] * act.count
        case Keep():
            topic.keep(act.retention)
            model.keep = act
        case Expire():
            if act.group in model.positions:
                topic.let_pass(f"{act.group}-{name}", days=EXPIRY_DAYS + 1)
                model.expired.add(act.group)
        case Read():
            read(topic, model, act, name)


def read(topic: AgedTopic, model: Model, act: Read, name: str) -> None:
    """Have a group read on, where it is told what it has lost, if it has."""
    position = model.positions.get(act.group, model.start)
    with topic.mq.consumer(name, f"{act.group}-{name}") as consumer:
        if position < model.start:
            with pytest.raises(EvictedError) as caught:
                consumer.poll(timeout=0)
            assert (caught.value.start, caught.value.end) == (position, model.start)
            model.expired.discard(act.group)
            if not act.goes_on:
                return
    with topic.mq.consumer(name, f"{act.group}-{name}", on_evicted="earliest") as consumer:
        messages = consumer.poll(act.at_most, timeout=0)
    at = max(position, model.start)
    expected = list(range(at, min(at + act.at_most, len(model.messages))))
    assert [message.offset for message in messages] == expected[: len(messages)]
    assert messages or not expected
    # What was polled last is not done, and comes again; what was lost does not.
    model.positions[act.group] = at
    model.expired.discard(act.group)


@pytest.mark.slow
@BOTH
@given(todo=acts)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_happens_what_remains_and_what_is_lost_is_as_in_the_model(
    mq: MQ, database: DatabaseUnderTest, todo: list[Act]
) -> None:
    name = f"topic-{next(NUMBERS)}"
    topic, model = AgedTopic(database, mq, name), Model()
    try:
        for act in todo:
            do(topic, model, act, name)
            topic.trim()
            model.trim()

            assert topic.stored() == list(range(model.start, len(model.messages)))
            assert (topic.start, topic.end) == (model.start, len(model.messages))
        lost: dict[str, set[int]] = {}
        for group, _, start, end in topic.losses():
            lost.setdefault(group.partition("-")[0], set()).update(range(start, end))
        assert lost == {group: offsets for group, offsets in model.lost.items() if offsets}
    finally:
        topic.close()
