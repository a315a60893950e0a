"""Calls the objects that hold connections when the process forks: before and after it in the parent, after it in the child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object that holds connections."""

    def before_fork(self) -> None:
        """Wait, not for long, until no thread is inside the object."""

    def after_fork_in_parent(self) -> None:
        """Admit threads again."""

    def after_fork(self) -> None:
        """Leave the parent's connections alone. Called in the child."""

    def __hash__(self) -> int: ...


_registered: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []
"""Those that were called before the fork, kept alive until it is over."""


def register(forkable: Forkable) -> None:
    """Call *forkable* at every fork from now on, as long as it is alive."""
    _registered.add(forkable)


def _before() -> None:
    _forking[:] = list(_registered)
    for forkable in _forking:
        forkable.before_fork()


def _after_in_parent() -> None:
    for forkable in _forking:
        forkable.after_fork_in_parent()
    _forking.clear()


def _after_in_child() -> None:
    for forkable in _forking:
        forkable.after_fork()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
