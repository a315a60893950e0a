"""Enumerates schedules with few preemptions: those without any first, then those with one, and so on.

Iterative context bounding: M. Musuvathi and S. Qadeer, Iterative Context Bounding for Systematic Testing of
Multithreaded Programs, PLDI 2007. Most errors of concurrency show with two preemptions or fewer, and of those there
are polynomially many.
"""

from __future__ import annotations

import random
import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.schedules.conductor import Conductor, Decision

MOST_PREEMPTIONS = 2


def explore(
    run: Callable[[Sequence[int]], Conductor], *, preemptions: int = MOST_PREEMPTIONS, limit: int | None = None
) -> Iterator[Conductor]:
    """Run all schedules with up to so many *preemptions*, each once.

    *run* follows the schedule it is given as far as that goes, and then lets each session go on for as long as it can.
    With a *limit*, there are no more than so many: those with fewer preemptions, and of those with most an arbitrary
    part, always the same.
    """
    waiting: list[list[tuple[int, ...]]] = [[()], *([] for _ in range(preemptions))]
    chance = random.Random(0)
    done = 0
    for schedules in waiting:
        while schedules:
            if done == limit:
                return
            done += 1
            schedule = schedules.pop(chance.randrange(len(schedules)))
            conductor = run(schedule)
            if not conductor.has_diverged:
                for cost, other in others(conductor.decisions, len(schedule)):
                    if cost <= preemptions:
                        waiting[cost].append(other)
            yield conductor


def others(decisions: Sequence[Decision], start: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The schedules that differ from *decisions* first at *start* or after it, each with its preemptions."""
    taken = tuple(decision.taken for decision in decisions)
    cost = 0
    for at, decision in enumerate(decisions):
        if at >= start:
            for number in decision.ready:
                if number != decision.taken:
                    yield cost + decision.preempts(number), (*taken[:at], number)
        cost += decision.preempts(decision.taken)


def name_of(schedule: Sequence[int]) -> str:
    """A schedule as it is written: ``A3B2A1`` lets A go on for three statements, B for two, A for one."""
    return "".join(f"{chr(ord('A') + number)}{len(list(run))}" for number, run in groupby(schedule))


def schedule_named(name: str) -> tuple[int, ...]:
    """The schedule that *name* is of; what comes after it is left open."""
    runs = re.findall(r"([A-Z])(\d+)", name)
    return tuple(number for letter, count in runs for number in [ord(letter) - ord("A")] * int(count))
