"""The connection's encoding is not UTF-8: PGCLIENTENCODING, a URL, an old LATIN1 database. Headers must arrive as sent."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import create_engine

from case import Case, run, text_of, upgrade
from sqlmq import MQ, Message

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADERS = {"name": "Zoë", "town": "Düsseldorf"}
COPIED = 6000
"""More than are sent by one statement."""
SENT = COPIED + 11


def judge(case: Case) -> None:
    in_url = case.server.update_query_dict({"client_encoding": "latin1"})
    attempt(case, "client_encoding=latin1 in the URL", text_of(in_url), reading_url=case.url)
    os.environ["PGCLIENTENCODING"] = "LATIN1"
    attempt(case, "PGCLIENTENCODING=LATIN1", case.url, reading_url=case.url)
    del os.environ["PGCLIENTENCODING"]
    with case.postgres_database("ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0") as database:
        upgrade(database)
        attempt(case, "a LATIN1 database", text_of(database), reading_url=text_of(database))


def attempt(case: Case, name: str, url: str, *, reading_url: str) -> None:
    case.attempt(name, lambda: use(case, name, url))
    case.attempt(f"{name}: the table", lambda: look_at_table(case, name, reading_url))


def use(case: Case, name: str, url: str) -> None:
    topic = f"encoded-{uuid.uuid4().hex[:6]}"
    with MQ(url) as mq:
        mq.create_topic(topic, 1)
        producer = mq.producer(topic)
        producer.produce(Message(b"one", headers=HEADERS))
        producer.produce_many([Message(b"keyed", key=b"k", headers=HEADERS)] * 3)
        producer.produce_many([Message(b"keyless", headers=HEADERS)] * 3)
        producer.produce_many([Message(b"many", headers=HEADERS)] * COPIED)
        with mq.engine.begin() as connection:
            producer.produce(Message(b"published", headers=HEADERS), session=connection)
            producer.produce_many([Message(b"published together", headers=HEADERS)] * 2, session=connection)
        producer.schedule(Message(b"delayed", headers=HEADERS), delay_seconds=0.01)
        changed: dict[bytes, Mapping[str, str]] = {}
        received = 0
        with mq.consumer(topic, "group") as consumer:
            while received < SENT and (messages := consumer.poll(timeout=10)):
                received += len(messages)
                changed.update({message.value: message.headers for message in messages if message.headers != HEADERS})
    if received != SENT:
        case.fault(f"{name}: {received} of {SENT} messages arrived")
    for kind, headers in changed.items():
        case.fault(f"{name}: the headers of {kind!r} became {headers!r}")


def look_at_table(case: Case, name: str, url: str) -> None:
    """Read the table in UTF-8, as other programs do."""
    engine = create_engine(url, connect_args={"client_encoding": "utf8"})
    with engine.connect() as connection:
        stored = set(connection.exec_driver_sql("SELECT headers->>'name' FROM sqlmq_message").scalars())
    if stored != {HEADERS["name"]}:
        case.fault(f"{name}: stored as {sorted(stored)}")


if __name__ == "__main__":
    run(judge, only_on="postgresql")
