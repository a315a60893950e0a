"""Failpoints: named places in our code where a test can raise an error, stop a thread or end the process.

They are off until a test arms one. Reaching one then costs a call and a read of a global; docs/design/failpoints.md has
the figure, docs/failpoints.md the usage.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import signal
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from sqlmq.hooks.log_events import log_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Action: TypeAlias = Callable[[], object]
    """What happens at a failpoint, in the thread that reaches it."""

log = logging.getLogger("sqlmq.testing")

POINTS: Mapping[str, str] = MappingProxyType(
    {
        # Transactions of our own, and those that an application's effects are part of.
        "begin.before": "a transaction is about to begin",
        "begin.after": "it has begun, and nothing has run in it",
        "commit.before": "all statements have run, and COMMIT is about to be sent",
        "commit.after": "COMMIT was answered",
        "statement.before": "a statement that commits by itself is about to be sent",
        "statement.after": "it was answered",
        # Messages go into the log.
        "append.before": "messages are about to be appended",
        "append.locked": "their partition is locked, and they have their numbers",
        "append.after": "they are in the log, which is not committed",
        "publish.before": "the application commits, and its messages are about to be appended",
        "publish.after": "they are appended or staged, and its COMMIT is about to be sent",
        "stage.before": "delayed messages are about to be stored",
        "stage.after": "they are stored, which is not committed",
        "cancel.after": "delayed messages are cancelled, which is not committed",
        "move.locked": "the partition is locked whose staged messages are about to move",
        "move.appended": "they are in the log, and still where they were staged",
        "move.after": "they have moved, which is not committed",
        "notify.before": "other processes are about to be notified of messages",
        "notify.after": "they are notified",
        # A group and its members.
        "join.after": "a member has joined, which is not committed",
        "claim.before": "a member is about to claim partitions",
        "claim.after": "it has claimed them, which is not committed",
        "heartbeat.before": "a heartbeat is about to be written",
        "heartbeat.after": "it is written, which is not committed",
        "handover.before": "finished messages are committed, and claims are about to be released",
        "handover.after": "they are released, which is not committed",
        "leave.after": "a member has left, which is not committed",
        # A group commits its position.
        "position.before": "a position is about to be committed",
        "fence.checked": "its claim is checked and locked, and the position not written yet",
        "position.after": "it is written, or fenced, which is not committed",
        "take.held": "a transaction has locked a partition, and read nothing yet",
        "take.after": "it has read the messages that the block is about to get",
        "effect.after": "the block, or the handler, has written its effects, and the position is not written yet",
        "replay.moved": "a group was reset, or a consumer has sought, which is not committed",
        # Attempts of a run.
        "attempt.begun": "an attempt is recorded, which is not committed",
        "attempt.after": "it is counted, and the handler about to be called",
        "handler.after": "the handler has returned, and nothing is written yet",
        "park.before": "a failure is about to be recorded",
        "park.after": "it is recorded, which is not committed",
        "settle.after": "a parked message is finished, which is not committed",
        # Retention.
        "retention.advanced": "a partition's start is moved, which is not committed",
        "retention.deleted": "messages before its start are deleted, which is not committed",
    }
)
"""The state at each failpoint."""

EXIT_CODE = 86
"""The exit code of a process that a failpoint ends."""
_GATE_SECONDS = 30.0
_ENVIRONMENT = "SQLMQ_FAILPOINTS"


class FailpointError(Exception):
    """Raised at a failpoint that was armed to raise, and if a gate is not opened in time."""


def failpoint(name: str) -> None:
    """Run the action that is armed at the failpoint *name*, if there is one."""
    if _armed:
        _reach(name)


@contextlib.contextmanager
def armed(name: str, action: Action, *, nth: int | None = None) -> Iterator[None]:
    """Arm *action* at the failpoint *name* for a block: each time, or only the *nth* time, counted from 1.

    Raises ValueError for an unknown name.
    """
    charge = _Charge(action, nth)
    _arm(name, charge)
    try:
        yield
    finally:
        with _arming:
            left = tuple(other for other in _armed[name] if other is not charge)
            if left:
                _armed[name] = left
            else:
                del _armed[name]


def raising(error: BaseException | None = None) -> Action:
    """Raise *error*, by default a FailpointError."""

    def raise_() -> None:
        raise FailpointError("A failpoint was armed to raise this.") if error is None else error

    return raise_


def exiting(code: int = EXIT_CODE) -> Action:
    """End the process at once, like a crash: nothing is flushed or closed."""
    return lambda: os._exit(code)


def stopping() -> Action:
    """Stop the process by SIGSTOP, until it gets SIGCONT."""
    # To this thread: if another one got the signal, this thread would run on for a moment.
    return lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


class Gate:
    """An action that holds the first thread that reaches it until it is opened.

    Raises FailpointError after *seconds*. Later threads pass.
    """

    def __init__(self, seconds: float = _GATE_SECONDS) -> None:
        self._seconds = seconds
        self._held = threading.Lock()
        self._reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        """Hold this thread."""
        if not self._held.acquire(blocking=False):
            return
        self._reached.set()
        if not self._opened.wait(self._seconds):
            message = f"A failpoint's gate was not opened within {self._seconds:g} seconds."
            raise FailpointError(message)

    def reached(self) -> None:
        """Wait until a thread is held. Raises TimeoutError if none comes in time."""
        if not self._reached.wait(self._seconds):
            message = f"No thread has reached the failpoint within {self._seconds:g} seconds."
            raise TimeoutError(message)

    def open(self) -> None:
        """Release the thread."""
        self._opened.set()


def arm_by_environment() -> None:
    """Arm what ``SQLMQ_FAILPOINTS`` lists, once, for the life of the process.

    Called by each new MQ, so that a wrong value raises ValueError there, and a forked process can have its own value.
    """
    global _is_environment_read  # noqa: PLW0603 - once per process
    with _arming:
        is_first, _is_environment_read = not _is_environment_read, True
    text = os.environ.get(_ENVIRONMENT, "") if is_first else ""
    if not text:
        return
    try:
        charges = parsed(text)
    except ValueError as error:
        _is_environment_read = False
        message = f"{_ENVIRONMENT}: {error}"
        raise ValueError(message) from None
    for name, action, nth in charges:
        _arm(name, _Charge(action, nth))
    log.warning("Failpoints are armed by %s: %s", _ENVIRONMENT, text, extra=log_fields("failpoints armed"))


def parsed(text: str) -> list[tuple[str, Action, int | None]]:
    """Parse *text*, such as ``commit.before=exit@3;claim.after=raise``. Raises ValueError."""
    charges = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, what = part.partition("=")
        action, at, nth = what.partition("@")
        if not equals or (at and not (nth.isascii() and nth.isdecimal() and int(nth))):
            message = f"{part!r} must be point=action or point=action@n. Separate several by ';'."
            raise ValueError(message)
        if action not in _ACTIONS:
            message = f"Unknown action {action!r}. Use one of {', '.join(_ACTIONS)}."
            raise ValueError(message)
        charges.append((_checked(name), _ACTIONS[action](), int(nth) if at else None))
    return charges


_ACTIONS: Mapping[str, Callable[[], Action]] = {"raise": raising, "exit": exiting, "stop": stopping}


class _Charge:
    """An armed action, with a count of how often it was reached."""

    def __init__(self, action: Action, nth: int | None) -> None:
        self._action = action
        self._nth = nth
        self._count = 0
        self._counting = threading.Lock()

    def reach(self) -> None:
        with self._counting:
            self._count += 1
            is_due = self._nth in (None, self._count)
        if is_due:
            self._action()


_armed: dict[str, tuple[_Charge, ...]] = {}
_arming = threading.Lock()
_is_environment_read = False


def _reach(name: str) -> None:
    for charge in _armed.get(name, ()):
        charge.reach()


def _arm(name: str, charge: _Charge) -> None:
    name = _checked(name)
    with _arming:
        _armed[name] = (*_armed.get(name, ()), charge)


def _checked(name: str) -> str:
    if name not in POINTS:
        close = difflib.get_close_matches(name, POINTS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "docs/failpoints.md lists them."
        message = f"Unknown failpoint {name!r}. {hint}"
        raise ValueError(message)
    return name
