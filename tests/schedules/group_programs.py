"""Programs about groups: members that read, commit, join, vanish and are moved, beside each other and beside producers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sqlmq import FencedError, ReceivedMessage, Retry
from tests.support.queue_state import place_of
from tests.support.stepped_worker import SteppedWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmq import Consumer
    from tests.schedules.scene import Scene

ONCE = Retry(max_attempts=1)


def consume_rebalance_produce(scene: Scene) -> None:
    """A member reads two partitions; another one joins and is handed one of them; messages come to both meanwhile."""
    scene.create(2)
    for partition in (0, 1):
        scene.put(partition, b"old")
    first = scene.consumer(0)
    scene.poll(first, 1)
    producer = scene.producer(2)

    def read() -> None:
        scene.poll(first, 1)
        scene.poll(first, 1)

    def join() -> None:
        second = scene.consumer(1)
        scene.poll(second)
        scene.poll(second)

    def send() -> None:
        for partition in (0, 1):
            scene.put(partition, b"new", producer)

    scene.session(read)
    scene.session(join)
    scene.session(send)


def join_join_leave(scene: Scene) -> None:
    """Two members join and share out what the third one leaves behind."""
    scene.create(2)
    for partition in (0, 1):
        scene.put(partition, b"old")
    leaving = scene.consumer(2)
    scene.poll(leaving, 1)

    def join(number: int) -> Callable[[], object]:
        def joins() -> None:
            consumer = scene.consumer(number)
            scene.poll(consumer)
            scene.poll(consumer)

        return joins

    def leave() -> None:
        scene.poll(leaving, 1)
        scene.leave(leaving)

    scene.session(join(0))
    scene.session(join(1))
    scene.session(leave)


def zombie_takeover_produce(scene: Scene) -> None:
    """A member whose lease is over commits after all, while another one takes its partition over."""
    scene.create()
    scene.fill(3)
    zombie = scene.consumer(0)
    scene.poll(zombie, 2)
    scene.finish(zombie)
    heir = scene.consumer(1)
    scene.forget(zombie)
    producer = scene.producer(2)
    given: list[int] = []
    is_committed: list[bool] = []

    def commit() -> None:
        zombie.commit()
        is_committed.append(True)

    def take_over() -> None:
        given.extend(place_of(message)[1] for _ in range(2) for message in scene.poll(heir))

    def all_or_nothing_counts() -> None:
        # The partition may have been locked whenever the heir looked.
        assert given[:1] in ([], [2 if is_committed else 0])

    scene.session(commit, may_raise=(FencedError,))
    scene.session(take_over)
    scene.session(lambda: scene.send(producer, b"new"))
    scene.checks.append(all_or_nothing_counts)


def transaction_transaction_produce(scene: Scene) -> None:
    """Two consumers take from one partition in transactions, one of which fails at first; a producer adds to it."""
    scene.create()
    scene.fill(2)
    first, second, producer = scene.consumer(0), scene.consumer(1), scene.producer(2)

    def take(consumer: Consumer, *, fails: bool = False) -> None:
        with contextlib.suppress(InterruptedError), consumer.transaction(max_messages=1, timeout=0) as tx:
            for message in tx:
                scene.affect(tx.session, message)
            if fails:
                raise InterruptedError
        if not fails:
            scene.note_delivered(consumer.group, tx)
            for message in tx:
                scene.note_done(consumer.group, message)

    def fail_and_go_on() -> None:
        take(first, fails=True)
        take(first)

    def once_each() -> None:
        done_to = scene.positions("billing")[0]
        assert sorted(scene.effects()) == [f"0@{offset}" for offset in range(done_to)]

    scene.session(fail_and_go_on)
    scene.session(lambda: take(second))
    scene.session(lambda: scene.send(producer, b"new"))
    scene.checks.append(once_each)


def commit_reset_consume(scene: Scene) -> None:
    """A member commits what it has read while its group is moved back, and another one reads on."""
    scene.create()
    scene.fill(4)
    first = scene.consumer(0)
    scene.poll(first, 3)
    scene.finish(first)
    second = scene.consumer(2)

    def reset() -> None:
        # It comes again from here on.
        scene.mq(1).admin.reset_group(scene.topic, "billing", {0: 1}, force=True)

    def where_it_was_moved_to() -> None:
        assert scene.positions("billing")[0] == 1

    scene.session(first.commit, may_raise=(FencedError,))
    scene.session(reset)
    scene.session(lambda: scene.note_delivered("billing", second.poll(1, timeout=0)))
    scene.checks.append(where_it_was_moved_to)


def seek_commit_produce(scene: Scene) -> None:
    """A member whose partition was taken over moves its group; the one who has it commits."""
    scene.create()
    scene.fill(4)
    old = scene.consumer(0)
    scene.poll(old, 2)
    new = scene.consumer(1)
    scene.forget(old)
    producer = scene.producer(2)

    def seek() -> None:
        old._core.coordinator.seek(0, 3)

    def read() -> None:
        scene.poll(new, 1)
        scene.commit(new)

    def nowhere_else() -> None:
        # Who lost the partition before has moved nothing.
        assert scene.positions("billing")[0] in (0, 1, 3, 4)

    scene.groups["billing"].may_jump = True
    scene.session(seek, may_raise=(FencedError,))
    scene.session(read)
    scene.session(lambda: scene.send(producer, b"new"))
    scene.checks.append(nowhere_else)


def decide_decide_handle(scene: Scene) -> None:
    """A dead letter is retried and discarded while the owner of its partition handles what there is."""
    scene.create()
    for number in range(3):
        scene.put(0, b"%d" % number, key=b"k")
    handled: list[int] = []

    def fails(message: ReceivedMessage) -> None:
        raise ArithmeticError(message.value)

    def handles(message: ReceivedMessage) -> None:
        handled.append(place_of(message)[1])

    first = scene.mq(2).consumer(scene.topic, "billing")
    SteppedWorker(first, fails, ONCE, "dead").work()
    first.close()
    parked = [scene.mq(number).admin.parked(scene.topic, "billing") for number in range(2)]
    owner = scene.mq(2).consumer(scene.topic, "billing")
    hands = SteppedWorker(owner, handles, ONCE, "dead")
    retried, discarded = [0], [0]

    def retry() -> None:
        retried[0] = parked[0].retry(everything=True)

    def discard() -> None:
        discarded[0] = parked[1].discard(everything=True)

    def handle() -> None:
        for _ in range(3):
            hands.work()
        owner.close()

    def each_once() -> None:
        with scene.stage.own.consumer(scene.topic, "billing") as last:
            left = SteppedWorker(last, handles, ONCE, "dead")
            while left.work():
                pass
        assert [offset for offset in handled if offset] == [1, 2]
        assert handled.count(0) <= 1
        if not discarded[0]:
            assert handled.count(0) == retried[0]
        remaining = scene.stage.own.admin.parked(scene.topic, "billing").list()
        assert bool(remaining) == (not handled.count(0) and not discarded[0])
        assert scene.positions("billing") == [3]

    scene.session(retry)
    scene.session(discard)
    scene.session(handle)
    scene.checks.append(each_once)
