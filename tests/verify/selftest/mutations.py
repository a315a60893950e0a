"""Mistakes in the library, made on purpose in the processes of a run. The judge has to find each one.

Each mutation replaces one step of the library with a wrong one.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from sqlmq.consumer import partition
from sqlmq.consumer.buffer import FetchBuffer
from sqlmq.consumer.coordinator import Coordinator
from sqlmq.consumer.core import ConsumerCore
from sqlmq.consumer.transaction_scope import TransactionScope
from sqlmq.consumer.worker.attempts import AttemptRecorder
from sqlmq.model.message import FetchedRecords, ProducerResult, RecordBatch
from sqlmq.model.retry import FailureAction
from sqlmq.operations import attempts, consume, produce, retention, staging
from sqlmq.producer.core import ProducerCore
from sqlmq.producer.outbox import _Outbox
from sqlmq.store import offsets
from sqlmq.store.offsets import Commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlmq.consumer.worker.failures import FailureDecision
    from sqlmq.model.message import Message, ReceivedMessage
    from sqlmq.operations.produce import AppendBatch, RoutedMessage
    from sqlmq.store.topics import Topic
    from sqlmq.verify.plan import Plan

_SELDOM, _OFTEN = 0.03, 0.2


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mistake, and what it leads to."""

    name: str
    breaks: str
    """What goes wrong, in a sentence."""
    expected: str
    """The codes of anomalies; at least one of them has to be found. There may be others."""
    apply: Callable[[random.Random], None]
    """Breaks the library in this process for good. The random choices decide when the mistake happens."""
    changes: Mapping[str, Any]
    """Fields of a plan without which the mistake does not show."""

    def planned(self, plan: Plan) -> Plan:
        """Return *plan*, shortened, with this mutation in each of its processes."""
        hook = f"{self.apply.__module__}:{self.apply.__qualname__}"
        return replace(plan, process_hook=hook, **{**_SHORT, **self.changes})


_SHORT: dict[str, Any] = {
    "mode": "lease",
    "seconds": 3.0,
    "least": 100,
    "consumers": 1,
    "faults": (),
    "fault_seconds": 0.3,
    "lease_seconds": 0.6,
    "drain_seconds": 5.0,
}

MUTATIONS: dict[str, Mutation] = {}
"""All of them, by name."""


def _mutation(
    name: str,
    breaks: str,
    expected: str,
    **changes: Any,  # fields of a plan
) -> Callable[[Callable[[random.Random], None]], Callable[[random.Random], None]]:
    def register(apply: Callable[[random.Random], None]) -> Callable[[random.Random], None]:
        MUTATIONS[name] = Mutation(name, breaks, expected, apply, changes)
        return apply

    return register


def _patch(owner: object, name: str, replacement: object) -> None:
    """Replace *name* of *owner*. A test checks that *owner* has it, and that *replacement* can be called like it."""
    setattr(owner, name, replacement)


@_mutation("acknowledged-uncommitted", "Sometimes a message is acknowledged but its transaction is rolled back.", "A1")
def _acknowledged_uncommitted(chosen: random.Random) -> None:
    def append(self: ProducerCore, batch: AppendBatch) -> list[ProducerResult]:
        database = self.database
        with database.connect() as conn:
            database.dialect.begin(conn)
            results = produce.append(conn, database.dialect, batch)
            if chosen.random() < _OFTEN:
                conn.rollback()
            else:
                conn.commit()
        self._notifier.announce(batch.runs[0].topic.id)
        return results

    _patch(ProducerCore, "_append", append)


@_mutation("numbered-without-lock", "Offsets are looked up before the partition is locked, and assigned twice.", "A5")
def _numbered_without_lock(_chosen: random.Random) -> None:
    def append(self: ProducerCore, batch: AppendBatch) -> list[ProducerResult]:
        database, topic = self.database, batch.runs[0].topic
        with database.connect() as conn:
            bases = [_next_offset(conn, self, topic, run.number) for run in batch.runs]
        time.sleep(0.005)
        with database.connect() as conn:
            database.dialect.begin(conn)
            first = 0
            for run, base in zip(batch.runs, bases, strict=True):
                _write_rows(conn, self, topic, run.number, base, batch.contents.between(first, first + run.messages))
                first += run.messages
            conn.commit()
        self._notifier.announce(batch.runs[0].topic.id)
        return produce._results(batch, bases)

    _patch(ProducerCore, "_append", append)


@_mutation("number-left-out", "Sometimes an offset is skipped, as by a sequence after a rollback.", "A6")
def _number_left_out(chosen: random.Random) -> None:
    original = ProducerCore._append

    def append(self: ProducerCore, batch: AppendBatch) -> list[ProducerResult]:
        if len(batch.contents.values) > 1 or chosen.random() >= _OFTEN:
            return original(self, batch)
        database, topic = self.database, batch.runs[0].topic
        with database.connect() as conn:
            database.dialect.begin(conn)
            (result,) = produce.append(conn, database.dialect, batch)
            m = database.dialect.tables.message
            place = (m.c.partition_id == topic.partition_ids[result.partition], m.c.msg_offset == result.offset)
            conn.execute(update(m).where(*place).values(msg_offset=result.offset + 1))
            conn.commit()
        return [result._replace(offset=result.offset + 1)]

    _patch(ProducerCore, "_append", append)


@_mutation(
    "hole-passed-over",
    "An offset may appear behind one that was read, and readers skip missing offsets.",
    "B1",
)
def _hole_passed_over(_chosen: random.Random) -> None:
    original, receive = ProducerCore._append, partition.AssignedPartition.receive

    def append(self: ProducerCore, batch: AppendBatch) -> list[ProducerResult]:
        if len(batch.runs) > 1 or len(batch.contents.values) == 1:
            return original(self, batch)
        database, (topic, number, end) = self.database, batch.runs[0]
        with database.connect() as conn:
            database.dialect.begin(conn)
            _lock(conn, self, topic, number)
            base = _next_offset(conn, self, topic, number)
            _write_rows(conn, self, topic, number, base + 1, batch.contents.between(1, end))
            conn.commit()
        self._notifier.announce(batch.runs[0].topic.id)
        time.sleep(0.2)
        with database.connect() as conn:
            database.dialect.begin(conn)
            _write_rows(conn, self, topic, number, base, batch.contents.between(0, 1))
            conn.commit()
        return produce._results(batch, [base])

    def receive_with_holes(self: partition.AssignedPartition, arrival: FetchedRecords) -> None:
        offsets = arrival.offsets()
        if offsets and not self.prefetched and self.is_idle:
            self.next_offset = offsets[0]
        expected = self.read_position
        dense = [row for place, row in enumerate(arrival.rows) if offsets[place] == expected + place]
        receive(self, FetchedRecords(arrival.topic, arrival.partition, dense, moments_from_us=arrival.moments_from_us))

    _patch(ProducerCore, "_append", append)
    _patch(partition.AssignedPartition, "receive", receive_with_holes)


@_mutation("value-cut", "Sometimes a value is truncated on its way into the log.", "A3")
def _value_cut(chosen: random.Random) -> None:
    original = RecordBatch.of

    def of(messages: Sequence[Message]) -> RecordBatch:
        contents = original(messages)
        values = [value[:-1] if chosen.random() < _SELDOM else value for value in contents.values]
        return contents._replace(values=values)

    _patch(RecordBatch, "of", staticmethod(of))


@_mutation("sent-again", "Sometimes a message is sent again, as after a lost answer.", "A4")
def _sent_again(chosen: random.Random) -> None:
    original = ProducerCore._append

    def append(self: ProducerCore, batch: AppendBatch) -> list[ProducerResult]:
        if chosen.random() < _OFTEN:
            original(self, batch)
        return original(self, batch)

    _patch(ProducerCore, "_append", append)


@_mutation("coalesced-backwards", "Calls in one batch are sent in reverse order.", "A7")
def _coalesced_backwards(_chosen: random.Random) -> None:
    original = ProducerCore.append_batch

    def append_batch(self: ProducerCore, routed: Sequence[RoutedMessage]) -> list[ProducerResult]:
        return original(self, routed[::-1])[::-1]

    _patch(ProducerCore, "append_batch", append_batch)


@_mutation("batch-in-pieces", "A batch is written in two transactions.", "A8")
def _batch_in_pieces(_chosen: random.Random) -> None:
    original = ProducerCore._append_contents

    def append_contents(self: ProducerCore, contents: RecordBatch, partition: int | None) -> list[ProducerResult]:
        count = len(contents.values)
        if count == 1:
            return original(self, contents, partition)
        first = original(self, contents.between(0, count // 2), partition)
        time.sleep(0.02)
        return first + original(self, contents.between(count // 2, count), partition)

    _patch(ProducerCore, "_append_contents", append_contents)


@_mutation("published-after-rollback", "The messages of a transaction are published although it is rolled back.", "A2")
def _published_after_rollback(_chosen: random.Random) -> None:
    original = _Outbox._forget

    def forget(self: _Outbox, conn: Connection, *more: object) -> None:
        waiting = list(self._waiting)
        original(self, conn, *more)
        if waiting:
            database = waiting[0].producer.database
            batch = produce.make_batch([one.placed for one in waiting])
            later = threading.Timer(0.05, lambda: database.write(produce.append, batch))
            later.daemon = True
            later.start()

    _patch(_Outbox, "_forget", forget)


@_mutation("savepoint-ignored", "Rolling back a savepoint does not remove its messages.", "A2")
def _savepoint_ignored(_chosen: random.Random) -> None:
    _patch(_Outbox, "_rollback_savepoint", lambda *_: None)


@_mutation("delivered-early", "Delayed messages are due at once.", "B11")
def _delivered_early(_chosen: random.Random) -> None:
    original = staging.stage

    def delay(conn: Connection, dialect: Any, placed: Any, _due: object) -> Any:
        return original(conn, dialect, placed, 0.0)

    _patch(staging, "stage", delay)


@_mutation(
    "committed-before-handled",
    "The position is committed before the handler runs.",
    "B1",
    faults=("kill",),
    seconds=5.0,
)
def _committed_before_handled(_chosen: random.Random) -> None:
    original = ConsumerCore.deliver

    def hand_out(self: ConsumerCore, receiver: Any, at_most: int) -> list[ReceivedMessage]:
        messages = original(self, receiver, at_most)
        self.buffer.acknowledge(receiver, include_interrupted=True)
        self.coordinator.commit_due()
        return messages

    _patch(ConsumerCore, "deliver", hand_out)


@_mutation("handed-out-incompletely", "Sometimes a message is lost between the log and the application.", "B1")
def _handed_out_incompletely(chosen: random.Random) -> None:
    original = FetchBuffer.deliver

    def hand_out(self: FetchBuffer, receiver: Any, at_most: int) -> list[ReceivedMessage]:
        return [one for one in original(self, receiver, at_most) if chosen.random() >= _SELDOM]

    _patch(FetchBuffer, "deliver", hand_out)


@_mutation(
    "fence-ignored",
    "A member does not check whether it still owns a partition, and its commits are always accepted.",
    "B6 B4",
    consumers=2,
    faults=("pause",),
    fault_seconds=0.9,
    victims="lease",
    handling_seconds=1.2,
    seconds=7.0,
)
def _fence_ignored(_chosen: random.Random) -> None:
    def unfenced(
        conn: Connection,
        dialect: Any,
        group: Any,
        _member_id: int,
        finished: Any,
        *,
        updating_in_flight: bool = False,
        **_more: bool,
    ) -> list[Commit]:
        commits = [one for _, one in finished]
        offsets.insert_all(conn, dialect, group, commits, updating_in_flight=updating_in_flight)
        return commits

    original = Coordinator.ensure_assignment
    _patch(consume, "commit", unfenced)
    _patch(Coordinator, "ensure_assignment", lambda self: False if self.assigned else original(self))


@_mutation("failure-forgotten", "A message whose handler failed is not parked, but the position moves on.", "B1")
def _failure_forgotten(_chosen: random.Random) -> None:
    record, put = attempts.record, AttemptRecorder._update_parked_keys

    def record_nothing(conn: Connection, dialect: Any, seat: Any, position: Commit, outcome: Any) -> bool:
        if outcome.state == "waiting":
            return attempts._move(conn, dialect, seat, position)
        return record(conn, dialect, seat, position, outcome)

    def put_nothing(self: AttemptRecorder, attempt: Any, decision: FailureDecision) -> None:
        if decision.action is not FailureAction.PARK:
            put(self, attempt, decision)

    _patch(attempts, "record", record_nothing)
    _patch(AttemptRecorder, "_update_parked_keys", put_nothing)


@_mutation("groups-unprotected", "Retention deletes messages that a group has not read.", "B9", handling_seconds=1.0)
def _groups_unprotected(_chosen: random.Random) -> None:
    _patch(retention, "protected_from", lambda _retention, _standings, _expired, _start, end: end)


@_mutation("effects-apart", "A rolled-back transaction keeps its effects.", "B7", mode="transaction")
def _effects_apart(_chosen: random.Random) -> None:
    original = TransactionScope.roll_back

    def undo(self: TransactionScope) -> None:
        if not self.is_done and self.taken is not None and self._root is not None and self._root.is_active:
            with contextlib.suppress(Exception):
                self._root.commit()
        original(self)

    _patch(TransactionScope, "roll_back", undo)


@_mutation("moved-by-rollback", "A rolled-back transaction still moves the position.", "B7", mode="transaction")
def _moved_by_rollback(chosen: random.Random) -> None:
    original = TransactionScope.roll_back

    def undo(self: TransactionScope) -> None:
        is_lost = not self.is_done and self.taken is not None and chosen.random() < _OFTEN
        original(self)
        if is_lost and self.taken is not None:
            database = self._database
            with database.connect() as conn:
                database.dialect.begin(conn)
                to = Commit(self.taken.claim.partition_id, self.taken.end)
                offsets.insert_all(conn, database.dialect, self._group, [to])
                conn.commit()

    _patch(TransactionScope, "roll_back", undo)


def _lock(conn: Connection, producer: ProducerCore, topic: Topic, number: int) -> None:
    p = producer.database.dialect.tables.partition
    conn.execute(update(p).where(p.c.id == topic.partition_ids[number]).values(start_offset=p.c.start_offset))


def _next_offset(conn: Connection, producer: ProducerCore, topic: Topic, number: int) -> int:
    m = producer.database.dialect.tables.message
    newest = select(func.max(m.c.msg_offset)).where(m.c.partition_id == topic.partition_ids[number])
    found: int | None = conn.execute(newest).scalar()
    return 0 if found is None else found + 1


def _write_rows(
    conn: Connection, producer: ProducerCore, topic: Topic, number: int, base: int, contents: RecordBatch
) -> None:
    dialect = producer.database.dialect
    new = dialect.insert_or_update(dialect.tables.message, ["partition_id", "msg_offset"], ["key", "value"])
    ids = topic.partition_ids[number]
    conn.execute(
        new,
        [
            {"partition_id": ids, "msg_offset": base + place, "key": key, "value": value}
            for place, (key, value) in enumerate(zip(contents.keys, contents.values, strict=True))
        ],
    )
