"""Every operation of Consumer, Transaction and Parked. What comes of a group is told by going on until it is done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlmq import Message, ReceivedMessage, Retry
from tests.faults.world import FEED, PARTITIONS, Closing, Deadline, Scene, World
from tests.support.blocking import acknowledge
from tests.support.waiting import until

if TYPE_CHECKING:
    from sqlmq import Consumer, Transaction

DONE = [FEED // PARTITIONS] * PARTITIONS
SECONDS = 10.0
INSERT = text("INSERT INTO effect VALUES (:name)")


class Consuming(Scene):
    """A group of its own on `feed`. Nothing may come twice, for its only member never dies, and nothing be passed over."""

    ack: Any = "auto"
    comes_again = False
    """Whether a message may come twice: the one at which a loop was left whose commit failed."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.group = world.name("group")
        self.consumer: Consumer = self.mq.consumer("feed", self.group, ack=self.ack)
        self.got: list[ReceivedMessage] = []

    def check(self, sure: int, perhaps: int) -> None:
        del sure, perhaps
        self.check_order(self.got)
        finished = Counter(message.partition for message in self.got)
        for number, position in enumerate(self.world.state.positions("feed", self.group)):
            assert position <= finished[number], f"position {position} of {number}, beyond what was received"

    def check_order(self, got: list[ReceivedMessage]) -> None:
        for number in range(PARTITIONS):
            offsets = [message.offset for message in got if message.partition == number]
            if self.comes_again:
                offsets = list(dict.fromkeys(offsets))
            assert offsets == list(range(len(offsets))), f"partition {number} came as {offsets}"

    def close(self) -> None:
        """What is left comes, all of it, and the group is done."""
        until(self._has_drained, f"all {FEED} messages", seconds=SECONDS)
        self.check_order(self.got)
        self.consumer.commit()
        assert self.world.state.positions("feed", self.group) == DONE
        self.consumer.close()

    def _has_drained(self) -> bool:
        self.got += self.consumer.poll(timeout=0)
        return len({(message.partition, message.offset) for message in self.got}) >= FEED


class Poll(Consuming):
    def call(self) -> None:
        self.got += self.consumer.poll(2, timeout=SECONDS if not self.got else 0)


class PollOnce(Consuming):
    """Without time to wait for the database."""

    def call(self) -> None:
        self.got += self.consumer.poll(2, timeout=0)


class PollAndCommit(Consuming):
    def call(self) -> None:
        self.got += self.consumer.poll(2, timeout=SECONDS)
        self.consumer.commit()


class Consume(Consuming):
    def call(self) -> None:
        self.got.append(self.consumer.consume(timeout=SECONDS))
        self.got.append(self.consumer.consume(timeout=SECONDS))


class Iterate(Consuming):
    comes_again = True

    def call(self) -> None:
        wanted = len(self.got) + 2
        for message in self.consumer:
            self.got.append(message)
            if len(self.got) == wanted:
                self.consumer.commit()
                break


class Commit(Consuming):
    """What was received is finished, and on disk when the call returns."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        until(self._has_drained, "all messages", seconds=SECONDS)

    def call(self) -> None:
        self.consumer.commit()

    def check(self, sure: int, perhaps: int) -> None:
        assert self.world.state.positions("feed", self.group) == DONE or not sure
        super().check(sure, perhaps)


class AckBefore(Consuming):
    """At most once: what is handed out was committed before, and what an error has cost comes no more."""

    ack = "on_delivery"

    def call(self) -> None:
        self.got += self.consumer.poll(2, timeout=SECONDS)

    def check(self, sure: int, perhaps: int) -> None:
        del sure, perhaps
        places = [(message.partition, message.offset) for message in self.got]
        assert len(set(places)) == len(places), "handed out twice"
        positions = self.world.state.positions("feed", self.group)
        for message in self.got:
            assert message.offset < positions[message.partition], "handed out before it was committed"

    def close(self) -> None:
        self.consumer.close()


class Seek(Consuming):
    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        until(self._owns_all, "both partitions", seconds=SECONDS)

    def _owns_all(self) -> bool:
        self.consumer.poll(1, timeout=0)
        return len(self.consumer.partitions) == PARTITIONS

    def call(self) -> None:
        # A seek whose outcome is unknown has the next look find out what is owned.
        until(self._owns_all, "both partitions", seconds=SECONDS)
        self.consumer.seek(0, "latest")

    def check(self, sure: int, perhaps: int) -> None:
        position = self.world.state.positions("feed", self.group)[0]
        assert position in ((DONE[0],) if sure else (0, 1, DONE[0]) if perhaps else (0, 1))

    def close(self) -> None:
        rest = []
        while messages := self.consumer.poll(timeout=0.05):
            rest += messages
        assert {message.partition for message in rest} <= {1}
        self.consumer.close()


class Close(Closing, Consuming):
    """Commits what is finished, and leaves; if it can't, its lease ends."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        until(self._has_drained, "all messages", seconds=SECONDS)
        acknowledge(self.consumer)

    def close_it(self) -> None:
        self.consumer.close()

    def check(self, sure: int, perhaps: int) -> None:
        del perhaps
        positions = self.world.state.positions("feed", self.group)
        members = self.world.state.members(self.group)
        if self.is_interrupted:
            assert members == 0 or not sure
            assert positions in (DONE, [0] * PARTITIONS)
        elif sure and self.error is None:
            assert (positions, members) == (DONE, 0)
        else:
            assert (positions, members) in ((DONE, 0), ([0] * PARTITIONS, 1)), "half closed"


class Join(Scene):
    """A new consumer of a new group."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.group = world.name("joined")

    def call(self) -> None:
        self.mq.consumer("feed", self.group).close()

    def check(self, sure: int, perhaps: int) -> None:
        found = self.world.state.count(
            "SELECT count(*) FROM sqlmq_claim c JOIN sqlmq_group g ON g.id = c.group_id WHERE g.name = :name",
            name=self.group,
        )
        assert found in ((PARTITIONS,) if sure else (0, PARTITIONS)), "half made"
        del perhaps


# --- Transactions ---


class InTransaction(Consuming):
    """The effect of each message is there once its partition's position is behind it, and exactly once.

    What the application's statements inside the block raise is SQLAlchemy's.
    """

    may_raise: ClassVar[tuple[type[BaseException], ...]] = (DBAPIError,)

    def session(self) -> Any:
        return None

    def call(self) -> None:
        with self.consumer.transaction(max_messages=2, timeout=SECONDS, session=self.session()) as tx:
            self.have(tx)

    def have(self, tx: Transaction) -> None:
        for message in tx:
            tx.session.execute(INSERT, {"name": self.effect(message.partition, message.offset)})

    def effect(self, partition: int | None, offset: int | None) -> str:
        return f"{self.group}/{partition}@{offset}"

    def check(self, sure: int, perhaps: int) -> None:
        done = 0
        for number, position in enumerate(self.world.state.positions("feed", self.group)):
            for offset in range(FEED // PARTITIONS):
                found = self.world.effects(self.effect(number, offset))
                assert found == (offset < position), f"{found} effects of {number}@{offset}, position {position}"
                done += found
        assert done >= 2 * sure - PARTITIONS
        del perhaps

    def close(self) -> None:
        while True:
            with self.consumer.transaction(max_messages=FEED, timeout=0) as tx:
                self.have(tx)
                if not tx.messages:
                    break
        self.check(0, 0)
        assert self.world.state.positions("feed", self.group) == DONE
        self.consumer.close()


class InTransactionOfSession(InTransaction):
    """In a session of the application's."""

    def session(self) -> Any:
        from sqlalchemy.orm import Session

        return lambda: Session(self.world.engine)


class ProducingInTransaction(InTransaction):
    """What is produced in the block commits with it."""

    def have(self, tx: Transaction) -> None:
        super().have(tx)
        for message in tx:
            value = self.effect(message.partition, message.offset).encode()
            self.world.producer.produce(Message(value), session=tx.session)

    def check(self, sure: int, perhaps: int) -> None:
        super().check(sure, perhaps)
        for number, position in enumerate(self.world.state.positions("feed", self.group)):
            for offset in range(FEED // PARTITIONS):
                value = self.effect(number, offset).encode()
                assert self.world.state.count_in_log("orders", value) == (offset < position)


# --- Run ---


class Running(InTransaction):
    """A run that fails is followed by others, on other consumers; then all is handled, and what fails put aside."""

    may_raise: ClassVar[tuple[type[BaseException], ...]] = ()
    policy: Any = None
    transaction = False
    bad = b"never"
    good = frozenset(b"%d" % number for number in range(FEED))
    options: dict[str, Any] = {}  # noqa: RUF012 - read only

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.handled: Counter[bytes] = Counter()
        self.is_used = False

    def call(self) -> None:
        if not self.is_used:
            self.is_used = True
            self.run()
            return
        deadline = Deadline()
        while not self.is_done():
            deadline.check()
            self.world.state.expire_leases(self.group)
            self.consumer = self.mq.consumer("feed", self.group)
            self.run()

    def run(self) -> None:
        self.consumer.run(
            self.handle_in_session if self.transaction else self.handle,
            transaction=self.transaction,
            retry=Retry(max_attempts=2, backoff_seconds=0.001),
            on_failure=self.policy,
            idle_seconds=0.3,
            handle_signals=False,
            **self.options,
        )

    def handle(self, given: ReceivedMessage | list[ReceivedMessage]) -> None:
        for message in given if isinstance(given, list) else [given]:
            self.handled[message.value] += 1
            if self.good <= set(self.handled) and (self.bad == b"never" or self.handled[self.bad] > 1):
                self.consumer.stop()
            if message.value == self.bad:
                raise ArithmeticError(self.bad)

    def handle_in_session(self, given: Any, session: Any) -> None:
        self.handle(given)
        for message in given if isinstance(given, list) else [given]:
            session.execute(INSERT, {"name": self.effect(message.partition, message.offset)})

    def check(self, sure: int, perhaps: int) -> None:
        if self.transaction:
            self.check_effects(self.world.state.positions("feed", self.group), set(self.world.state.parked(self.group)))
        del sure, perhaps

    def is_done(self) -> bool:
        """Whether each message has been handled, or put aside as it should."""
        positions, aside = self.world.state.positions("feed", self.group), self.world.state.parked(self.group)
        return (positions, list(aside.values())) == self.end and self.good <= set(self.handled)

    @property
    def end(self) -> tuple[list[int], list[str]]:
        """Where the group ends, and the states of what it has set aside."""
        return DONE, []

    def check_effects(self, positions: list[int], aside: set[tuple[int, int]]) -> None:
        for number, position in enumerate(positions):
            for offset in range(FEED // PARTITIONS):
                is_bad = b"%d" % (offset * PARTITIONS + number) == self.bad
                found = self.world.effects(self.effect(number, offset))
                is_done = offset < position and not is_bad and (number, offset) not in aside
                assert found == is_done, f"{found} effects of {number}@{offset}, position {position}, aside {aside}"

    def close(self) -> None:
        if not self.consumer.closed:
            self.consumer.close()


class RunInTransactions(Running):
    transaction = True


class RunInBatches(Running):
    options = {"batch_size": 2}  # noqa: RUF012 - read only


class RunConcurrently(Running):
    options = {"concurrency": 2}  # noqa: RUF012 - read only


class Parking(Running):
    policy = "park"
    bad = b"2"
    good = frozenset({b"0", b"1", b"3", b"4", b"5"})

    @property
    def end(self) -> tuple[list[int], list[str]]:
        return DONE, ["dead"]


class ParkingInTransactions(Parking):
    transaction = True


class Burying(Parking):
    policy = "dead"


class Skipping(Parking):
    policy = "skip"

    @property
    def end(self) -> tuple[list[int], list[str]]:
        return DONE, []


class Stopping(Parking):
    """The partition stands still at the message, and is neither passed over nor moved past."""

    policy = "stop"
    good = frozenset({b"0", b"1", b"3", b"5"})

    @property
    def end(self) -> tuple[list[int], list[str]]:
        return [1, DONE[1]], ["stopped"]


# --- Parked ---


class Deciding(Scene):
    """A group with a dead letter, at offset 1 of partition 0."""

    is_once = True

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.group = world.name("deciding")
        consumer = self.mq.consumer("feed", self.group)
        consumer.commit()
        self.world.state.execute(
            "INSERT INTO sqlmq_parked (group_id, partition_id, msg_offset, key, state, attempts, due_at, parked_at)"
            " SELECT g.id, p.id, 1, NULL, 'dead', 5, g.created_at, g.created_at FROM sqlmq_group g"
            " JOIN sqlmq_partition p ON p.topic_id = g.topic_id AND p.number = 0 WHERE g.name = :name",
            name=self.group,
        )
        consumer.close()
        self.parked = self.mq.admin.parked("feed", self.group)

    @property
    def state(self) -> str | None:
        return self.world.state.parked(self.group).get((0, 1))

    def check(self, sure: int, perhaps: int) -> None:
        assert self.state == "dead"
        del sure, perhaps


class ListParked(Deciding):
    def call(self) -> None:
        assert len(self.parked.list()) == 1


class GetParked(Deciding):
    def call(self) -> None:
        found = self.parked.get(0, 1).message
        assert found is not None
        assert found.value == b"2"


class ListBlockedKeys(Deciding):
    def call(self) -> None:
        self.parked.blocked_keys()


class RetryParked(Deciding):
    def call(self) -> None:
        self.parked.retry(0, 1)

    def check(self, sure: int, perhaps: int) -> None:
        assert self.state in (("waiting",) if sure else ("waiting", "dead") if perhaps else ("dead",))


class DiscardParked(Deciding):
    def call(self) -> None:
        self.parked.discard(0, 1)

    def check(self, sure: int, perhaps: int) -> None:
        assert self.state in ((None,) if sure else (None, "dead") if perhaps else ("dead",))


class MoveParked(Deciding):
    """The copy is there when the original is gone, and only then."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.topic = world.name("moved")
        self.mq.create_topic(self.topic, 1)

    def call(self) -> None:
        self.parked.move_to(self.topic, 0, 1)

    def check(self, sure: int, perhaps: int) -> None:
        copies = self.world.state.count_in_log(self.topic, b"2")
        assert (self.state, copies) in (
            ((None, 1),) if sure else ((None, 1), ("dead", 0)) if perhaps else (("dead", 0),)
        )


CONSUMING: tuple[type[Scene], ...] = (
    Join,
    Poll,
    PollOnce,
    PollAndCommit,
    Consume,
    Iterate,
    Commit,
    AckBefore,
    Seek,
    Close,
)
TRANSACTIONS: tuple[type[Scene], ...] = (InTransaction, InTransactionOfSession, ProducingInTransaction)
RUNNING: tuple[type[Scene], ...] = (
    Running,
    RunInTransactions,
    RunInBatches,
    RunConcurrently,
    Parking,
    ParkingInTransactions,
    Burying,
    Skipping,
    Stopping,
)
DECIDING: tuple[type[Scene], ...] = (ListParked, GetParked, ListBlockedKeys, RetryParked, DiscardParked, MoveParked)
