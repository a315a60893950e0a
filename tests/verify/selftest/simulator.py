"""Correct histories, made at random: clients use a queue in memory that keeps every promise, and are killed and paused.

Clients take turns in the order of their own clocks, so their calls overlap as those of processes do.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

from sqlmq.verify.history import Placed, Sent
from tests.verify.selftest.simulated_members import lease_member, run_member, transaction_member
from tests.verify.selftest.simulated_queue import COPIES, ORDERS, TRIMMED, History, SimulatedQueue, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tests.verify.selftest.simulated_queue import Steps


class Simulation:
    """Clients of a simulated queue: producers, and groups that read by lease, in transactions and with a handler."""

    def __init__(self, seed: int, *, sends: int = 150, partitions: int = 3, faults: bool = True) -> None:
        self.queue = SimulatedQueue(seed, sends=sends, partitions=partitions, faults=faults)
        self._turn = itertools.count()
        self._waiting: list[tuple[float, int, Steps]] = []

    def start(self, steps: Steps, after: float = 0.0) -> None:
        """Schedule a client."""
        heapq.heappush(self._waiting, (self.queue.now + after, next(self._turn), steps))

    def run(self) -> History:
        """Run all clients and return what they recorded."""
        self._plan()
        groups: list[tuple[str, str, Callable[[SimulatedQueue, str, str, str], Steps]]] = [
            ("billing", ORDERS, lease_member),
            ("totals", ORDERS, transaction_member),
            ("mails", ORDERS, run_member),
            ("clicks", TRIMMED, lease_member),
        ]
        for producer in range(3):
            self.queue.producers_left += 1
            self.start(self._producer(f"producer-{producer}"), 0.01 * producer)
        for group, topic, member in groups:
            for number in range(2):
                self.start(member(self.queue, f"{group}-{number}", group, topic), 0.05 * number)
            self.start(self._drain(group, topic))
        self.start(self._observer([(group, topic) for group, topic, _ in groups]), 0.1)
        self.start(self._scheduler())
        while self._waiting:
            self.queue.now, _, steps = heapq.heappop(self._waiting)
            pause = next(steps, None)
            if pause is not None:
                heapq.heappush(self._waiting, (self.queue.now + pause, next(self._turn), steps))
        return History(self.queue.lines, self.queue.rows())

    def _plan(self) -> None:
        topics = {
            topic: {"partitions": self.queue.partitions, "retention": topic == TRIMMED}
            for topic in (ORDERS, TRIMMED, COPIES)
        }
        bounds = {"takeover": 8.0, "recovery": 5.0, "drain": 600.0, "starvation": 8.0, "call": 10.0}
        facts = {"run": "r1", "topics": topics, "bounds": bounds, "least": {"acks": 20}}
        self.queue.write("parent", "note", "plan", **facts)
        for group, topic, mode in (
            ("billing", ORDERS, "lease"),
            ("totals", ORDERS, "transaction"),
            ("mails", ORDERS, "run"),
            ("clicks", TRIMMED, "lease"),
        ):
            most = {"max_attempts": 3} if mode == "run" else {}
            self.queue.write("parent", "note", "group", group=group, topic=topic, mode=mode, ack="auto", **most)

    def _producer(self, name: str) -> Steps:
        for life in itertools.count():
            process = f"{name}.{life}"
            while self.queue.sends_left > 0:
                self.queue.sends_left -= 1
                how = self.queue.random.random()
                steps = (
                    self._send(process)
                    if how < 0.7
                    else self._transaction(process)
                    if how < 0.9
                    else self._delay(process)
                )
                if (yield from steps):
                    break
                yield self.queue.random.uniform(0.0, 0.05)
            else:
                self.queue.producers_left -= 1
                return
            yield self.queue.random.uniform(0.05, 0.5)

    def _send(self, process: str) -> Generator[float, None, bool]:
        """Call produce_many; return whether the process was killed."""
        topic = self.queue.random.choice((ORDERS, ORDERS, TRIMMED))
        messages = [
            self.queue.new_message(process, key=self._key()) for _ in range(self.queue.random.choice((1, 1, 5)))
        ]
        of = self.queue.write(process, "invoke", "send", topic=topic, messages=messages)
        yield self.queue.random.uniform(0.001, 0.02)
        if self.queue.chance(0.05):
            self.queue.write(process, "fail", "send", of=of, err="DatabaseBusyError")
            return False
        if self.queue.is_killed(process):
            return True
        placed = [self.queue.append(topic, sent) for sent in messages]
        yield self.queue.random.uniform(0.001, 0.02)
        if self.queue.is_killed(process):
            return True
        if self.queue.chance(0.03):
            self.queue.write(process, "info", "send", of=of, err="OutcomeUnknownError")
        else:
            self.queue.write(process, "ok", "send", of=of, placed=placed)
        return False

    def _transaction(self, process: str) -> Generator[float, None, bool]:
        """Execute a transaction with rows of the application and sometimes a savepoint that is rolled back."""
        messages = [
            self.queue.new_message(process, key=self._key(), topic=topic) for topic in (ORDERS, TRIMMED, ORDERS)
        ]
        undone = [messages[-1].m] if self.queue.chance(0.3) else []
        effects = [f"{messages[0].m}/order"]
        is_aborted = self.queue.chance(0.2)
        of = self.queue.write(
            process, "invoke", "txn", messages=messages, effects=effects, undone=undone, abort=is_aborted
        )
        yield self.queue.random.uniform(0.001, 0.02)
        if is_aborted:
            self.queue.write(process, "fail", "txn", of=of, err="Abort")
            return False
        if self.queue.is_killed(process, 0.03):
            return True
        for sent in messages:
            if sent.m not in undone:
                self.queue.append(sent.topic or "", sent)
        self.queue.effects[None, effects[0]] += 1
        yield self.queue.random.uniform(0.001, 0.02)
        if self.queue.is_killed(process, 0.03):
            return True
        self.queue.write(process, "ok", "txn", of=of)
        return False

    def _delay(self, process: str) -> Generator[float, None, bool]:
        sent = self.queue.new_message(process, due=self.queue.database_us() + self.queue.random.randrange(1_000_000))
        of = self.queue.write(process, "invoke", "send", topic=ORDERS, messages=[sent])
        yield 0.005
        self.queue.staged.append((sent.due or 0, ORDERS, Stored(sent.m, sent.h, None, 0)))
        yield 0.005
        self.queue.write(process, "ok", "send", of=of, placed=[Placed(sent.m)])
        if self.queue.chance(0.2):
            yield from self._cancel(process, sent)
        return False

    def _cancel(self, process: str, sent: Sent) -> Steps:
        of = self.queue.write(process, "invoke", "cancel", topic=ORDERS, message=sent.m)
        yield 0.005
        kept = [one for one in self.queue.staged if one[2].m != sent.m]
        is_cancelled, self.queue.staged = len(kept) < len(self.queue.staged), kept
        yield 0.005
        self.queue.write(process, "ok", "cancel", of=of, cancelled=is_cancelled)

    def _scheduler(self) -> Steps:
        """Append delayed messages when they are due."""
        while not self.queue.is_over():
            for one in [one for one in self.queue.staged if one[0] <= self.queue.database_us()]:
                self.queue.staged.remove(one)
                self.queue.append(one[1], Sent(one[2].m, one[2].h))
            yield 0.05

    def _observer(self, groups: list[tuple[str, str]]) -> Steps:
        """Read ends and positions, and apply retention to what all groups have read."""
        while not self.queue.is_over():
            topic = self.queue.random.choice((ORDERS, TRIMMED))
            of = self.queue.write("observer", "invoke", "snapshot", topic=topic)
            yield 0.003
            places = [(partition, (topic, partition)) for partition in range(self.queue.partitions)]
            ends = {str(partition): len(self.queue.log[place]) for partition, place in places}
            starts = {str(partition): self.queue.starts[place] for partition, place in places}
            yield 0.003
            self.queue.write("observer", "ok", "snapshot", of=of, ends=ends, starts=starts)
            group, topic = self.queue.random.choice(groups)
            of = self.queue.write("observer", "invoke", "positions", group=group, topic=topic)
            yield 0.003
            positions = {
                str(partition): self.queue.states[group, topic, partition].position
                for partition in range(self.queue.partitions)
            }
            yield 0.003
            self.queue.write("observer", "ok", "positions", of=of, positions=positions)
            yield from self._retain()
            yield 0.1

    def _retain(self) -> Steps:
        of = self.queue.write("observer", "invoke", "retain", topic=TRIMMED)
        yield 0.003
        for partition in range(self.queue.partitions):
            unread = self.queue.states["clicks", TRIMMED, partition].position
            place = (TRIMMED, partition)
            self.queue.starts[place] = max(self.queue.starts[place], min(unread, len(self.queue.log[place]) - 10))
        yield 0.003
        starts = {str(partition): self.queue.starts[TRIMMED, partition] for partition in range(self.queue.partitions)}
        self.queue.write("observer", "ok", "retain", of=of, starts=starts)

    def _drain(self, group: str, topic: str) -> Steps:
        while not self.queue.is_over():
            yield 0.5
        of = self.queue.write("parent", "invoke", "drain", group=group, topic=topic)
        while not self.queue.is_drained(group, topic):
            yield 0.1
        self.queue.write("parent", "ok", "drain", of=of)

    def _key(self) -> str | None:
        return f"k{self.queue.random.randrange(12)}" if self.queue.chance(0.8) else None
