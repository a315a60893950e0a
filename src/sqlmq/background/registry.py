"""The members of this process: who they are, which of them to wake, and which threads serve them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmq.background.wakeups import Wakeups
    from sqlmq.operations.poll import PollRequest

FEW_MEMBERS = 4
"""Up to how many waiting members are woken directly: each polls sooner for itself than a shared poll would tell it."""


class GroupMember(Protocol):
    """What the background needs of a consumer. No method may block for longer than one statement takes."""

    @property
    def member_id(self) -> int:
        """The database's id of the member. It changes when the member joins again."""

    @property
    def topic_id(self) -> int:
        """The database's id of the topic."""

    @property
    def group_id(self) -> int:
        """The database's id of the group."""

    @property
    def is_waiting(self) -> bool:
        """Whether a thread or task waits for a message."""

    @property
    def wakeups(self) -> Wakeups:
        """The threads and tasks that wait for a message."""

    def poll_request(self) -> PollRequest | None:
        """Return what a shared poll should look for; None if the member has to poll for itself."""

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """Extend the lease: the heartbeat sent at *sent_at*, by the monotonic clock, was acknowledged."""

    def membership_lost(self) -> None:
        """React to the loss of the membership: the group no longer has this member."""

    def housekeeping(self) -> None:
        """Commit what is due. Release the partitions if the application has stopped polling."""

    def wake(self) -> None:
        """Wake all waits: there may be new messages."""

    def recheck_group_soon(self) -> None:
        """Read the group again at the next poll, and wake all waits: the group may have changed."""


class Startable(Protocol):
    """A thread that the registry starts when members need it."""

    def start(self) -> None:
        """Start the thread unless it is alive. Called often, so cheap. Raises RuntimeError if that is impossible now."""

    def try_to_start(self) -> None:
        """As ``start``, but if it is impossible now, only the log tells."""


class SharedPoll(Protocol):
    """What polls for many members in one statement."""

    def poll_now(self, *, at_groups: bool) -> bool:
        """Poll for all waiting members without delay; return False if they should poll for themselves."""


class MemberRegistry:
    """The consumers of one MQ that are open in this process. Thread-safe.

    A forked child begins with none: the parent's members stay with the parent. The child does not even wake them,
    because threads that exist only in the parent may hold their locks.
    """

    def __init__(self) -> None:
        self._shared_poll: SharedPoll | None = None
        self._started_with_members: tuple[Startable, ...] = ()
        self._started_with_waits: tuple[Startable, ...] = ()
        self._start_over()

    def _start_over(self) -> None:
        """Set the state that belongs to one process: at construction, and in a forked child."""
        self._pid = os.getpid()
        # Reentrant: a finalizer or a signal handler may make or close a consumer in the middle of these steps.
        self._lock = threading.RLock()
        self._by_id: dict[int, GroupMember] = {}
        self._members: tuple[GroupMember, ...] = ()
        """The values of *_by_id*. Any thread may read it, without the lock."""

    def start_with_members(self, *threads: Startable) -> None:
        """Start *threads* from now on whenever a member is added."""
        self._started_with_members = threads

    def start_with_waits(self, *threads: Startable) -> None:
        """Start *threads* from now on whenever a member begins to wait."""
        self._started_with_waits = threads

    def wake_through(self, shared_poll: SharedPoll) -> None:
        """Leave it to *shared_poll* from now on which members to wake, when many of them wait."""
        self._shared_poll = shared_poll

    def start_threads(self) -> None:
        """Start the threads that every member needs. Raises RuntimeError if that is impossible now: first this, then join."""
        for thread in self._started_with_members:
            thread.start()

    def add(self, member: GroupMember) -> None:
        """Add *member*: from now on it sends heartbeats."""
        self._start_over_if_forked()
        with self._lock:
            self._by_id[id(member)] = member
            self._members = tuple(self._by_id.copy().values())
        self.start_threads()

    def remove(self, member: GroupMember) -> None:
        """Remove *member*."""
        self._start_over_if_forked()
        with self._lock:
            self._by_id.pop(id(member), None)
            self._members = tuple(self._by_id.copy().values())

    def members(self) -> tuple[GroupMember, ...]:
        """Return the members of this process."""
        return self._members if self._pid == os.getpid() else ()

    def member_ids(self) -> list[int]:
        """Return the database's ids of the members."""
        return [member.member_id for member in self.members()]

    def on_wait(self) -> None:
        """Start the threads that serve waiting members: one begins to wait."""
        for thread in self._started_with_waits:
            thread.try_to_start()

    def wake(self, topic_id: int) -> None:
        """Wake the members that read a topic: it has new messages."""
        self._wake([member for member in self.members() if member.topic_id == topic_id], at_groups=False)

    def wake_all(self) -> None:
        """Wake all members: any topic may have new messages."""
        self._wake(self.members(), at_groups=False)

    def recheck_group_soon(self, group_id: int, *, but: GroupMember | None = None) -> None:
        """Wake the members of a group, *but* one, to read the group again: it has changed."""
        others = [member for member in self.members() if member.group_id == group_id and member is not but]
        self._wake(others, at_groups=True)

    def _wake(self, members: Sequence[GroupMember], *, at_groups: bool) -> None:
        """Wake *members*. If many of them wait, one shared poll finds out which of those to wake."""
        waiting = {member for member in members if member.is_waiting}
        is_delegated = (
            len(waiting) > FEW_MEMBERS
            and self._shared_poll is not None
            and self._shared_poll.poll_now(at_groups=at_groups)
        )
        for member in members:
            if is_delegated and member in waiting:
                continue
            if at_groups:
                member.recheck_group_soon()
            else:
                member.wake()

    def _start_over_if_forked(self) -> None:
        if self._pid != os.getpid():
            self._start_over()
