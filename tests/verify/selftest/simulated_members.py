"""Members of groups of the simulated queue: by lease, in transactions, and with a handler that may fail."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.verify.selftest.simulated_queue import GroupState, SimulatedQueue, Steps

LEASE_SECONDS = 2.0
_MAX_ATTEMPTS = 3


def lease_member(queue: SimulatedQueue, name: str, group: str, topic: str) -> Steps:
    """Poll, handle and commit, by the next poll or explicitly."""
    for life in itertools.count():
        process = f"{name}.{life}"
        while True:
            if queue.is_drained(group, topic):
                return
            if (yield from _lease_round(queue, process, group, topic)):
                break
        yield queue.random.uniform(0.1, 0.5)


def _lease_round(queue: SimulatedQueue, process: str, group: str, topic: str) -> Generator[float, None, bool]:
    """Claim, poll, handle and commit; return whether the process was killed."""
    _claim(queue, process, group, topic)
    held = {number: state.epoch for number, state in _owned(queue, process, group, topic)}
    of = queue.write(process, "invoke", "poll", group=group, topic=topic, owned=list(held))
    yield queue.random.uniform(0.001, 0.01)
    taken: list[tuple[int, int]] = []
    for number, state in _owned(queue, process, group, topic):
        end = min(len(queue.log[topic, number]), state.position + queue.random.randint(1, 6))
        taken += [(number, offset) for offset in range(state.position, end)]
    yield queue.random.uniform(0.001, 0.01)
    if queue.is_killed(process, 0.02):
        return _lose(queue, process, group, topic)
    owned = [number for number, _ in _owned(queue, process, group, topic)]
    delivered = [queue.delivered(topic, number, offset) for number, offset in taken]
    queue.write(process, "ok", "poll", of=of, delivered=delivered, owned=owned)
    if not taken:
        yield 0.05
        return False
    yield queue.random.uniform(0.001, 0.02)
    if queue.is_killed(process, 0.02):
        return _lose(queue, process, group, topic)
    if queue.faults and queue.sends_left > 0 and queue.chance(0.03):
        number = queue.begin_pause(process)
        _lose(queue, process, group, topic)
        yield LEASE_SECONDS * 1.5
        queue.end_pause(process, number)
        for partition in {partition for partition, _ in taken}:
            queue.write(process, "note", "fenced", group=group, topic=topic, partition=partition)
    for partition in sorted({partition for partition, _ in taken}):
        offsets = [offset for number, offset in taken if number == partition]
        queue.write(process, "note", "done", group=group, topic=topic, partition=partition, offsets=offsets)
    if queue.is_killed(process, 0.02):
        return _lose(queue, process, group, topic)
    yield from _commit(queue, process, group, topic, taken, held)
    return False


def _commit(
    queue: SimulatedQueue, process: str, group: str, topic: str, taken: list[tuple[int, int]], held: dict[int, int]
) -> Steps:
    is_explicit = queue.chance(0.3)
    of = queue.write(process, "invoke", "commit", group=group, topic=topic) if is_explicit else 0
    yield 0.002
    written: dict[str, int] = {}
    is_fenced = False
    for partition, offset in taken:
        state = queue.states[group, topic, partition]
        if state.owner == process and state.epoch == held[partition]:
            state.position = max(state.position, offset + 1)
            written[str(partition)] = state.position
        else:
            is_fenced = True
    yield 0.002
    if is_explicit and is_fenced:
        queue.write(process, "fail", "commit", of=of, err="FencedError")
    elif is_explicit:
        queue.write(process, "ok", "commit", of=of, positions=written)


def _claim(queue: SimulatedQueue, process: str, group: str, topic: str) -> None:
    """Take what is free, up to a fair share, and what has been free for long."""
    mine = len(list(_owned(queue, process, group, topic)))
    for number in range(queue.partitions):
        state = queue.states[group, topic, number]
        if state.owner is None and queue.now >= state.free_at and (mine < 2 or queue.now >= state.free_at + 1):
            state.owner, state.epoch, mine = process, state.epoch + 1, mine + 1
            facts = {"group": group, "topic": topic, "partition": number, "epoch": state.epoch}
            queue.write(process, "note", "assigned", **facts)


def _owned(queue: SimulatedQueue, process: str, group: str, topic: str) -> list[tuple[int, GroupState]]:
    states = [(number, queue.states[group, topic, number]) for number in range(queue.partitions)]
    return [(number, state) for number, state in states if state.owner == process]


def _lose(queue: SimulatedQueue, process: str, group: str, topic: str) -> bool:
    """What *process* owns is free when its lease is over."""
    for _, state in _owned(queue, process, group, topic):
        state.owner, state.free_at = None, queue.now + LEASE_SECONDS / 2
    return True


def transaction_member(queue: SimulatedQueue, name: str, group: str, topic: str) -> Steps:
    """Takes messages of one partition, with a lock, writes effects and copies, and commits all of it with the position."""
    for life in itertools.count():
        process = f"{name}.{life}"
        while True:
            if queue.is_drained(group, topic):
                return
            if (yield from _transaction(queue, process, group, topic)):
                break
        yield queue.random.uniform(0.1, 0.5)


def _transaction(queue: SimulatedQueue, process: str, group: str, topic: str) -> Generator[float, None, bool]:
    began = 1_000_000_000_000 + int(queue.now * 1e9)
    yield 0.002
    states = [(number, queue.states[group, topic, number]) for number in range(queue.partitions)]
    ready = [(n, state) for n, state in states if state.owner is None and state.position < len(queue.log[topic, n])]
    if not ready:
        yield 0.02
        return False
    number, state = queue.random.choice(ready)
    state.owner = process
    end = min(len(queue.log[topic, number]), state.position + queue.random.randint(1, 5))
    delivered = [queue.delivered(topic, number, offset) for offset in range(state.position, end)]
    yield 0.002
    copies = [queue.new_message(process, key=one.key, topic="copies") for one in delivered[:2]]
    effects = [one.m for one in delivered if one.m is not None]
    is_aborted = queue.chance(0.15)
    about = {"group": group, "topic": topic, "began": began, "delivered": delivered}
    of = queue.write(process, "invoke", "txn", **about, messages=copies, effects=effects, abort=is_aborted)
    yield queue.random.uniform(0.002, 0.02)
    if is_aborted or queue.is_killed(process, 0.03):
        state.owner = None
        if is_aborted:
            queue.write(process, "fail", "txn", of=of, err="Abort")
        return not is_aborted
    state.position, state.owner = end, None
    for sent in copies:
        queue.append("copies", sent)
    for m in effects:
        queue.effects[group, m] += 1
    if queue.is_killed(process, 0.03):
        return True
    yield queue.random.uniform(0.001, 0.01)
    queue.write(process, "ok", "txn", of=of)
    return False


def run_member(queue: SimulatedQueue, name: str, group: str, topic: str) -> Steps:
    """Calls a handler with one message after the other; what fails is set aside, with what follows it in its key."""
    for life in itertools.count():
        process = f"{name}.{life}"
        while True:
            if queue.is_drained(group, topic):
                return
            _claim(queue, process, group, topic)
            is_killed = False
            for number, state in _owned(queue, process, group, topic):
                offset = _next(queue, state, topic, number)
                if offset is not None and (yield from _handled(queue, process, group, topic, number, offset)):
                    is_killed = True
                    break
            if is_killed:
                break
            yield queue.random.uniform(0.001, 0.02)
        yield queue.random.uniform(0.1, 0.5)


def _next(queue: SimulatedQueue, state: GroupState, topic: str, number: int) -> int | None:
    """The offset to handle next: perhaps the first of a key that was set aside, else the next whose key is not."""
    log = queue.log[topic, number]
    waiting = sorted(offset for offset, (what, _) in state.parked.items() if what == "waiting")
    if waiting and (queue.chance(0.3) or state.position == len(log)):
        return waiting[0]
    while state.position < len(log):
        key = log[state.position].key
        if key is None or all(log[offset].key != key for offset in waiting):
            return state.position
        state.parked[state.position] = ("waiting", 0)
        waiting.append(state.position)
        state.position += 1
    return None


def _handled(
    queue: SimulatedQueue, process: str, group: str, topic: str, number: int, offset: int
) -> Generator[float, None, bool]:
    """Handle one message, and write down what came of it; return whether the process was killed."""
    state = queue.states[group, topic, number]
    delivered = [queue.delivered(topic, number, offset)]
    is_poison = delivered[0].h.endswith(("0", "1"))
    of = queue.write(process, "invoke", "handle", group=group, topic=topic, delivered=delivered)
    yield queue.random.uniform(0.001, 0.01)
    # An attempt that ended with its process counts, too, but for those that have none left: they would be dead letters.
    if queue.is_killed(process, 0.01):
        _, attempts = state.parked.get(offset, ("", 0))
        if attempts + 1 < _MAX_ATTEMPTS and offset in state.parked:
            state.parked[offset] = ("waiting", attempts + 1)
        return _lose(queue, process, group, topic)
    if is_poison or queue.chance(0.03):
        queue.write(process, "fail", "handle", of=of, err="ValueError")
        attempts = state.parked.get(offset, ("", 0))[1] + 1
        what = "dead" if attempts == _MAX_ATTEMPTS else "waiting"
        state.parked[offset] = (what, attempts)
        if what == "dead":
            queue.write(process, "note", "dead", group=group, topic=topic, partition=number, offsets=[offset])
    else:
        queue.write(process, "ok", "handle", of=of)
        state.parked.pop(offset, None)
    if offset == state.position:
        state.position += 1
    return False
