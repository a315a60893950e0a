"""One member of a group: its lease, the partitions assigned to it, and the positions that it commits.

One thing in spite of its length, because all of it changes together: a lease that is lost drops the assignment, a partition
that is released commits its position, and a commit that is fenced drops the partition.

Not safe to share between threads: the consumer's lock guards it. ``heartbeat_acknowledged``, ``membership_lost``,
``recheck_group_soon`` and ``needs_no_check`` are the exceptions, which read or write a single number.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Unpack

from sqlmq.consumer.partition import AssignedPartition
from sqlmq.dialects import Position
from sqlmq.errors import FencedError, NotOwnedError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.assignment import reconcile
from sqlmq.model.timing import lease_valid_until
from sqlmq.model.validation import check_partition
from sqlmq.operations import consume, membership, retention
from sqlmq.operations.admin import reset, topics
from sqlmq.operations.poll import PollRequest
from sqlmq.operations.retention import ReadPlace
from sqlmq.store.claims import Claim
from sqlmq.store.offsets import Commit, Window

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlmq.database.database import Database
    from sqlmq.hooks.log_events import LogFields
    from sqlmq.model.assignment import Reconciliation
    from sqlmq.model.config import MQConfig, OnEvicted
    from sqlmq.model.positions import SeekTo, Start
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

log = logging.getLogger("sqlmq.consumer")

_CHECK_GROUP_MIN_SECONDS, _CHECK_GROUP_MAX_SECONDS = 0.05, 1.0
"""Pauses between two checks of the group: while partitions are missing, and when the assignment is complete."""


class Subscription(NamedTuple):
    """What a consumer joins its group with."""

    topic: Topic
    group_name: str
    start: Start
    member_name: str
    on_evicted: OnEvicted = "raise"


class Coordinator:
    """Joins the group when it is created, and owns no partition before the first ``ensure_assignment``."""

    def __init__(self, database: Database, subscription: Subscription, options: MQConfig) -> None:
        self._database = database
        self._clock = database.clock
        self._subscription = subscription
        self._options = options
        self.assigned: dict[int, AssignedPartition] = {}
        """The partitions of this member, by partition id."""
        self.releasing: set[int] = set()
        """Ids of partitions to release as soon as none of their messages is in flight."""
        self.partition_numbers: tuple[int, ...] = ()
        """The numbers of the assigned partitions, in order. Any thread may read it, at any time."""
        self.expects_successor = False
        """Whether another member is about to join in this one's place. The worker pool sets it after SIGTERM."""
        self.group: Group
        self.member_id: int
        self._committed_at = self._clock.monotonic()
        self._check_group_at = 0.0
        self._has_logged_idle = False
        self._join()

    # The lease: how long no other member can own what is assigned here.

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """Extend the lease: the database has acknowledged the heartbeat sent at *sent_at*."""
        self._lease_valid_until = lease_valid_until(sent_at, self._options.lease_seconds)

    def membership_lost(self) -> None:
        """End the lease: the group no longer has this member. The next step joins again."""
        self._lease_valid_until = 0.0

    def is_lease_valid(self) -> bool:
        """Whether no other member can own an assigned partition yet."""
        return self._clock.monotonic() < self._lease_valid_until

    def ensure_membership(self) -> None:
        """Rejoin the group if the membership was lost. Claims no partition."""
        now = self._clock.monotonic()
        if now >= self._lease_valid_until:
            self._renew_lease(now)

    # The assignment.

    def ensure_assignment(self) -> bool:
        """Bring the assignment into line with the group's rows. Return whether other members should check the group too.

        Reads the rows only when a check is due: every second or tenth of a shorter lease, more often while partitions are
        missing, and first of all if the lease has ended because no heartbeat arrived.
        """
        now = self._clock.monotonic()
        if now >= self._lease_valid_until:
            self._renew_lease(now)
        if now < self._check_group_at:
            return False
        view = self._read_group()
        if view is None:
            self._renew_lease(now)
            view = self._read_group()
        return view is not None and self._reconcile(view)

    def needs_no_check(self, now: float) -> bool:
        """Whether ``ensure_assignment`` would have nothing to do at *now*."""
        return now < self._lease_valid_until and now < self._check_group_at

    def recheck_group_soon(self) -> None:
        """Make the next check of the group due at once: the group may have changed."""
        self._check_group_at = 0.0

    def poll_request(self) -> PollRequest | None:
        """What another thread can look for in the place of this member; None if the member has to do it itself."""
        has_prefetched = any(assigned.prefetched for assigned in self.assigned.values())
        if self.releasing or has_prefetched or not self.is_lease_valid():
            return None
        return PollRequest(
            self.group.id,
            self.member_id,
            self._options.lease_seconds,
            {id_: claim_of(assigned) for id_, assigned in self.assigned.items()},
            tuple(Position(assigned.partition_id, assigned.read_position) for assigned in self.assigned.values()),
        )

    def release_all(self) -> None:
        """Commit what is acknowledged and release all partitions, but stay a member."""
        self._release_by(membership.release, self.assigned)

    def release_partition(self, assigned: AssignedPartition) -> None:
        """Release one partition, whatever is in flight of it."""
        if self.assigned.get(assigned.partition_id) is assigned:
            self._release_by(membership.release, [assigned.partition_id])
            self.recheck_group_soon()

    def release_if_not_polled(self, polled_at: float) -> None:
        """Release all partitions if the application last polled, at *polled_at*, more than max_poll_seconds ago."""
        idle_seconds = self._clock.monotonic() - polled_at
        if not self.assigned or idle_seconds <= self._options.max_poll_seconds:
            return
        log.warning(
            "Member %s of group %r has not asked for messages for %.0f seconds (max_poll_seconds is %.0f). It releases "
            "its partitions of topic %r, and what it has not finished is delivered again.",
            self._subscription.member_name,
            self._subscription.group_name,
            idle_seconds,
            self._options.max_poll_seconds,
            self._subscription.topic.name,
            extra=self.log_fields("member idle", seconds=idle_seconds),
        )
        self.release_all()

    def leave(self) -> None:
        """Commit what is acknowledged, release all partitions and leave the group."""
        self._release_by(membership.leave_for_successor if self.expects_successor else membership.leave, self.assigned)

    # Positions.

    def is_commit_due(self, intervals: int) -> bool:
        """Whether the last commit was *intervals* commit intervals ago."""
        return self._clock.monotonic() - self._committed_at >= intervals * self._options.commit_interval_seconds

    def commit_due(self) -> tuple[int, ...]:
        """Commit what is acknowledged. Drop the partitions that another member owns by now, and return their numbers."""
        commits = self.committable_positions()
        return self._drop_fenced(commits, self._write(commits))

    def committable_positions(self) -> list[tuple[Claim, Commit]]:
        """What ``commit_due`` and ``commit_unlocked`` commit now."""
        self._committed_at = self._clock.monotonic()
        return _commits_of(self.assigned.values())

    def commit_unlocked(self, commits: list[tuple[Claim, Commit]]) -> None:
        """Commit without the consumer's lock, so that its loops go on meanwhile.

        A partition that another member owns by now is left to the next check of the group, which becomes due at once.
        """
        if len(self._write(commits)) < len(commits):
            self.recheck_group_soon()

    def record_in_flight(self, assigned: AssignedPartition, commit: Commit) -> bool:
        """Write *commit* before the messages it calls in flight are handled. Return False if the partition is lost.

        Runs without the consumer's lock, in the worker that has the partition to itself.
        """
        return bool(self._write([(claim_of(assigned), commit)], updating_in_flight=True))

    def note_committed(self, assigned: AssignedPartition, offset: int) -> None:
        """Note that a transaction of another place has committed *offset*."""
        commit = Commit(assigned.partition_id, offset)
        self._note_written([(claim_of(assigned), commit)], [commit])

    def skip_evicted(self, assigned: AssignedPartition) -> bool:
        """Return whether retention has deleted what is to be read next. If so, skip it, or raise EvictedError."""
        number, position = assigned.partition, assigned.read_position
        error = self._database.read(
            retention.find_eviction,
            self._subscription.topic.name,
            self._subscription.group_name,
            ReadPlace(number, assigned.partition_id, position),
        )
        if error is None:
            return False
        if self._subscription.on_evicted == "raise":
            raise error
        if assigned.skip_evicted_to(error.end):
            log.warning(
                "%s It goes on at offset %d.",
                error.fact,
                error.end,
                extra=self.log_fields("evicted passed over", partition=number, offset=position, end_offset=error.end),
            )
        return True

    def seek(self, number: int, to: SeekTo) -> None:
        """Move the group in partition *number*. Drops what is prefetched or in flight of it.

        Raises NotOwnedError, FencedError, InvalidPartitionError or InvalidOffsetError.
        """
        topic = self._subscription.topic
        id_ = next((id_ for id_, assigned in self.assigned.items() if assigned.partition == number), None)
        if id_ is None:
            found = self._database.read(topics.find_topic, topic.name)
            check_partition(topic.name, number, found.partitions)
            raise NotOwnedError(topic.name, self.group.name, number, self.partition_numbers)
        # First: if the response to the write is lost, the next check of the group sees whether it took effect.
        self.recheck_group_soon()
        moved = self._database.write(reset.seek, topic, self.group, self.member_id, claim_of(self.assigned[id_]), to)
        self._drop([id_])
        if moved is None:
            raise self.fenced((number,))
        renewed, position = moved
        self.assigned[id_] = assigned = AssignedPartition(topic.name, number, id_, renewed.epoch, position)
        assigned.note_pruned(position)
        self._update_partition_numbers()

    # Errors and log records.

    def fenced(self, numbers: tuple[int, ...]) -> FencedError:
        """The error for partitions *numbers*, which another member owns by now."""
        return FencedError(self._subscription.topic.name, self._subscription.group_name, numbers)

    def check_topic(self) -> None:
        """Raise UnknownTopicError if the topic was deleted, even if another topic has its name by now."""
        topic = self._subscription.topic
        if self._database.read(topics.find_topic, topic.name).id != topic.id:
            raise UnknownTopicError(topic.name)

    def log_fields(self, event: str, **more: Unpack[LogFields]) -> dict[str, object]:
        """The fields of a log record of *event*, with topic, group and member."""
        subscription = self._subscription
        named: LogFields = {
            "topic": subscription.topic.name,
            "group": subscription.group_name,
            "member": subscription.member_name,
        }
        return log_fields(event, **(named | more))

    def _join(self) -> None:
        sent_at = self._clock.monotonic()
        topic, group_name, start, name, _ = self._subscription
        self.group, self.member_id = self._database.write(
            membership.join, topic, group_name, start, name, self._options.lease_seconds
        )
        self.heartbeat_acknowledged(sent_at)

    def _renew_lease(self, now: float) -> None:
        """Send a heartbeat, and rejoin if the group has removed the member."""
        for assigned in self.assigned.values():
            assigned.drop_prefetched()
        alive = self._database.write(membership.heartbeat, [self.member_id])
        if alive:
            self.heartbeat_acknowledged(now)
        else:
            log.warning(
                "Member %s is not in group %r any more; it joins again.",
                self._subscription.member_name,
                self._subscription.group_name,
                extra=self.log_fields("membership lost"),
            )
            self._drop(self.assigned)
            self._join()
        self.recheck_group_soon()

    def _read_group(self) -> membership.GroupView | None:
        return self._database.read(membership.read_group, self.group, self.member_id, self._options.lease_seconds)

    def _reconcile(self, view: membership.GroupView) -> bool:
        """Apply what ``reconcile`` finds in *view*. Return whether the other members should check the group."""
        changes = reconcile(
            view.plan,
            held={id_: assigned.epoch for id_, assigned in self.assigned.items()},
            recorded={id_: claim.epoch for id_, claim in view.mine.items()},
            idle={id_ for id_, assigned in self.assigned.items() if assigned.is_idle},
            recorded_as_wanting=view.wants_partitions,
        )
        if changes.lost:
            numbers = tuple(sorted(self.assigned[id_].partition for id_ in changes.lost))
            log.warning("%s", self.fenced(numbers), extra=self.log_fields("fenced"))
            self._drop(changes.lost)
        self.releasing = set(changes.releasing)
        taken = self._apply_assignment(view, changes) if changes.changes_database else 0
        self._log_if_idle(changes.share)
        is_complete = changes.is_complete(taken)
        pause = min(_CHECK_GROUP_MAX_SECONDS, self._options.lease_seconds / 10)
        self._check_group_at = self._clock.monotonic() + (pause if is_complete else _CHECK_GROUP_MIN_SECONDS)
        return changes.changed_group(taken)

    def _apply_assignment(self, view: membership.GroupView, changes: Reconciliation) -> int:
        """Release and claim partitions in one transaction; return how many were claimed."""
        released = [id_ for id_ in changes.release_now if id_ in self.assigned]
        commits = _final_commits_of(self.assigned[id_] for id_ in released)
        written, taken = self._database.write(
            membership.change,
            self.group,
            self.member_id,
            view,
            finished=commits,
            give=[view.mine[id_] for id_ in changes.release_now],
        )
        self._note_written(commits, written)
        self._drop_fenced(commits, written)
        self._drop(released)
        for new in taken:
            self._assign(new)
        self._update_partition_numbers()
        log.info(
            "%s took %d partition(s) and released %d",
            self._subscription.member_name,
            len(taken),
            len(changes.release_now),
            extra=self.log_fields("partitions changed"),
        )
        return len(taken)

    def _assign(self, new: membership.ClaimedNow) -> None:
        id_, topic = new.claim.partition_id, self._subscription.topic.name
        assigned = AssignedPartition(topic, new.number, id_, new.claim.epoch, new.position, new.log_start)
        if not new.has_older:
            assigned.note_pruned(new.position)
        self.assigned[id_] = assigned

    def _log_if_idle(self, share: int) -> None:
        if share == 0 and not self._has_logged_idle:
            self._has_logged_idle = True
            log.info(
                "Member %s gets no partition: group %r has more consumers than topic %r has partitions.",
                self._subscription.member_name,
                self._subscription.group_name,
                self._subscription.topic.name,
                extra=self.log_fields("member without partition"),
            )

    def _write(self, commits: list[tuple[Claim, Commit]], *, updating_in_flight: bool = False) -> list[Commit]:
        """Write *commits* and return those of partitions that are still this member's."""
        if not commits:
            return []
        # A commit that only counts attempts has to survive the process, but not the server.
        durably = self._options.durable_commits and not updating_in_flight
        written = self._database.write_idempotent_statement(
            consume.commit,
            self.group,
            self.member_id,
            commits,
            durably=durably,
            updating_in_flight=updating_in_flight,
        )
        self._note_written(commits, written)
        return written

    def _note_written(self, commits: list[tuple[Claim, Commit]], written: list[Commit]) -> None:
        offsets = {commit.partition_id: commit.offset for commit in written}
        overgrown = []
        for claim, _ in commits:
            assigned = self.assigned.get(claim.partition_id)
            # Without the lock, the partition may have been lost and assigned again meanwhile, in another epoch.
            if assigned is not None and claim_of(assigned) == claim and claim.partition_id in offsets:
                assigned.note_committed(offsets[claim.partition_id])
                if assigned.old_positions >= consume.PRUNE_EVERY:
                    overgrown.append(assigned)
        self._prune(overgrown)

    def _drop_fenced(self, commits: list[tuple[Claim, Commit]], written: list[Commit]) -> tuple[int, ...]:
        """Drop the partitions whose commits were not written, and return their numbers."""
        lost = {claim.partition_id for claim, _ in commits} - {commit.partition_id for commit in written}
        numbers = tuple(sorted(self.assigned[id_].partition for id_ in lost))
        self._drop(lost)
        return numbers

    def _prune(self, overgrown: list[AssignedPartition]) -> None:
        """Delete old positions of the group in the partitions that have too many."""
        if not overgrown:
            return
        windows = [
            (claim_of(assigned), Window(assigned.partition_id, assigned.pruned_to, assigned.committed))
            for assigned in overgrown
        ]
        self._database.write_idempotent(consume.prune, self.group, self.member_id, windows)
        for assigned, (_, window) in zip(overgrown, windows, strict=True):
            assigned.note_pruned(window.end)

    def _release_by(self, operation: membership.ReleaseOperation, partition_ids: Collection[int]) -> None:
        """Drop partitions, then commit and release them in the database by *operation*."""
        commits = _final_commits_of(self.assigned[id_] for id_ in partition_ids)
        released = self._drop(partition_ids)
        self._database.write(operation, self.group, self.member_id, finished=commits, given=released)

    def _drop(self, partition_ids: Iterable[int]) -> list[Claim]:
        """Forget partitions, whatever is in flight of them; return their claims."""
        dropped = [self.assigned.pop(id_) for id_ in list(partition_ids) if id_ in self.assigned]
        for assigned in dropped:
            assigned.drop_prefetched()  # also what is lazily delivered to a loop and not taken yet
        self.releasing -= {assigned.partition_id for assigned in dropped}
        self._update_partition_numbers()
        return [claim_of(assigned) for assigned in dropped]

    def _update_partition_numbers(self) -> None:
        self.partition_numbers = tuple(sorted(assigned.partition for assigned in self.assigned.values()))


def claim_of(assigned: AssignedPartition) -> Claim:
    """The claim that makes *assigned* this member's."""
    return Claim(assigned.partition_id, assigned.epoch)


def _commits_of(partitions: Iterable[AssignedPartition]) -> list[tuple[Claim, Commit]]:
    """The positions to commit while messages are in flight."""
    return [
        (claim_of(assigned), Commit(assigned.partition_id, assigned.committable(), assigned.in_flight_to))
        for assigned in partitions
        if assigned.has_uncommitted
    ]


def _final_commits_of(partitions: Iterable[AssignedPartition]) -> list[tuple[Claim, Commit]]:
    """The positions to commit when partitions are released: nothing is in flight after that, but failed attempts count."""
    return [
        (claim_of(assigned), Commit(assigned.partition_id, assigned.committable(), assigned.maybe_attempted_beyond))
        for assigned in partitions
        if assigned.has_uncommitted or assigned.has_recorded_in_flight
    ]
