"""A cluster that initdb made under LANG=C has SQL_ASCII databases. The queue must work there, or say clearly why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from case import Case, last_line, run, shown, text_of
from sqlmq import MQ, Message, SqlmqError

if TYPE_CHECKING:
    from sqlalchemy import URL

HEADERS = {"name": "Zoë"}


def judge(case: Case) -> None:
    with case.postgres_database("ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0") as database:
        ended = case.run_command("db", "upgrade", environment={"SQLMQ_URL": text_of(database)})
        if ended.returncode != 0:
            said = ended.stderr.decode(errors="replace")
            if "Traceback" in said or not names_the_cause(said):
                case.fault(f"sqlmq db upgrade: {last_line(said)}")
            return
        try:
            use(case, database)
        except SqlmqError as error:
            if not names_the_cause(str(error)):
                case.fault(shown(error))


def use(case: Case, database: URL) -> None:
    with MQ(database) as mq:
        producer = mq.producer("plain")
        producer.produce(Message(b"1", key=b"k", headers=HEADERS))
        producer.produce_many([Message(b"2", headers=HEADERS), Message(b"3", headers=HEADERS)])
        if mq.admin.topics() != ["plain"]:
            case.fault(f"topics() returns {mq.admin.topics()!r}")
        with mq.consumer("plain", "group") as consumer:
            for _ in range(3):
                message = consumer.consume(timeout=10)
                if (message.topic, message.headers) != ("plain", HEADERS):
                    case.fault(f"a message of topic {message.topic!r} has the headers {message.headers!r}")
        mq.admin.describe_group("plain", "group")
        mq.admin.lag()


def names_the_cause(text: str) -> bool:
    return "SQL_ASCII" in text or "encoding" in text.lower()


if __name__ == "__main__":
    run(judge, only_on="postgresql")
