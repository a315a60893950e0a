"""The other queues, each used in the fastest way its documentation has, on the same server in the same run.

A peer is a module here: PACKAGE, its distribution; KINDS, the databases it works on; MESSAGES, how many in a full run,
fewer where it is slow; HOW, the way it is used; and ``produce_and_drain(target, count)``, which makes its tables in the
empty database *target*, produces *count* messages in batches, drains them by one process, checks that all came, and
returns both times in seconds. They are installed by ``pip install 'sqlmq[bench]'``; one that is not is said to be missing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from benchmarks.databases import version
from benchmarks.suite import Rounds

if TYPE_CHECKING:
    from types import ModuleType

    from benchmarks.suite import Bench

PEERS = ("ours", "pgmq", "pgqueuer", "huey", "procrastinate", "litequeue")
QUICK = 50
"""With --quick, one message for so many."""


def run(bench: Bench) -> None:
    peers, notes = installed(bench.database.kind)
    took: dict[str, list[tuple[float, float, int]]] = {name: [] for name in peers}
    for _ in range(bench.rounds):
        for name, peer in peers.items():
            count = max(100, peer.MESSAGES // QUICK) if bench.quick else peer.MESSAGES
            with bench.database.scratch() as target:
                took[name].append((*peer.produce_and_drain(target, count), count))
    for what, seconds in (
        ("produced", lambda produced, _drained: produced),
        ("drained", lambda _produced, drained: drained),
        ("produced and drained", lambda produced, drained: produced + drained),
    ):
        rates = {
            name: Rounds(tuple(count / seconds(produced, drained) for produced, drained, count in rounds))
            for name, rounds in took.items()
        }
        bench.add(
            f"{what}, one process",
            {f"{name}, {took[name][0][2]:,} messages": rounds for name, rounds in rates.items()},
            {
                f"{what}: sqlmq / {name}": Rounds(
                    tuple(a / b for a, b in zip(rates["sqlmq"].values, rounds.values, strict=True))
                )
                for name, rounds in rates.items()
                if name != "sqlmq"
            },
            unit="messages/s",
            notes=notes if what == "produced and drained" else (),
        )


def installed(kind: str) -> tuple[dict[str, ModuleType], list[str]]:
    """The peers for a *kind* of database by name, and a line about each, also about those that are missing."""
    peers: dict[str, ModuleType] = {}
    notes = []
    for name in PEERS:
        try:
            peer = importlib.import_module(f"benchmarks.peers.{name}")
        except ImportError as error:
            notes.append(f"{name}: not installed ({error})")
            continue
        if kind in peer.KINDS:
            peers[peer.PACKAGE] = peer
            notes.append(f"{peer.PACKAGE} {version(peer.PACKAGE)}: {peer.HOW}")
    return peers, notes
