"""A Postgres trigger that publishes, whatever program writes to the table, and a consumer in Python.

python examples/trigger_orders.py postgresql://user@host/name     after `sqlmq db upgrade`

The program that writes orders knows nothing of messages: here it is plain SQL.
"""

from __future__ import annotations

import json
import sys

from sqlmq import MQ

TOPIC = "trigger-orders"

# The trigger publishes at once, and the order's partition stays locked until the transaction ends: a deferred one
# (CREATE CONSTRAINT TRIGGER ... DEFERRABLE INITIALLY DEFERRED) does it at the commit, which keeps that short.
SETUP = """
CREATE TABLE trigger_order (
    id integer PRIMARY KEY,
    customer text NOT NULL,
    state text NOT NULL
);

CREATE FUNCTION publish_trigger_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM sqlmq_produce(
        'trigger-orders', NEW.customer, to_jsonb(NEW)::text, '{"content-type": "application/json"}'
    );
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER publish_trigger_order AFTER INSERT OR UPDATE ON trigger_order
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION publish_trigger_order();
"""

CLEANUP = "DROP TABLE IF EXISTS trigger_order; DROP FUNCTION IF EXISTS publish_trigger_order();"


def run(mq: MQ, *statements: str) -> None:
    with mq.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def main(url: str) -> None:
    with MQ(url) as mq:
        run(mq, CLEANUP)
        mq.delete_topics(TOPIC)
        mq.create_topic(TOPIC)
        run(mq, SETUP)

        run(mq, "INSERT INTO trigger_order VALUES (1, 'Ada', 'placed'), (2, 'Grace', 'placed')")
        run(mq, "UPDATE trigger_order SET state = 'paid' WHERE id = 1")
        with mq.engine.connect() as connection:
            connection.exec_driver_sql("UPDATE trigger_order SET state = 'sent' WHERE id = 1")
            connection.rollback()

        with mq.consumer(TOPIC, "mail") as consumer:
            changes = [json.loads(consumer.consume(timeout=10).value) for _ in range(3)]
            consumer.commit()
        for change in changes:
            print(f"order {change['id']} of {change['customer']} is {change['state']}")

        # One customer's changes are in order; what was rolled back never was.
        assert [change["state"] for change in changes if change["customer"] == "Ada"] == ["placed", "paid"]
        assert [change["state"] for change in changes if change["customer"] == "Grace"] == ["placed"]
        assert mq.admin.describe_topic(TOPIC).messages == 3

        run(mq, CLEANUP)
        mq.delete_topics(TOPIC)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/trigger_orders.py postgresql://user@host/name")
    main(sys.argv[1])
