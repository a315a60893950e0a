"""Where lives begin and end: each is a child of a process that has lived such a life itself, and has closed everything.

So they have nothing to import, and no statement to compile; what they open is theirs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from sqlmq.database.engines import open_engine
from sqlmq.hooks import failpoints
from sqlmq.hooks.failpoints import EXIT_CODE
from tests.faults import points
from tests.faults.lives import LIVES, Life, transacting_for_ever
from tests.faults.points import POINTS
from tests.support import processes
from tests.support.processes import fork, in_child
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.processes import QueueUnderTest

PATIENCE_SECONDS = 300.0
AT_ONCE = 4
IN_TRANSACTIONS = (
    "begin.before",
    "begin.after",
    "take.held",
    "take.after",
    "effect.after",
    "position.before",
    "position.after",
    "commit.before",
    "commit.sent",
    "commit.after",
)
"""What a process passes again and again that handles messages in transactions."""


class Nursery:
    """A process that has children, one after the other."""

    def __init__(self, queue: QueueUnderTest, directory: Path) -> None:
        self._queue = queue
        points.register()
        self._engine = open_engine(queue.url, queue.schema)[1]
        points.watch_commits(self._engine)
        self._journal = directory / "journal"

    def life(self, name: str) -> Life:
        return Life(self._queue, self._engine, self._journal, name)

    def reached(self, kind: str) -> dict[str, int]:
        """Live a life of a *kind* here; return how often it has reached which failpoint."""
        reached, counting = Counter[str](), threading.Lock()

        def count(point: str) -> None:
            with counting:
                reached[point] += 1

        with ExitStack() as stack:
            for point in POINTS:
                stack.enter_context(failpoints.armed(point, partial(count, point)))
            LIVES[kind](self.life(kind))
        self._engine.dispose()
        until(lambda: threading.active_count() == 1, "no threads, which would be missing in a child")
        return {point: reached[point] for point in POINTS if reached[point]}

    def ends_at(self, kind: str, name: str, point: str, nth: int) -> bool:
        """Have a child end when it reaches the *point* for the *nth* time; return whether it came to that."""

        def live() -> None:
            with failpoints.armed(point, points.ending(point), nth=nth):
                LIVES[kind](self.life(name))

        status = in_child(live)
        assert status in (0, EXIT_CODE), f"{name}: {status}"
        if point == "commit.sent":
            self._await_commit()
        return status == EXIT_CODE

    def _await_commit(self) -> None:
        """Wait until the server has done what a process sent that did not read the answer."""
        state = QueueState(self._engine, self._queue.schema)
        until(lambda: state.busy_sessions() == [], "the server to commit")
        self._engine.dispose()

    def begin_transacting(self, name: str, point: str, nth: int, seed: int) -> int:
        """Have a child handle in transactions until it reaches the *point* for the *nth* time; return its process id."""

        def live() -> None:
            with failpoints.armed(point, points.ending(point), nth=nth):
                transacting_for_ever(self.life(name), seed)

        return fork(live)

    def goes_on(self, kind: str, name: str) -> None:
        """Have a child live to its end."""
        assert in_child(lambda: LIVES[kind](self.life(name))) == 0, name


def crash_everywhere(queue: QueueUnderTest, directory: Path, kind: str, hits: int, seed: int) -> None:
    """Have lives of a *kind* end at each failpoint that they reach, *hits* times at each, and another go on after each.

    Chosen by the *seed* is which time it is that a life reaches the point. What was reached how often is left in a file.
    """
    chosen = random.Random(seed)
    nursery = Nursery(queue, directory)
    reached, crashed = nursery.reached(kind), Counter[str]()
    for point, count in reached.items():
        for nth in chosen.sample(range(1, count + 1), min(hits, count)):
            name = f"{point}@{nth}"
            # Threads take turns as they like, so that a life may come through.
            crashed[point] += nursery.ends_at(kind, name, point, nth)
            nursery.goes_on(kind, f"after {name}")
        if not crashed[point]:
            crashed[point] += nursery.ends_at(kind, f"{point}@first", point, 1)
            nursery.goes_on(kind, f"after {point}@first")
    (directory / "told").write_text(json.dumps([reached, crashed]))


def crash_at_once(queue: QueueUnderTest, directory: Path, crashes: int, seed: int) -> None:
    """Keep several processes in transactions, each of which ends at a point that is drawn, until *crashes* have ended.

    Another process handles what is left.
    """
    chosen = random.Random(seed)
    nursery = Nursery(queue, directory)
    reachable = [point for point in IN_TRANSACTIONS if point != "commit.sent" or nursery.life("").is_on_postgres]
    running: set[int] = set()
    for number in range(crashes):
        while len(running) < min(AT_ONCE, crashes - number):
            point, nth, own_seed = chosen.choice(reachable), chosen.randint(1, 4), chosen.getrandbits(32)
            running.add(nursery.begin_transacting(f"{number}", point, nth, own_seed))
        pid, status = os.wait()
        running.remove(pid)
        assert os.waitstatus_to_exitcode(status) == EXIT_CODE, status
    nursery.goes_on("transacting", "after all")


def reach_everywhere(queue: QueueUnderTest, directory: Path) -> None:
    """Live one life of each kind; leave in a file which failpoints they have reached."""
    nursery = Nursery(queue, directory)
    (directory / "told").write_text(json.dumps([point for kind in LIVES for point in nursery.reached(kind)]))


def in_nursery(work: Callable[..., None], *arguments: object) -> int | None:
    """Run *work* in a process that may fork, and return its exit code; None if it did not end. No child survives it."""
    process = processes.start(_lead, work, *arguments)
    process.join(PATIENCE_SECONDS)
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    exit_code: int | None = process.exitcode
    process.join()
    return exit_code


def _lead(work: Callable[..., None], *arguments: object) -> None:
    """Do *work* in a group of processes of its own, which its children belong to."""
    os.setpgid(0, 0)
    work(*arguments)
