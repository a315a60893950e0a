"""Row level security is on for all tables, as some hosters have it. A role that is not the owner must be told the cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from case import Case, run, shown
from sqlmq import MQ, Message, SqlmqError

if TYPE_CHECKING:
    from sqlalchemy import URL

TABLES = ("version", "message", "partition", "topic", "claim", "member")
PRODUCED, CONSUMED = "produced", "consumed"
CAUSES = ("row-level", "row level", "policy", "rls")


def judge(case: Case) -> None:
    with MQ(case.url) as mq:
        mq.create_topic("orders", 1)
        mq.producer("orders").produce(Message(b"x"))
    with case.role() as role:
        case.execute(
            f"GRANT USAGE ON SCHEMA public TO {role.username}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role.username}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role.username}",
        )
        with MQ(role) as mq:
            mq.consumer("orders", "before").close()
        for table in TABLES:
            case.execute(f"ALTER TABLE sqlmq_{table} ENABLE ROW LEVEL SECURITY")
            told = use(role, group=table)
            case.execute(f"ALTER TABLE sqlmq_{table} DISABLE ROW LEVEL SECURITY")
            works = PRODUCED in told and CONSUMED in told
            if not works and not any(cause in " ".join(told).lower() for cause in CAUSES):
                case.fault(f"sqlmq_{table}: nothing names the cause: {told}")


def use(role: URL, group: str) -> list[str]:
    """Use the queue as *role* and return what it was told."""
    told = []
    try:
        with MQ(role, create_topics=False) as mq:
            told.append(produce(mq))
            told.append(consume(mq, group))
            told.append(examine(mq))
    except Exception as error:  # noqa: BLE001 - what is told is what is looked at
        told.append(shown(error))
    return told


def produce(mq: MQ) -> str:
    try:
        mq.producer("orders").produce(Message(b"y"))
    except SqlmqError as error:
        return f"producing: {shown(error)}"
    return PRODUCED


def consume(mq: MQ, group: str) -> str:
    try:
        with mq.consumer("orders", group) as consumer:
            consumer.consume(timeout=3)
    except TimeoutError:
        return "consuming: nothing came"
    except Exception as error:  # noqa: BLE001 - as above
        return f"consuming: {shown(error)}"
    return CONSUMED


def examine(mq: MQ) -> str:
    try:
        return f"doctor: {[problem.code for problem in mq.admin.diagnose()]}"
    except Exception as error:  # noqa: BLE001 - as above
        return f"doctor: {type(error).__name__}"


if __name__ == "__main__":
    run(judge, only_on="postgresql")
