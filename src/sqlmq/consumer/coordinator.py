"""What one consumer owns: its membership of a group, its partitions, and how far it has come in each.

Not safe to share between threads: the consumer's lock guards it, but for ``heard`` and ``expelled``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Unpack

from sqlmq.consumer.partition import AssignedPartition
from sqlmq.dialects import Position
from sqlmq.errors import FencedError, NotOwnedError, UnknownTopicError
from sqlmq.hooks.log_events import log_fields
from sqlmq.model.config import check_partition
from sqlmq.model.timing import lease_valid_until
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
    from sqlmq.model.config import MQConfig, OnEvicted
    from sqlmq.model.positions import SeekTo, Start
    from sqlmq.store.groups import Group
    from sqlmq.store.topics import Topic

log = logging.getLogger("sqlmq.consumer")

_CHECK_GROUP_MIN_SECONDS, _CHECK_GROUP_MAX_SECONDS = 0.05, 1.0
"""How often to look at the group: when partitions are missing, and when all is well."""


class Subscription(NamedTuple):
    """What a consumer joins with."""

    topic: Topic
    group_name: str
    start: Start
    member_name: str
    on_evicted: OnEvicted = "raise"


class Coordinator:
    """The partitions of one member. Joins the group when it is made; claims nothing before ``ensure``."""

    def __init__(self, database: Database, subscription: Subscription, options: MQConfig) -> None:
        self._database = database
        self._clock = database.clock
        self._subscription = subscription
        self._options = options
        self.assigned: dict[int, AssignedPartition] = {}
        """Progress by partition id."""
        self.releasing: set[int] = set()
        """Ids of partitions to hand back once nothing of them is in hand."""
        self.expects_successor = False
        """Whether somebody is about to join in this member's place."""
        self.partition_numbers: tuple[int, ...] = ()
        """The numbers of the claimed partitions, in order. Alone here it may be read at any time, by any thread."""
        self._committed_at = self._clock.monotonic()
        self._check_group_at = 0.0
        self._has_logged_idle = False
        self.group: Group
        self.member_id: int
        self._join()

    def heartbeat_acknowledged(self, sent_at: float) -> None:
        """The heartbeat that was sent at *began* has arrived."""
        self._lease_valid_until = lease_valid_until(sent_at, self._options.lease_seconds)

    def membership_lost(self) -> None:
        """The group no longer has this member: nothing is certain before it has asked."""
        self._lease_valid_until = 0.0

    def recheck_group_soon(self) -> None:
        """The group may have changed."""
        self._check_group_at = 0.0

    def ensure_assignment(self) -> bool:
        """See to it that what is claimed here is claimed in the database; return whether the others should look, too.

        Asks only when it is time to: each second, more often while partitions are missing, and before anything else
        when no heartbeat has arrived for nearly a lease.
        """
        now = self._clock.monotonic()
        if now >= self._lease_valid_until:
            self._renew_lease(now)
        if now < self._check_group_at:
            return False
        seen = self._read_group()
        if seen is None:
            self._renew_lease(now)
            seen = self._read_group()
        return seen is not None and self._reconcile(seen)

    def ensure_membership(self) -> None:
        """Be a member, again if need be, without claiming anything."""
        now = self._clock.monotonic()
        if now >= self._lease_valid_until:
            self._renew_lease(now)

    def poll_request(self) -> PollRequest | None:
        """What somebody else can look for; None if it has to be looked for here."""
        if (
            self.releasing
            or not self.is_lease_valid()
            or any(assigned.prefetched for assigned in self.assigned.values())
        ):
            return None
        return PollRequest(
            self.group.id,
            self.member_id,
            self._options.lease_seconds,
            {id_: claim_of(assigned) for id_, assigned in self.assigned.items()},
            tuple(Position(assigned.partition_id, assigned.read_position) for assigned in self.assigned.values()),
        )

    def is_lease_valid(self) -> bool:
        """Whether what is claimed here can't be anybody else's yet."""
        return self._clock.monotonic() < self._lease_valid_until

    def needs_no_check(self, now: float) -> bool:
        """Whether ``ensure`` would find nothing to do *now*."""
        return now < self._lease_valid_until and now < self._check_group_at

    def is_commit_due(self, intervals: int) -> bool:
        """Whether the last commit is so many commit intervals ago."""
        return self._clock.monotonic() - self._committed_at >= intervals * self._options.commit_interval_seconds

    def commit_due(self) -> tuple[int, ...]:
        """Commit what is finished; forget the partitions that are somebody else's by now, and return their numbers."""
        finished = self.committable_positions()
        return self._drop_fenced(finished, self._write(finished))

    def committable_positions(self) -> list[tuple[Claim, Commit]]:
        """What ``flush`` and ``flush_unlocked`` would commit now."""
        self._committed_at = self._clock.monotonic()
        return _commits_of(self.assigned.values())

    def commit_unlocked(self, finished: list[tuple[Claim, Commit]]) -> None:
        """Commit what was *finished*, without the consumer's lock, so that its loops go on meanwhile.

        What turns out to be somebody else's is left to the next survey, which is due at once.
        """
        if len(self._write(finished)) < len(finished):
            self.recheck_group_soon()

    def record_in_flight(self, assigned: AssignedPartition, commit: Commit) -> bool:
        """Make *commit*, before what it says to be in hand is handled; return False if the partition is somebody else's.

        Without the consumer's lock, for whoever has the partition in hand.
        """
        return bool(self._write([(claim_of(assigned), commit)], marking=True))

    def skip_evicted(self, assigned: AssignedPartition) -> bool:
        """See whether retention has deleted what is to be read next; if so, go on behind it, or raise EvictedError."""
        number, id_, position = assigned.partition, assigned.partition_id, assigned.read_position
        topic, group = self._subscription.topic.name, self._subscription.group_name
        error = self._database.read(retention.find_eviction, topic, group, ReadPlace(number, id_, position))
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

    def note_committed(self, assigned: AssignedPartition, offset: int) -> None:
        """Somebody has committed *offset* in a transaction of his own."""
        commit = Commit(assigned.partition_id, offset)
        self._note_written([(claim_of(assigned), commit)], [commit])

    def seek(self, number: int, to: SeekTo) -> None:
        """Move the group in partition *number*; whatever is read ahead or in hand of it is dropped.

        Raises NotOwnedError, FencedError, InvalidPartitionError or InvalidOffsetError.
        """
        topic = self._subscription.topic
        id_ = next((id_ for id_, assigned in self.assigned.items() if assigned.partition == number), None)
        if id_ is None:
            found = self._database.read(topics.find_topic, topic.name)
            check_partition(topic.name, number, found.partitions)
            raise NotOwnedError(topic.name, self.group.name, number, self.partition_numbers)
        claim = claim_of(self.assigned[id_])
        # Should the answer get lost, the next look tells whether it was done.
        self.recheck_group_soon()
        moved = self._database.write(reset.seek, topic, self.group, self.member_id, claim, to)
        self._drop([id_])
        if moved is None:
            raise self.fenced((number,))
        renewed, position = moved
        self.assigned[id_] = assigned = AssignedPartition(topic.name, number, id_, renewed.epoch, position)
        assigned.note_pruned(position)
        self._update_partition_numbers()

    def release_all(self) -> None:
        """Commit what is finished and hand everything back, but stay a member."""
        self._part_with(membership.release, self.assigned)

    def release_partition(self, assigned: AssignedPartition) -> None:
        """Hand one partition back, whatever is in hand of it."""
        if self.assigned.get(assigned.partition_id) is assigned:
            self._part_with(membership.release, [assigned.partition_id])
            self.recheck_group_soon()

    def release_if_not_polled(self, asked_at: float) -> None:
        """Hand everything back if the application last asked for messages, at *asked_at*, too long ago."""
        idle_seconds = self._clock.monotonic() - asked_at
        if not self.assigned or idle_seconds <= self._options.max_poll_seconds:
            return
        log.warning(
            "Member %s of group %r has not asked for messages for %.0f seconds (max_poll_seconds is %.0f): it gives its "
            "partitions of topic %r back, and what it has not finished is delivered again.",
            self._subscription.member_name,
            self._subscription.group_name,
            idle_seconds,
            self._options.max_poll_seconds,
            self._subscription.topic.name,
            extra=self.log_fields("member idle", seconds=idle_seconds),
        )
        self.release_all()

    def leave(self) -> None:
        """Commit what is finished, hand everything back and leave the group."""
        self._part_with(membership.leave_for_successor if self.expects_successor else membership.leave, self.assigned)

    def fenced(self, numbers: tuple[int, ...]) -> FencedError:
        """The error that says that the partitions *numbers* are somebody else's."""
        return FencedError(self._subscription.topic.name, self._subscription.group_name, numbers)

    def check_topic(self) -> None:
        """Raise UnknownTopicError if the topic was deleted, even if there is another one of that name."""
        topic = self._subscription.topic
        found = self._database.read(topics.find_topic, topic.name)
        if found.id != topic.id:
            raise UnknownTopicError(topic.name)

    def _join(self) -> None:
        began = self._clock.monotonic()
        topic, group_name, start, name, _ = self._subscription
        lease_seconds = self._options.lease_seconds
        self.group, self.member_id = self._database.write(
            membership.join, topic, group_name, start, name, lease_seconds
        )
        self.heartbeat_acknowledged(began)

    def _renew_lease(self, now: float) -> None:
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
        self._check_group_at = 0.0

    def log_fields(self, event: str, **more: Unpack[LogFields]) -> dict[str, object]:
        """What a record of the log tells of *event*, with topic, group and member."""
        subscription = self._subscription
        named: LogFields = {
            "topic": subscription.topic.name,
            "group": subscription.group_name,
            "member": subscription.member_name,
        }
        return log_fields(event, **(named | more))

    def _read_group(self) -> membership.GroupView | None:
        return self._database.read(membership.read_group, self.group, self.member_id, self._options.lease_seconds)

    def _reconcile(self, seen: membership.GroupView) -> bool:
        """Mend what differs from what was *seen*: claims lost, too many or too few. Return whether others should know."""
        lost = [id_ for id_, assigned in self.assigned.items() if seen.mine.get(id_) != claim_of(assigned)]
        if lost:
            log.warning(
                "%s",
                self.fenced(tuple(sorted(self.assigned[id_].partition for id_ in lost))),
                extra=self.log_fields("fenced"),
            )
            self._drop(lost)
        self.releasing = {id_ for id_ in seen.plan.release if id_ in self.assigned}
        going = [id_ for id_ in self.releasing if self.assigned[id_].is_idle]
        # A claim that the database knows of and this consumer does not is one whose COMMIT was not answered.
        give = [claim for id_, claim in seen.mine.items() if id_ not in self.assigned or id_ in going]
        owned = len(seen.mine) - len(give)
        taken = 0
        is_told = seen.wants_partitions == (owned < seen.plan.share)
        if give or seen.plan.take_at_most or not is_told:
            taken = self._apply_assignment(seen, going, give)
        owned += taken
        self._log_if_idle(seen)
        is_missing = owned < seen.plan.share or bool(self.releasing)
        pause = (
            _CHECK_GROUP_MIN_SECONDS if is_missing else min(_CHECK_GROUP_MAX_SECONDS, self._options.lease_seconds / 10)
        )
        self._check_group_at = self._clock.monotonic() + pause
        return bool(give or taken or not is_told)

    def _apply_assignment(self, seen: membership.GroupView, going: list[int], give: list[Claim]) -> int:
        finished = _final_commits_of(self.assigned[id_] for id_ in going)
        written, taken = self._database.write(
            membership.change, self.group, self.member_id, seen, finished=finished, give=give
        )
        self._note_written(finished, written)
        self._drop_fenced(finished, written)
        self._drop(going)
        for new in taken:
            id_ = new.claim.partition_id
            self.assigned[id_] = assigned = AssignedPartition(
                self._subscription.topic.name, new.number, id_, new.claim.epoch, new.position, new.log_start
            )
            if not new.has_older:
                assigned.note_pruned(new.position)
        self._update_partition_numbers()
        log.debug(
            "%s took %d partition(s), handed back %d",
            self._subscription.member_name,
            len(taken),
            len(give),
            extra=self.log_fields("partitions changed"),
        )
        return len(taken)

    def _log_if_idle(self, seen: membership.GroupView) -> None:
        if seen.plan.share == 0 and not self._has_logged_idle:
            self._has_logged_idle = True
            log.info(
                "Member %s gets no partition: group %r has more consumers than topic %r has partitions.",
                self._subscription.member_name,
                self._subscription.group_name,
                self._subscription.topic.name,
                extra=self.log_fields("member without partition"),
            )

    def _write(self, finished: list[tuple[Claim, Commit]], *, marking: bool = False) -> list[Commit]:
        if not finished:
            return []
        # What only counts attempts has to survive the process, not the server.
        durably = self._options.durable_commits and not marking
        written = self._database.write_idempotent_statement(
            consume.commit, self.group, self.member_id, finished, durably=durably, updating_in_flight=marking
        )
        self._note_written(finished, written)
        return written

    def _note_written(self, finished: list[tuple[Claim, Commit]], written: list[Commit]) -> None:
        offsets = {commit.partition_id: commit.offset for commit in written}
        overgrown = []
        for claim, _ in finished:
            assigned = self.assigned.get(claim.partition_id)
            if assigned is not None and claim_of(assigned) == claim and claim.partition_id in offsets:
                assigned.note_committed(offsets[claim.partition_id])
                if assigned.old_positions >= consume.PRUNE_EVERY:
                    overgrown.append(assigned)
        self._prune(overgrown)

    def _drop_fenced(self, finished: list[tuple[Claim, Commit]], written: list[Commit]) -> tuple[int, ...]:
        lost = {claim.partition_id for claim, _ in finished} - {commit.partition_id for commit in written}
        numbers = tuple(sorted(self.assigned[id_].partition for id_ in lost))
        self._drop(lost)
        return numbers

    def _prune(self, overgrown: list[AssignedPartition]) -> None:
        if not overgrown:
            return
        windows = [
            (claim_of(assigned), Window(assigned.partition_id, assigned.pruned_to, assigned.committed))
            for assigned in overgrown
        ]
        self._database.write_idempotent(consume.prune, self.group, self.member_id, windows)
        for assigned, (_, window) in zip(overgrown, windows, strict=True):
            assigned.note_pruned(window.end)

    def _part_with(self, flow: membership.Ending, partition_ids: Collection[int]) -> None:
        finished = _final_commits_of(self.assigned[id_] for id_ in partition_ids)
        given = self._drop(partition_ids)
        self._database.write(flow, self.group, self.member_id, finished=finished, given=given)

    def _drop(self, partition_ids: Iterable[int]) -> list[Claim]:
        """Forget partitions, whatever is in hand of them; return the claims there were."""
        dropped = [self.assigned.pop(id_) for id_ in list(partition_ids) if id_ in self.assigned]
        for assigned in dropped:
            assigned.drop_prefetched()  # also what is lent to a loop
        self.releasing -= {assigned.partition_id for assigned in dropped}
        self._update_partition_numbers()
        return [claim_of(assigned) for assigned in dropped]

    def _update_partition_numbers(self) -> None:
        self.partition_numbers = tuple(sorted(assigned.partition for assigned in self.assigned.values()))


def claim_of(assigned: AssignedPartition) -> Claim:
    """The claim by which the partition of *progress* is owned."""
    return Claim(assigned.partition_id, assigned.epoch)


def _commits_of(progresses: Iterable[AssignedPartition]) -> list[tuple[Claim, Commit]]:
    return [
        (claim_of(assigned), Commit(assigned.partition_id, assigned.committable(), assigned.in_flight_to))
        for assigned in progresses
        if assigned.has_uncommitted
    ]


def _final_commits_of(progresses: Iterable[AssignedPartition]) -> list[tuple[Claim, Commit]]:
    """What to commit of partitions that are parted with: nothing is in hand any more, but attempts that failed count."""
    return [
        (claim_of(assigned), Commit(assigned.partition_id, assigned.committable(), assigned.maybe_attempted_beyond))
        for assigned in progresses
        if assigned.has_uncommitted or assigned.has_recorded_in_flight
    ]
