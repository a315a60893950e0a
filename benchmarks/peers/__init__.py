"""The other queues, each used in the fastest way its documentation has, on the same server in the same run.

Each module here has PEERS: ways to use one package. They are installed by ``python3 dev.py bench``; a package that is
not there is said to be missing. All write to the disk what they acknowledge (fsync, synchronous_commit, FULL on SQLite).
They do different things: most hand out each message once and delete it, sqlmq keeps it for any number of groups.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmarks.harness.databases import version

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import ModuleType

MODULES = ("ours", "by_hand", "pgmq", "pgqueuer", "huey", "procrastinate", "litequeue")
OURS = "sqlmq"
QUICK = 50
"""With --quick, the number of messages is divided by this."""


class Queue(Protocol):
    """A queue in an empty database, its tables made and its connections open."""

    def produce(self, count: int) -> None:
        """Produce *count* messages of 200 bytes, a multiple of what goes together."""

    def drain(self, count: int) -> int:
        """Handle what was produced, *count* messages, by one process; return how many there were."""


class Peer(NamedTuple):
    """A way to use a package."""

    name: str
    package: str
    """What it is installed as; empty for what comes with Python."""
    kinds: tuple[str, ...]
    """The databases it works on."""
    messages: int
    """How many in a full run; fewer where it is slow."""
    how: str
    open: Callable[[str], AbstractContextManager[Queue]]
    """Makes its tables in an empty database, named by libpq's URL or by its file."""


def installed(kind: str) -> tuple[list[Peer], list[str]]:
    """The peers for a *kind* of database, ours first, and a line about each, also about those that are missing."""
    peers: list[Peer] = []
    notes = []
    for name in MODULES:
        module = find(name)
        if module is None:
            notes.append(f"{name}: not installed")
            continue
        for peer in module.PEERS:
            if kind in peer.kinds:
                peers.append(peer)
                named = f"{peer.name} {version(peer.package)}" if peer.package else peer.name
                notes.append(f"{named}: {peer.how}")
    return peers, notes


def find(name: str) -> ModuleType | None:
    """The module here for the package called *name*; None if that is not installed."""
    try:
        return importlib.import_module(f"benchmarks.peers.{name}")
    except ImportError:
        return None


def how_many(peer: Peer, *, quick: bool) -> int:
    """Return how many messages *peer* gets in a run."""
    return max(100, peer.messages // QUICK) if quick else peer.messages
