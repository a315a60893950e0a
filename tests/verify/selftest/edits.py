"""Edits that break one promise of a correct history each: cases that need no database."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from tests.verify.selftest import delivery_edits, log_edits
from tests.verify.selftest.cases import Case
from tests.verify.selftest.draft import Draft, NotPossibleError
from tests.verify.selftest.simulator import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlmq.verify.history import Event, Final


class Edit(NamedTuple):
    """An edit that makes a correct history wrong."""

    name: str
    code: str
    """The anomaly that the judge must find."""
    change: Callable[[Draft], None]
    with_faults: bool = True
    """Whether to edit a history with kills and pauses. They would excuse the result of some edits."""


EDITS = (
    Edit("lost-message", "A1", log_edits.lose_message),
    Edit("aborted-message", "A2", log_edits.fail_acknowledged),
    Edit("savepoint-survived", "A2", log_edits.undo_committed),
    Edit("unknown-message", "A3", log_edits.add_unknown),
    Edit("corrupt-payload", "A3", log_edits.corrupt),
    Edit("misplaced-message", "A3", log_edits.misplace),
    Edit("duplicate-message", "A4", log_edits.duplicate),
    Edit("other-offset-acknowledged", "A5", log_edits.acknowledge_another),
    Edit("offset-gap", "A6", log_edits.make_gap),
    Edit("offset-reused", "A6", log_edits.reuse_offset),
    Edit("end-forgotten", "A6", log_edits.lower_end),
    Edit("offsets-swapped", "A7", log_edits.swap_far_apart),
    Edit("batch-reordered", "A8", log_edits.reorder_batch),
    Edit("batch-interrupted", "A8", log_edits.interrupt_batch),
    Edit("torn-transaction", "A9", log_edits.tear),
    Edit("crossed-transactions", "A10", log_edits.cross),
    Edit("own-message-read", "A11", log_edits.read_own),
    Edit("stale-snapshot", "A12", log_edits.age_snapshot),
    Edit("empty-poll", "A12", delivery_edits.empty_poll, with_faults=False),
    Edit("never-delivered", "B1", delivery_edits.never_deliver),
    Edit("passed-unfinished", "B1", delivery_edits.never_finish),
    Edit("unseen", "B2", delivery_edits.hide_last),
    Edit("polls-swapped", "B3", delivery_edits.swap_polls, with_faults=False),
    Edit("delivered-twice", "B4", delivery_edits.deliver_again, with_faults=False),
    Edit("position-back", "B5", delivery_edits.move_back),
    Edit("zombie-commit", "B6", delivery_edits.commit_as_zombie),
    Edit("two-owners", "B6", delivery_edits.commit_twice),
    Edit("duplicate-effect", "B7", delivery_edits.double_effect),
    Edit("lost-effect", "B7", delivery_edits.lose_effect),
    Edit("position-beyond", "B8", delivery_edits.move_beyond),
    Edit("retained-too-little", "B9", delivery_edits.trim_unread),
    Edit("stranded", "B10", delivery_edits.strand),
    Edit("dead-though-done", "B10", delivery_edits.bury_alive, with_faults=False),
    Edit("too-many-attempts", "B10", delivery_edits.try_too_often, with_faults=False),
    Edit("early", "B11", log_edits.append_early),
    Edit("abort-unchanged", "B12", delivery_edits.go_on_after_abort),
    Edit("left-lying", "L4", delivery_edits.stop_reading, with_faults=False),
    Edit("not-drained", "L3", delivery_edits.fail_drain),
    Edit("hanging-call", "L5", delivery_edits.hang),
    Edit("residue", "L8", delivery_edits.leave_residue),
)

_SENDS = 150


def edited(edit: Edit, seed: int) -> Draft:
    """Apply *edit* to a correct history; if it has nothing to change, to another one."""
    for number in range(seed * 100, seed * 100 + 100):
        simulation = Simulation(number, sends=_SENDS, faults=edit.with_faults)
        draft = Draft(simulation.run(), random.Random(number))
        try:
            edit.change(draft)
        except NotPossibleError:
            continue
        return draft
    message = f"No history has anything that the edit {edit.name} could change."
    raise NotPossibleError(message)


def cases() -> Iterator[Case]:
    """Yield a correct case, and one for each edit."""
    yield Case("correct", "nothing", frozenset(), _correct)
    for edit in EDITS:
        meaning = (edit.change.__doc__ or "").strip().rstrip(".")
        yield Case(edit.name, meaning, frozenset({edit.code}), _happening(edit))


def _correct(_: Path, seed: int) -> tuple[list[Event], Final | None]:
    history = Simulation(seed, sends=_SENDS).run()
    return history.events(), history.final()


def _happening(edit: Edit) -> Callable[[Path, int], tuple[list[Event], Final | None]]:
    def happen(_: Path, seed: int) -> tuple[list[Event], Final | None]:
        draft = edited(edit, seed)
        return draft.history.events(), draft.history.final()

    return happen
