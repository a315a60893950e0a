"""pgmq, by the SQL of its extension, which its Python package carries and installs without the extension.

By psycopg rather than by that package, which adds a model of pydantic to each message; a binary array of texts is the
fastest form in which a batch was found to travel.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from pgmq import get_embedded_install_sql, install_pgmq_sql

from benchmarks.harness.databases import POSTGRES
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUEUE = "bench"
VISIBILITY_SECONDS = 60
BATCH = 1_000
BODY = json.dumps("v" * 200)

SEND = f"SELECT pgmq.send('{QUEUE}', %s::jsonb)"
SEND_BATCH = f"SELECT pgmq.send_batch('{QUEUE}', %b::text[]::jsonb[])"
READ = f"SELECT msg_id, message FROM pgmq.read('{QUEUE}', {VISIBILITY_SECONDS}, %s)"
DELETE = f"SELECT pgmq.delete('{QUEUE}', %b::bigint[])"
POP = f"SELECT msg_id, message FROM pgmq.pop('{QUEUE}', %s)"


class PgmqQueue:
    def __init__(
        self, connection: psycopg.Connection[Any], take: Callable[[psycopg.Connection[Any], int], int]
    ) -> None:
        self._connection = connection
        self._take = take

    def produce(self, count: int) -> None:
        send(self._connection, count)

    def drain(self, count: int) -> int:
        done = 0
        while done < count and (taken := self._take(self._connection, BATCH)):
            done += taken
        return done


def install(target: str) -> None:
    """Make pgmq's schema and a queue in the database *target*, unless they are there."""
    with psycopg.connect(target) as connection:
        found = connection.execute("SELECT to_regclass(%s)", [f"pgmq.q_{QUEUE}"]).fetchone()
        if found != (None,):
            return
        install_pgmq_sql(get_embedded_install_sql(), conn=connection)
        connection.execute("SELECT pgmq.create(%s)", [QUEUE])


def send(connection: psycopg.Connection[Any], count: int) -> None:
    """Send *count* messages, 1,000 in a transaction."""
    batch = [BODY] * min(count, BATCH)
    for _ in range(count // len(batch)):
        connection.execute(SEND_BATCH, [batch]).fetchall()


def read_and_delete(connection: psycopg.Connection[Any], at_most: int) -> int:
    """At least once: a message that was read and not deleted comes again."""
    ids = [row[0] for row in connection.execute(READ, [at_most]).fetchall()]
    if ids:
        connection.execute(DELETE, [ids]).fetchall()
    return len(ids)


def pop(connection: psycopg.Connection[Any], at_most: int) -> int:
    """At most once: what was popped is gone, whatever becomes of it."""
    return len(connection.execute(POP, [at_most]).fetchall())


@contextmanager
def _open(target: str, take: Callable[[psycopg.Connection[Any], int], int]) -> Iterator[PgmqQueue]:
    install(target)
    with psycopg.connect(target, autocommit=True) as connection:
        yield PgmqQueue(connection, take)


PEERS = (
    Peer(
        "pgmq",
        "pgmq",
        (POSTGRES,),
        100_000,
        "send_batch of 1,000, read(1000) and delete of those",
        lambda target: _open(target, read_and_delete),
    ),
    Peer(
        "pgmq, pop",
        "pgmq",
        (POSTGRES,),
        100_000,
        "send_batch of 1,000, pop(1000): at most once, where the others are at least once",
        lambda target: _open(target, pop),
    ),
)
