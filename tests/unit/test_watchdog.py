"""Waiting for answers, with lines that are made up: when somebody is cut off, and when not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq import DatabaseUnavailableError
from sqlmq.database import watchdog
from sqlmq.database.watchdog import WaitBudget, Watchdog
from sqlmq.dialects import ConnectionSocket
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_SECONDS = 0.3


class Wire(ConnectionSocket):
    """A line that has been silent for as long as it is told."""

    def __init__(self, silent_seconds: float | None = None) -> None:
        self._silent_seconds = silent_seconds
        self.was_asked, self.was_cut = threading.Event(), threading.Event()

    def silent_seconds(self) -> float | None:
        return self._silent_seconds

    def request_cancel(self, seconds: float) -> None:
        del seconds
        self.was_asked.set()

    def shut_down(self) -> None:
        self.was_cut.set()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "_CANCEL_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "SHORT_SECONDS", SOON_SECONDS)


@pytest.fixture
def made() -> Iterator[list[Watchdog]]:
    made: list[Watchdog] = []
    yield made
    for one in made:
        one.close()


def waiting_on(wire: Wire, made: list[Watchdog], seconds: float = 60.0) -> Watchdog:
    made.append(Watchdog(lambda _: wire, "here", seconds))
    return made[-1]


@pytest.mark.parametrize("silent_seconds", [None, 60.0])
def test_who_gets_no_answer_is_cut_off_after_the_server_was_asked_to_end(
    made: list[Watchdog], silent_seconds: float | None
) -> None:
    wire = Wire(silent_seconds)

    with waiting_on(wire, made, SOON_SECONDS).waiting_for(object()):
        assert wire.was_asked.wait(30)
        assert not wire.was_cut.is_set()
        assert wire.was_cut.wait(30)


def test_who_ends_when_the_server_was_asked_to_is_not_cut_off(made: list[Watchdog]) -> None:
    wire, later = Wire(), Wire()
    waiting = waiting_on(wire, made, SOON_SECONDS)

    with waiting.waiting_for(object()):
        assert wire.was_asked.wait(30)
    other = waiting_on(later, made, SOON_SECONDS)
    with other.waiting_for(object()):
        assert later.was_cut.wait(30)

    assert not wire.was_cut.is_set()


def test_a_line_on_which_something_moves_is_left_alone(made: list[Watchdog]) -> None:
    wire, other = Wire(0.0), Wire()

    with (
        waiting_on(wire, made, SOON_SECONDS).waiting_for(object()),
        waiting_on(other, made, 2 * SOON_SECONDS).waiting_for(object()),
    ):
        assert other.was_cut.wait(30)

    assert not wire.was_asked.is_set()


def test_in_a_hurry_nothing_is_waited_for_longer(made: list[Watchdog]) -> None:
    wire = Wire()
    waiting = waiting_on(wire, made)

    with waiting.shortening(), waiting.waiting_for(object()):
        assert wire.was_cut.wait(30)
        until(lambda: waiting.is_given_up, "the end of patience")

    assert not waiting.is_given_up


def test_whoever_waits_already_is_put_in_a_hurry_by_another(made: list[Watchdog]) -> None:
    wire, patience = Wire(), WaitBudget()
    waiting = waiting_on(wire, made)

    with waiting.with_budget(patience), waiting.waiting_for(object()):
        assert not waiting.is_given_up
        patience.shorten(SOON_SECONDS)
        assert wire.was_cut.wait(30)
        until(lambda: waiting.is_gone, "nothing more to be asked for")

    assert not waiting.is_gone


def test_while_something_is_closed_nobody_waits_for_longer_and_nobody_asks_again(made: list[Watchdog]) -> None:
    wire = Wire()
    waiting = waiting_on(wire, made)

    with waiting.waiting_for(object()):
        waiting.shorten()
        assert wire.was_cut.wait(30)

    assert waiting.is_gone


def test_a_database_that_answers_may_be_asked_for_as_long_as_closing_takes(made: list[Watchdog]) -> None:
    waiting = waiting_on(Wire(), made)
    waiting.shorten()
    until(lambda: waiting.is_given_up, "the end of the hurry")

    with waiting.waiting_for(object()):
        pass

    assert not waiting.is_gone


def test_a_connection_that_is_not_waited_for_is_closed_when_it_is_there() -> None:
    may_connect, closed = threading.Event(), threading.Event()

    class Connection:
        def close(self) -> None:
            closed.set()

    def connect() -> Connection:
        may_connect.wait(30)
        return Connection()

    def check(_began: float) -> None:
        raise DatabaseUnavailableError

    with pytest.raises(DatabaseUnavailableError):
        watchdog._PendingConnection(connect).result(check)  # type: ignore[arg-type]
    may_connect.set()

    assert closed.wait(30)


def test_the_thread_ends_when_it_is_closed(made: list[Watchdog]) -> None:
    waiting = waiting_on(Wire(), made)
    with waiting.waiting_for(object()):
        assert waiting._thread is not None

    waiting.close()

    assert not waiting._thread.is_alive()
