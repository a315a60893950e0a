"""A minute of sqlmq: messages in, messages out, and what a group remembers.

python examples/quickstart.py                                 on SQLite, in a temporary directory
python examples/quickstart.py postgresql://user@host/name     on Postgres, after `sqlmq db upgrade`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from sqlmq import MQ, Message


def main(url: str) -> None:
    with MQ(url) as mq:
        mq.delete_topics("quickstart")
        mq.create_topic("quickstart", partitions=3)

        # Messages with the same key go to the same partition, and stay in order.
        with mq.producer("quickstart") as producer:
            for status in (b"placed", b"paid", b"sent"):
                place = producer.produce(Message(status, key=b"order 42", headers={"source": "web"}))
                print(f"produced to partition {place.partition} at offset {place.offset}")

        # Every group gets every message; the consumers of one group share the partitions.
        for group in ("billing", "shipping"):
            with mq.consumer("quickstart", group) as consumer:
                messages = [consumer.consume(timeout=10) for _ in range(3)]
                # Each call finished the message before; this finishes the last one.
                consumer.commit()
            print(f"{group} got {[message.value.decode() for message in messages]}")
            assert [message.value for message in messages] == [b"placed", b"paid", b"sent"]

        print(f"billing has {mq.admin.describe_group('quickstart', 'billing').lag} messages left to read")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as directory:
            main(f"sqlite:///{Path(directory) / 'quickstart.db'}")
