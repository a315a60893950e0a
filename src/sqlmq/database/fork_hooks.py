"""Telling what has connections that this process forks: the parent before and after it, the child after it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """What wants to be told."""

    def before_fork(self) -> None:
        """Come to rest, as far as that is possible soon."""

    def after_fork_in_parent(self) -> None:
        """Go on as before."""

    def after_fork(self) -> None:
        """In the child: leave the parent's things alone."""

    def __hash__(self) -> int: ...


log_fields: weakref.WeakSet[Forkable] = weakref.WeakSet()
_forking: list[Forkable] = []


def tell(one: Forkable) -> None:
    """Tell *one* of forks from now on, as long as it is there."""
    log_fields.add(one)


def _before() -> None:
    _forking[:] = list(log_fields)
    for one in _forking:
        one.before_fork()


def _after_in_parent() -> None:
    for one in _forking:
        one.after_fork_in_parent()
    _forking.clear()


def _after_in_child() -> None:
    for one in _forking:
        one.after_fork()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
