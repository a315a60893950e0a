"""Heartbeats: what a member is told when one is acknowledged, and when the group no longer has it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

from sqlmq.background.heartbeat import Heartbeat
from sqlmq.background.registry import MemberRegistry
from sqlmq.background.wakeups import Wakeups
from sqlmq.model.config import MQConfig
from tests.support.clock import ManualClock
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.database.database import Database
    from sqlmq.operations.poll import PollRequest

ANSWER_SECONDS = 7.0


class Member:
    """A member that notes what it learns of its heartbeats."""

    topic_id = group_id = 1
    is_waiting = False

    def __init__(self, registry: MemberRegistry, member_id: int) -> None:
        self.member_id = member_id
        self.wakeups = Wakeups(registry, MQConfig())
        self.sent_at: list[float] = []
        self.is_lost = False

    def poll_request(self) -> PollRequest | None:
        raise NotImplementedError

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        self.sent_at.append(sent_at)

    def membership_lost(self) -> None:
        self.is_lost = True

    def housekeeping(self) -> None:
        raise NotImplementedError

    def wake(self) -> None:
        raise NotImplementedError

    def recheck_group_soon(self) -> None:
        raise NotImplementedError


class SlowDatabase:
    """Acknowledges heartbeats of the members *alive*, each after some seconds of the clock."""

    def __init__(self, clock: ManualClock, *alive: int) -> None:
        self._clock = clock
        self._alive = set(alive)
        self.clock = clock.clock
        self.watchdog = self

    def shortening(self, _seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    def write_with_priority(self, _operation: object, member_ids: Sequence[int]) -> set[int]:
        self._clock.advance(ANSWER_SECONDS)
        return self._alive & set(member_ids)


def test_a_member_counts_its_lease_from_when_the_heartbeat_was_sent_however_late_the_answer() -> None:
    clock, registry = ManualClock(), MemberRegistry()
    member, gone = Member(registry, 1), Member(registry, 2)
    registry.add(member)
    registry.add(gone)
    began = clock.monotonic()
    heartbeat = Heartbeat(cast("Database", SlowDatabase(clock, 1)), registry, lease_seconds=60.0)

    heartbeat.start()
    until(lambda: gone.is_lost, "the first heartbeat")
    heartbeat.stop()

    assert member.sent_at == [began]
    assert not member.is_lost
    assert gone.sent_at == []
