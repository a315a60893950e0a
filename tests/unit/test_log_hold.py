"""Records that arise while a thread holds what others wait for are emitted when it has let go."""

from __future__ import annotations

import logging
import threading
import warnings
from typing import TYPE_CHECKING

import pytest

from sqlmq.hooks.log_hold import WITH_RECORDS, LogHold, emit_held_records, hold_records_of, hold_records_under

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("sqlmq.database")


class Emitted(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def emitted() -> Iterator[list[str]]:
    handler = Emitted()
    logging.getLogger().addHandler(handler)
    yield handler.texts
    logging.getLogger().removeHandler(handler)


def test_a_record_outside_of_a_block_is_emitted_at_once(emitted: list[str]) -> None:
    log.warning("now")

    assert emitted == ["now"]


def test_records_inside_of_blocks_are_emitted_in_order_after_the_outermost(emitted: list[str]) -> None:
    with LogHold() as hold:
        with LogHold():
            log.warning("first")
        log.warning("second")
        inside = list(emitted)
        has_records = hold.has_records

    assert inside == []
    assert has_records
    assert emitted == ["first", "second"]


def test_an_error_does_not_lose_records(emitted: list[str]) -> None:
    def fail() -> None:
        with LogHold():
            log.warning("before")
            message = "broken"
            raise ValueError(message)

    with pytest.raises(ValueError, match="broken"):
        fail()

    assert emitted == ["before"]


def test_a_block_holds_only_what_its_own_thread_logs(emitted: list[str]) -> None:
    with LogHold():
        other = threading.Thread(target=log.warning, args=["of another thread"])
        other.start()
        other.join(10)
        inside = list(emitted)

    assert inside == ["of another thread"]


def test_loggers_of_libraries_can_be_held_too(emitted: list[str]) -> None:
    library = logging.getLogger("a.library")
    hold_records_of(library)

    with LogHold():
        library.warning("held")
        logging.getLogger("a.library.other").warning("not held")
        inside = list(emitted)

    assert inside == ["not held"]
    assert emitted == ["not held", "held"]


def test_what_a_handler_causes_is_emitted_inside_of_it() -> None:
    """A handler with a guard relies on that."""
    inside: list[tuple[str, bool]] = []

    class Causing(logging.Handler):
        is_inside = False

        def emit(self, record: logging.LogRecord) -> None:
            inside.append((record.getMessage(), self.is_inside))
            if self.is_inside:
                return
            self.is_inside = True
            with LogHold():
                log.warning("caused by %s", record.getMessage())
            self.is_inside = False

    handler = Causing()
    logging.getLogger().addHandler(handler)
    try:
        with LogHold():
            log.warning("one")
            log.warning("two")
    finally:
        logging.getLogger().removeHandler(handler)

    assert inside == [("one", False), ("caused by one", True), ("two", False), ("caused by two", True)]


def test_a_handler_that_raises_harms_nobody(emitted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(record.getMessage())

    handler = Broken()
    log.addHandler(handler)
    try:
        with LogHold():
            log.warning("one")
            log.warning("two")
    finally:
        log.removeHandler(handler)

    assert "OSError: one" in capsys.readouterr().err
    assert emitted == []


def test_a_block_whose_end_was_interrupted_is_over(emitted: list[str]) -> None:
    hold = LogHold()
    hold.__enter__()
    del hold

    log.warning("now")

    assert emitted == ["now"]


def test_warnings_that_the_application_logs_are_held(emitted: list[str]) -> None:
    logging.captureWarnings(capture=True)
    try:
        with warnings.catch_warnings(), LogHold():
            warnings.simplefilter("always")
            warnings.showwarning = logging._showwarning  # type: ignore[attr-defined]  # pytest has its own in a test
            warnings.warn("slow", stacklevel=1)
            inside = list(emitted)
    finally:
        logging.captureWarnings(capture=False)

    assert inside == []
    assert len(emitted) == 1


def test_a_lock_may_hold_records_until_they_are_emitted_after_it(emitted: list[str]) -> None:
    lock = threading.RLock()
    hold_records_under(lock)
    with lock:
        log.warning("inside")
        emit_held_records()
        inside = list(emitted)
    has_records = threading.get_ident() in WITH_RECORDS
    emit_held_records()

    assert inside == []
    assert has_records
    assert emitted == ["inside"]
    assert not WITH_RECORDS


def test_a_lock_that_another_thread_has_holds_no_records(emitted: list[str]) -> None:
    lock = threading.RLock()
    hold_records_under(lock)
    with lock:
        other = threading.Thread(target=log.warning, args=["of another thread"])
        other.start()
        other.join()

    assert emitted == ["of another thread"]
