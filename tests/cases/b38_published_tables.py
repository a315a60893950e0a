"""Other tools have hooks on all tables: a publication for Debezium, audit triggers, a column more. The queue's day goes on."""

from __future__ import annotations

import logging

from case import Case, administrator, run
from sqlmq import MQ, Message, ReceivedMessage, Retry

KEYED, KEYLESS = 200, 6000
SENT = KEYED + KEYLESS + 2
AUDIT = """
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.audit VALUES (tg_table_name, tg_op, to_jsonb(coalesce(new, old)));
        RETURN coalesce(new, old);
    END $$
"""


def judge(case: Case) -> None:
    logging.disable(logging.CRITICAL)
    case.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    day(case, "published")
    case.execute("CREATE TABLE audit (table_name text, operation text, changed jsonb)", AUDIT)
    with administrator(case.url).connect() as connection:
        found = connection.exec_driver_sql("SELECT tablename FROM pg_tables WHERE tablename LIKE 'sqlmq%%'")
        tables = list(found.scalars())
    for moment in ("AFTER", "BEFORE"):
        for table in tables:
            case.execute(
                f"CREATE OR REPLACE TRIGGER audited {moment} INSERT OR UPDATE OR DELETE ON {table} "
                "FOR EACH ROW EXECUTE FUNCTION audit()"
            )
        day(case, f"audited-{moment.lower()}")
    for table in tables:
        case.execute(f"DROP TRIGGER audited ON {table}", f"ALTER TABLE {table} ADD COLUMN tenant text DEFAULT 'x'")
    day(case, "another-column")


def day(case: Case, topic: str) -> None:
    case.attempt(topic, lambda: live(case, topic))


def live(case: Case, topic: str) -> None:
    """Use the queue in most ways on *topic*."""
    handled: list[ReceivedMessage] = []

    def handle(message: ReceivedMessage) -> None:
        if message.value == b"7":
            raise ValueError("no")
        handled.append(message)

    with MQ(case.url) as mq:
        mq.create_topic(topic, 3)
        producer = mq.producer(topic)
        producer.produce_many([Message(b"%d" % number, key=b"%d" % number) for number in range(KEYED)])
        producer.produce_many([Message(b"x")] * KEYLESS)
        producer.schedule(Message(b"delayed"), delay_seconds=0.01)
        mq.admin.cancel_delayed(producer.schedule(Message(b"cancelled"), delay_seconds=900).id)
        with mq.engine.begin() as connection:
            producer.produce(Message(b"published"), session=connection)
        mq.consumer(topic, "group").run(
            handle, retry=Retry(max_attempts=2, backoff_seconds=0.01), idle_seconds=1.5, handle_signals=False
        )
        if len(handled) < SENT - 1:
            case.fault(f"{topic}: {len(handled)} of {SENT - 1} messages handled")
        mq.admin.reset_group(topic, "group", "earliest", force=True)
        mq.admin.add_partitions(topic, 6)
        mq.admin.apply_retention()
        mq.delete_topics(topic)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
