"""Log records that arise while a thread holds what other threads wait for: they are emitted right after it has let go.

A log handler is code of the application. It may take long, and it may send its records into the queue: while one thread
is in such a handler, and has its lock, another one that holds a lock of ours must not wait for the handler.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Protocol, Self
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType


class _Held(threading.local):
    """The blocks that a thread is in, and the records that wait for their end.

    A block is listed weakly, because an interrupt may keep its ``__exit__`` from running. It is over when nothing refers to it.
    """

    def __init__(self) -> None:
        self.blocks: list[ref[LogHold]] = []
        self.records: list[logging.LogRecord] = []

    def is_inside(self) -> bool:
        return any(block() is not None for block in self.blocks) or _owns_a_lock()


_held = _Held()
_locks: dict[ref[threading.RLock], Collection[int]] = {}
"""Locks under which records are kept, too, but not in these threads."""
WITH_RECORDS: set[int] = set()
"""The threads for which records wait: usually none."""


def _owns_a_lock() -> bool:
    me = threading.get_ident()
    # A copy, in one step: another thread, or a finalizer, may add or remove one.
    for reference, exempt in _locks.copy().items():
        lock = reference()
        if lock is not None and lock._is_owned() and me not in exempt:  # type: ignore[attr-defined]  # noqa: SLF001 - as Condition
            return True
    return False


class LogHold:
    """A block in which the calling thread emits no log record of the loggers in question. Enter it before the lock.

    At the end of the outermost block they are emitted in order, with the time at which they arose.
    """

    __slots__ = ("__weakref__",)

    def __enter__(self) -> Self:
        _held.blocks.append(ref(self))
        return self

    @property
    def has_records(self) -> bool:
        """Whether records wait."""
        return bool(_held.records)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        blocks = _held.blocks
        while blocks and blocks.pop()() is not self:
            pass  # a block whose end was interrupted
        emit_held_records()


def hold_records_under(lock: threading.RLock, exempt: Collection[int] = ()) -> None:
    """Hold records also in a thread that has *lock*, for a path on which a block takes too long.

    After the lock it has to call ``emit_held_records`` if there are ``WITH_RECORDS``. Threads that are *exempt* run code of
    the application under the lock.
    """
    _locks[ref(lock, _forget_lock)] = exempt


def _forget_lock(reference: ref[threading.RLock]) -> None:
    _locks.pop(reference, None)


def emit_held_records() -> None:
    """Emit the records that wait, unless this thread is in a block, or has a lock, that holds them."""
    if _held.records and not _held.is_inside():
        _emit()


class Wraps(Protocol):
    """What wraps a logger, as ``echo=True`` does in SQLAlchemy."""

    logger: logging.Logger


def hold_records_of(*loggers: str | logging.Logger | Wraps) -> None:
    """Make ``LogHold`` hold the records of *loggers*, too: those of libraries that are called inside the blocks."""
    for logger in loggers:
        if isinstance(logger, str):
            _named(logger).addFilter(_FILTER)
        else:
            (logger if isinstance(logger, logging.Logger) else logger.logger).addFilter(_FILTER)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not _held.is_inside():
            return True
        _held.records.append(record)
        WITH_RECORDS.add(threading.get_ident())
        return False


_FILTER = _Filter()
_named = logging.getLogger


def _emit() -> None:
    """Emit what has waited. What handlers log meanwhile, inside blocks of their own, is emitted inside the handlers."""
    WITH_RECORDS.discard(threading.get_ident())
    records, _held.records = _held.records, []
    for record in records:
        try:
            _named(record.name).handle(record)
        except Exception:  # noqa: BLE001 - what was done inside the block is done, whatever a handler makes of the record
            if logging.raiseExceptions and sys.stderr is not None:
                with contextlib.suppress(OSError):
                    traceback.print_exc()


hold_records_of(
    "sqlmq.background",
    "sqlmq.consumer",
    "sqlmq.database",
    "sqlmq.observer",
    "sqlmq.producer",
    "concurrent.futures",
    "py.warnings",  # where logging.captureWarnings sends what SQLAlchemy and the drivers warn of
)
