"""A queue that may only be read: a snapshot of a SQLite file, a read-only mount, a session that only reads on Postgres.

Looking works, and writing says why not. On SQLite, odd paths, links and ``chdir`` too.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, create_engine

from case import Case, run, shown
from sqlmq import MQ, Message
from sqlmq.errors import ReadOnlyDatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable

PATHS = (
    "with space.db",
    "per%cent.db",
    "ha#sh.db",
    "ümläut.db",
    "quest?ion.db",
    "semi;colon.db",
    "plus+amp&.db",
    "a'quote\".db",
    "日本.db",
)


def judge(case: Case) -> None:
    if not case.is_sqlite:
        read_on_postgres(case)
        return
    os.chdir(case.directory)
    read_copies(case)
    for path in PATHS:
        attempt_path(case, path)
    case.attempt("a link and chdir", lambda: use_link(case))


def read_on_postgres(case: Case) -> None:
    fill(case.url)
    case.set_default("default_transaction_read_only", "on")
    with MQ(case.url, create_topics=False) as mq:
        look(case, "default_transaction_read_only=on", mq)
        error = refuse(case, "default_transaction_read_only=on", mq)
    if error is not None and "primary" in str(error) and "default_transaction_read_only" not in str(error):
        case.fault(f"default_transaction_read_only=on is taken for a standby: {shown(error)}")


def read_copies(case: Case) -> None:
    """Read a copy of a file, by URLs that only read."""
    fill("sqlite:///written.db")
    with sqlite3.connect("written.db") as original:
        original.execute("VACUUM INTO 'copy.db'")
    copy = sqlite3.connect("copy.db")
    copy.execute("PRAGMA journal_mode=WAL")
    copy.close()
    here = Path.cwd()
    for name, query in (("mode=ro", "mode=ro&uri=true"), ("immutable", "immutable=1&mode=ro&uri=true")):
        with MQ(f"sqlite:///file:{here}/copy.db?{query}", create_topics=False) as mq:
            look(case, name, mq)
            refuse(case, name, mq)


def fill(url: str) -> None:
    with MQ(url) as mq:
        mq.create_topic("looked-at", 2)
        mq.producer("looked-at").produce(Message(b"x"))
        mq.consumer("looked-at", "group").close()


def look(case: Case, name: str, mq: MQ) -> None:
    calls: dict[str, Callable[[], object]] = {
        "topics": mq.admin.topics,
        "lag": mq.admin.lag,
        "diagnose": mq.admin.diagnose,
        "tail": lambda: list(mq.admin.tail("looked-at", last=1, timeout=0)),
    }
    for what, call in calls.items():
        case.attempt(f"{name}: {what}", call)


def refuse(case: Case, name: str, mq: MQ) -> ReadOnlyDatabaseError | None:
    """Produce, which has to be refused; return the error."""
    try:
        mq.producer("looked-at").produce(Message(b"x"))
    except ReadOnlyDatabaseError as error:
        return error
    except Exception as error:  # noqa: BLE001 - every other exception is a fault
        case.fault(f"{name}: produce: {shown(error)}")
    else:
        case.fault(f"{name}: produce has written")
    return None


def attempt_path(case: Case, path: str) -> None:
    def use() -> None:
        with MQ(URL.create("sqlite", database=path)) as mq:
            producer = mq.producer("paths")
            producer.produce(Message(b"x"))
            with mq.engine.begin() as connection:
                producer.produce(Message(b"y"), session=connection)
            with mq.consumer("paths", "group") as consumer:
                consumer.poll(timeout=5)

    case.attempt(repr(path), use)
    if not Path(path).exists():
        case.fault(
            f"{path!r} is not where it was asked for, but among {sorted(path.name for path in Path().iterdir())}"
        )


def use_link(case: Case) -> None:
    """Open the same file by two names, one of them relative, and change the directory."""
    Path("sub").mkdir()
    Path("sub/link.db").symlink_to(Path.cwd() / "written.db")
    engine = create_engine("sqlite:///sub/link.db")
    with MQ("sqlite:///written.db") as mq:
        producer = mq.producer("looked-at")
        with engine.begin() as connection:
            producer.produce(Message(b"by the link"), session=connection)
        os.chdir("sub")
        producer.produce(Message(b"after chdir"))
        os.chdir("..")
        if (found := mq.admin.describe_topic("looked-at").messages) != 3:
            case.fault(f"a link and chdir: {found} of 3 messages are in the file")


if __name__ == "__main__":
    run(judge)
