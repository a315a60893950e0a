"""Calls the objects that hold connections when the process forks: before and after it in the parent, after it in the child."""

from __future__ import annotations

import os
import threading
import weakref
from typing import NamedTuple, Protocol


class ForkHold(NamedTuple):
    """What a thread holds of an object while it forks."""

    has_turn: bool
    """Whether no other thread writes."""
    has_gate: bool
    """Whether no other thread can begin to use the object."""
    has_barrier: bool
    """Whether other hooks of the fork are kept from using the object, and other threads wait for its end."""


class Forkable(Protocol):
    """An object that holds connections."""

    def before_fork(self) -> ForkHold:
        """Wait, not for long, until no other thread is inside the object. Return what is held of it until after the fork.

        Never waits for the thread that forks. Another one may wait for the fork, so nothing may be waited for without end.
        """

    def after_fork_in_parent(self, held: ForkHold) -> None:
        """Admit threads again."""

    def after_fork(self, held: ForkHold) -> None:
        """Leave the parent's connections alone. Called in the child."""

    def __hash__(self) -> int: ...


_registered: weakref.WeakSet[Forkable] = weakref.WeakSet()


class _Forking(threading.local):
    """The fork of a thread."""

    def __init__(self) -> None:
        self.objects: list[tuple[Forkable, ForkHold]] = []
        """Those that were called before the fork, kept alive until it is over."""


_forking = _Forking()


def register(forkable: Forkable) -> None:
    """Call *forkable* at every fork from now on, as long as it is alive."""
    _registered.add(forkable)


def _before() -> None:
    for forkable in list(_registered):
        _forking.objects.append((forkable, forkable.before_fork()))


def _after_in_parent() -> None:
    while _forking.objects:
        forkable, held = _forking.objects.pop()
        forkable.after_fork_in_parent(held)


def _after_in_child() -> None:
    while _forking.objects:
        forkable, held = _forking.objects.pop()
        forkable.after_fork(held)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
