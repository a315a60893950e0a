"""Handlers of signals, among those that other owners set before, meanwhile and above."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from sqlmq.consumer.worker import signals
from sqlmq.consumer.worker.signals import SignalLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

SIGNAL = signal.SIGTERM

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as Unix does")


class Heard:
    """Owners of the signal, and who of them heard it, in this order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def owner(self, name: str) -> Callable[[int, FrameType | None], None]:
        return lambda _number, _frame: self.names.append(name)

    def by_signal(self) -> list[str]:
        """Return who hears one signal."""
        self.names.clear()
        signal.raise_signal(SIGNAL)
        return list(self.names)


@pytest.fixture(autouse=True)
def before() -> Iterator[None]:
    """The handlers before the test are those after it."""
    kept = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_the_owner_from_before_hears_the_signal_too_and_has_it_alone_afterwards(heard: Heard) -> None:
    theirs = heard.owner("theirs")
    signal.signal(SIGNAL, theirs)
    link = SignalLink(heard.owner("ours"))
    link.install()

    during = heard.by_signal()
    link.remove()

    assert during == ["ours", "theirs"]
    assert signal.getsignal(SIGNAL) is theirs


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_each_of_several_hears_it_however_they_end(heard: Heard, first_to_end: int) -> None:
    theirs = heard.owner("theirs")
    signal.signal(SIGNAL, theirs)
    links = [SignalLink(heard.owner(name)) for name in ("first", "second")]
    for link in links:
        link.install()

    of_both = heard.by_signal()
    links[first_to_end].remove()
    of_one = heard.by_signal()
    links[1 - first_to_end].remove()

    assert of_both == ["second", "first", "theirs"]
    assert of_one == [["second"], ["first"]][first_to_end] + ["theirs"]
    assert signal.getsignal(SIGNAL) is theirs


def test_a_handler_that_was_set_meanwhile_stays(heard: Heard) -> None:
    link = SignalLink(heard.owner("ours"))
    link.install()
    theirs = heard.owner("theirs")
    signal.signal(SIGNAL, theirs)

    link.remove()

    assert signal.getsignal(SIGNAL) is theirs


def test_a_link_that_ended_under_another_handler_passes_on(heard: Heard) -> None:
    signal.signal(SIGNAL, heard.owner("below"))
    link = SignalLink(heard.owner("ours"))
    link.install()

    def above(number: int, frame: FrameType | None) -> None:
        heard.names.append("above")
        link(number, frame)

    signal.signal(SIGNAL, above)
    link.remove()

    assert heard.by_signal() == ["above", "below"]


def test_the_handlers_of_python_are_not_called_while_one_listens(heard: Heard) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    link = SignalLink(heard.owner("ours"))
    link.install()

    signal.raise_signal(signal.SIGINT)
    link.remove()

    assert heard.names == ["ours"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
def test_a_forked_child_is_ended_by_a_signal_that_the_parent_listens_to(heard: Heard) -> None:
    signal.signal(SIGNAL, signal.SIG_DFL)
    link = SignalLink(heard.owner("ours"))
    link.install()

    child = os.fork()
    if child == 0:
        signal.raise_signal(SIGNAL)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    link.remove()

    assert os.waitstatus_to_exitcode(status) == -SIGNAL


def test_what_another_handler_raises_is_raised_after_ours_has_heard_it(heard: Heard) -> None:
    signal.signal(SIGNAL, lambda *_: sys.exit(3))
    link = SignalLink(heard.owner("ours"))
    link.install()

    with pytest.raises(SystemExit):
        signal.raise_signal(SIGNAL)

    link.remove()
    assert heard.names == ["ours"]


def test_an_ignored_signal_stays_ignored(heard: Heard) -> None:
    signal.signal(SIGNAL, signal.SIG_IGN)
    link = SignalLink(heard.owner("ours"))

    link.install()

    assert signal.getsignal(SIGNAL) is signal.SIG_IGN
    link.remove()
    assert signal.getsignal(SIGNAL) is signal.SIG_IGN


def test_a_handler_that_python_did_not_set_is_left_alone(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    set_here: list[int] = []
    monkeypatch.setattr("signal.getsignal", lambda _number: None)
    monkeypatch.setattr("signal.signal", lambda number, _handler: set_here.append(number))
    link = SignalLink(heard.owner("ours"))

    link.install()
    link.remove()

    assert set_here == []


def test_signals_are_taken_in_the_main_thread_only(heard: Heard) -> None:
    before = signal.getsignal(SIGNAL)
    link = SignalLink(heard.owner("ours"))
    thread = threading.Thread(target=link.install)
    thread.start()
    thread.join()

    assert signal.getsignal(SIGNAL) is before


def test_the_next_signal_is_left_to_the_system_only_where_no_other_handler_stands_above(heard: Heard) -> None:
    command, run = SignalLink(heard.owner("command")), SignalLink(heard.owner("run"))
    before = signal.getsignal(SIGNAL)
    command.install()
    run.install()

    command.leave_next_to_system()
    below = heard.by_signal()
    run.remove()
    command.leave_next_to_system()
    alone = signal.getsignal(SIGNAL)
    command.remove()

    assert below == ["run", "command"]
    assert alone is signal.SIG_DFL
    assert signal.getsignal(SIGNAL) is before


@pytest.mark.parametrize("is_process_1", [False, True])
def test_process_1_takes_sigterm_from_the_kernel_which_would_ignore_it(
    *, is_process_1: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(SIGNAL, signal.SIG_DFL)
    monkeypatch.setattr("os.getpid", lambda: 1 if is_process_1 else 2)

    signals.hear_as_process_1()

    assert signal.getsignal(SIGNAL) is (signals.end_process if is_process_1 else signal.SIG_DFL)
    assert signals.default_action() is signal.getsignal(SIGNAL)


def test_the_handler_of_process_1_ends_the_process_and_is_not_passed_on_to_while_one_listens(heard: Heard) -> None:
    signal.signal(SIGNAL, signals.end_process)
    link = SignalLink(heard.owner("ours"))
    link.install()

    during = heard.by_signal()
    link.remove()
    program = "from sqlmq.consumer.worker.signals import end_process; end_process(15)"
    ended = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)

    assert during == ["ours"]
    assert ended.returncode == -SIGNAL
