"""Programs name the schemas of tenants: long, in upper case, with dots, quotes, percent signs, blanks, any letters."""

from __future__ import annotations

from case import Case, run, shown, upgrade
from sqlmq import MQ, Message, SqlmqError

NAMES = (
    "Tenant-7",
    "a.b",
    'q"uote',
    "100%",
    "mit raum",
    "日本",
    "%s",
    "a:b",
    "$sqlmq$",
    "{schema}",
    "x;--",
    "\\x",
    "t" * 63,
    "t" * 64 + "first",
    "t" * 64 + "second",
    "ü" * 40,
    "select",
    "%(a)s",
)
MOST_BYTES = 63
"""The longest name that Postgres keeps."""
MANY = 5100
"""More than are sent by one statement."""
SENT = MANY + 5


def judge(case: Case) -> None:
    for name in NAMES:
        try:
            use(case, name)
        except (SqlmqError, ValueError) as error:
            if not is_refused_for_its_length(name, error):
                case.fault(f"{name!r}: {shown(error)}")
        except Exception as error:  # noqa: BLE001 - every exception is a fault
            case.fault(f"{name!r}: {shown(error)}")


def use(case: Case, name: str) -> None:
    for _ in range(2):
        upgrade(case.url, schema=name)
    with MQ(case.url, schema=name) as mq:
        producer = mq.producer("orders")
        producer.produce(Message(b"1", key=b"k", headers={"a": "b"}))
        producer.produce_many([Message(b"2"), Message(b"3", key=b"z")])
        producer.produce_many([Message(b"x", key=b"z")] * MANY)
        producer.schedule(Message(b"delayed"), delay_seconds=0.01)
        with mq.engine.begin() as connection:
            producer.produce(Message(b"4", key=b"k"), session=connection)
        received = 0
        with mq.consumer("orders", "group") as consumer:
            while received < SENT and (messages := consumer.poll(timeout=10)):
                received += len(messages)
        if received != SENT:
            case.fault(f"{name!r}: {received} of {SENT} messages arrived")
        mq.admin.lag()
        mq.admin.diagnose()
        mq.admin.describe_group("orders", "group")


def is_refused_for_its_length(name: str, error: SqlmqError | ValueError) -> bool:
    """Whether a name that is too long was refused; an error of the library has to say so."""
    if len(name.encode()) <= MOST_BYTES:
        return False
    return not isinstance(error, SqlmqError) or "long" in str(error) or str(MOST_BYTES) in str(error)


if __name__ == "__main__":
    run(judge, only_on="postgresql")
