"""The members of a process: which of them are woken, by whom, and which threads they start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlmq.background.registry import FEW_MEMBERS, MemberRegistry
from sqlmq.background.wakeups import Wakeups
from sqlmq.model.config import MQConfig
from tests.support.processes import forks, in_fork

if TYPE_CHECKING:
    from sqlmq.operations.poll import PollRequest


class Member:
    """A member that notes how it was woken."""

    def __init__(self, registry: MemberRegistry, member_id: int, *, topic_id: int = 1, group_id: int = 1) -> None:
        self.member_id = member_id
        self.topic_id = topic_id
        self.group_id = group_id
        self.is_waiting = False
        self.wakeups = Wakeups(registry, MQConfig())
        self.seen: list[str] = []

    def poll_request(self) -> PollRequest | None:
        return None

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        raise NotImplementedError

    def membership_lost(self) -> None:
        raise NotImplementedError

    def housekeeping(self) -> None:
        raise NotImplementedError

    def wake(self) -> None:
        self.seen.append("wake")

    def recheck_group_soon(self) -> None:
        self.seen.append("group")


class Poller:
    """A shared poll, and a thread that counts how often it was started."""

    def __init__(self, *, is_healthy: bool = True) -> None:
        self._is_healthy = is_healthy
        self.polls: list[bool] = []
        self.starts = 0

    def start(self) -> None:
        self.starts += 1

    def try_to_start(self) -> None:
        self.starts += 1

    def poll_now(self, *, at_groups: bool) -> bool:
        self.polls.append(at_groups)
        return self._is_healthy


@pytest.fixture
def registry() -> MemberRegistry:
    return MemberRegistry()


def with_members(registry: MemberRegistry, count: int, *, are_waiting: bool = False) -> list[Member]:
    members = [Member(registry, number) for number in range(count)]
    for member in members:
        member.is_waiting = are_waiting
        registry.add(member)
    return members


def test_the_members_of_a_topic_are_woken_and_those_of_others_are_not(registry: MemberRegistry) -> None:
    here, elsewhere = Member(registry, 1, topic_id=1), Member(registry, 2, topic_id=2)
    registry.add(here)
    registry.add(elsewhere)

    registry.wake(1)

    assert (here.seen, elsewhere.seen) == (["wake"], [])


def test_the_members_of_a_group_read_it_again_but_for_the_one_that_changed_it(registry: MemberRegistry) -> None:
    changing, other = with_members(registry, 2)

    registry.recheck_group_soon(1, but=changing)

    assert (changing.seen, other.seen) == ([], ["group"])


def test_a_removed_member_is_not_woken_any_more(registry: MemberRegistry) -> None:
    removed, left = with_members(registry, 2)

    registry.remove(removed)
    registry.wake_all()

    assert (removed.seen, left.seen) == ([], ["wake"])
    assert registry.member_ids() == [1]


@pytest.mark.parametrize(
    ("waiting", "is_healthy", "polls", "seen"),
    [
        pytest.param(FEW_MEMBERS, True, [], ["wake"], id="few are woken directly"),
        pytest.param(FEW_MEMBERS + 1, True, [False], [], id="many are left to one shared poll"),
        pytest.param(FEW_MEMBERS + 1, False, [False], ["wake"], id="many are woken if no shared poll comes"),
    ],
)
def test_one_shared_poll_finds_out_which_of_many_waiting_members_to_wake(
    registry: MemberRegistry, waiting: int, is_healthy: bool, polls: list[bool], seen: list[str]
) -> None:
    poller = Poller(is_healthy=is_healthy)
    registry.wake_through(poller)
    members = with_members(registry, waiting, are_waiting=True)

    registry.wake_all()

    assert poller.polls == polls
    assert all(member.seen == seen for member in members)


def test_members_and_waits_start_their_threads(registry: MemberRegistry) -> None:
    of_members, of_waits = Poller(), Poller()
    registry.start_with_members(of_members)
    registry.start_with_waits(of_waits)

    (member,) = with_members(registry, 1)
    with member.wakeups.waiting(), member.wakeups.waiting():
        pass

    assert (of_members.starts, of_waits.starts) == (1, 2)


@forks
def test_a_forked_child_begins_without_members_and_wakes_none_of_its_parents(registry: MemberRegistry) -> None:
    (parents,) = with_members(registry, 1)

    def child() -> str:
        registry.wake_all()
        before = registry.member_ids()
        registry.add(Member(registry, 7))
        return f"{before} {registry.member_ids()} {parents.seen}"

    assert in_fork(child) == "[] [7] []"
    assert registry.member_ids() == [0]
