"""A queue is dumped and restored: pg_dump in several ways; VACUUM INTO, backup and .dump of SQLite. The copy continues."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from typing import TYPE_CHECKING

from sqlalchemy import text

from case import Case, NotTriedError, last_line, run, text_of, upgrade
from sqlmq import MQ, Message, Retry

if TYPE_CHECKING:
    from sqlalchemy import URL

    from sqlmq import ReceivedMessage

SCHEMA = "queue"
PRODUCED, TAKEN, PRODUCED_IN_COPY = 30, 10, 4
DUMPS: dict[str, list[str]] = {
    "pg_dump": [],
    "pg_dump --inserts": ["--no-owner", "--no-privileges", "--inserts"],
    "pg_dump -Fc": ["-Fc"],
}


def judge(case: Case) -> None:
    if case.is_sqlite:
        copy_sqlite(case)
    else:
        copy_postgres(case)


def copy_sqlite(case: Case) -> None:
    fill(case.url, None)
    original = sqlite3.connect(case.sqlite_path)
    vacuumed, backed_up, loaded = (str(case.directory / name) for name in ("vacuumed.db", "backup.db", "loaded.db"))
    original.execute("VACUUM INTO ?", [vacuumed])
    use(case, "VACUUM INTO", f"sqlite:///{vacuumed}", None)
    with sqlite3.connect(backed_up) as copy:
        original.backup(copy)
    use(case, "backup", f"sqlite:///{backed_up}", None)
    with sqlite3.connect(loaded) as copy:
        copy.executescript("\n".join(original.iterdump()))
    use(case, ".dump", f"sqlite:///{loaded}", None)


def copy_postgres(case: Case) -> None:
    if shutil.which("pg_dump") is None or shutil.which("psql") is None:
        raise NotTriedError("pg_dump and psql are not installed.")
    fill(case.url, None)
    upgrade(case.url, schema=SCHEMA)
    fill(case.url, SCHEMA)
    for name, options in DUMPS.items():
        with case.postgres_database() as copy:
            if restore(case, name, copy, options):
                use(case, name, text_of(copy), None)
                use(case, f"{name}, a schema", text_of(copy), SCHEMA)
    with case.postgres_database() as copy:
        if restore(case, "pg_dump of a schema", copy, ["-n", SCHEMA]):
            use(case, "pg_dump of a schema", text_of(copy), SCHEMA)


def restore(case: Case, name: str, copy: URL, options: list[str]) -> bool:
    """Dump the case's database and load it into *copy*. Return whether both succeeded."""
    source, target = plain(case.server), plain(copy)
    dump = subprocess.run(["pg_dump", source, *options], capture_output=True, check=False)
    load = ["pg_restore", "-d", target] if "-Fc" in options else ["psql", "-q", "-v", "ON_ERROR_STOP=1", target]
    loaded = subprocess.run(load, input=dump.stdout, capture_output=True, check=False)
    if b"server version mismatch" in dump.stderr:
        raise NotTriedError("pg_dump is older than the server.")
    if dump.returncode or loaded.returncode:
        case.fault(f"{name}: {last_line(dump.stderr + loaded.stderr)}")
        return False
    return True


def plain(url: URL) -> str:
    """Return *url* as the programs of Postgres read it."""
    return text_of(url.set(drivername="postgresql"))


def fill(url: str, schema: str | None) -> None:
    with MQ(url, schema=schema) as mq:
        mq.create_topic("orders", 3)
        producer = mq.producer("orders")
        producer.produce_many(
            [Message(b"%d" % number, key=b"%d" % number, headers={"a": "b"}) for number in range(PRODUCED)]
        )
        with mq.consumer("orders", "group") as consumer:
            consumer.poll(TAKEN, timeout=10)
        producer.schedule(Message(b"later"), delay_seconds=2000)
        mq.producer("bad").produce(Message(b"x", key=b"k"))
        mq.consumer("bad", "failing").run(fail, retry=Retry(max_attempts=1), idle_seconds=0.5, handle_signals=False)


def fail(_message: ReceivedMessage) -> None:
    raise ValueError("no")


def use(case: Case, name: str, url: str, schema: str | None) -> None:
    case.attempt(name, lambda: go_on(case, name, url, schema))


def go_on(case: Case, name: str, url: str, schema: str | None) -> None:
    with MQ(url, schema=schema) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"new", key=b"1"))
        producer.produce_many([Message(b"n"), Message(b"m", key=b"2")])
        producer.schedule(Message(b"later"), delay_seconds=2000)
        with mq.engine.begin() as connection:
            producer.produce(Message(b"published", key=b"1"), session=connection)
        mq.create_topic("fresh", 2)
        received = 0
        with mq.consumer("orders", "group") as consumer:
            while messages := consumer.poll(timeout=1):
                received += len(messages)
        # What was taken before the copy was never acknowledged.
        if received != PRODUCED + PRODUCED_IN_COPY:
            case.fault(f"{name}: {received} of {PRODUCED + PRODUCED_IN_COPY} messages arrived")
        delayed, parked = mq.admin.delayed("orders"), mq.admin.parked("bad", "failing").list()
        if (len(delayed), len(parked)) != (2, 1):
            case.fault(f"{name}: {len(delayed)} of 2 delayed messages, {len(parked)} of 1 parked message")
        mq.consumer("orders", "new").close()
        mq.admin.lag()
        mq.admin.describe_group("orders", "group")
        if not url.startswith("sqlite"):
            prefix = f"{schema}." if schema else ""
            with mq.engine.begin() as connection:
                connection.execute(text(f"SELECT * FROM {prefix}sqlmq_produce('orders', 'k', 'v')"))
                connection.execute(text(f"SELECT * FROM {prefix}sqlmq_lag"))


if __name__ == "__main__":
    run(judge)
