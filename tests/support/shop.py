"""An application beside the queue: orders in a table of its own, in the same database, and an event for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session

from sqlmq import Message

if TYPE_CHECKING:
    from sqlmq import MQ, Producer, Publication
    from tests.conftest import DatabaseUnderTest


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "customer_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(unique=True)


class Shop:
    """Sells things in transactions, each with an event on the topic `events`, which has three partitions."""

    def __init__(self, mq: MQ, engine: Engine, database: DatabaseUnderTest) -> None:
        self.mq = mq
        self.engine = engine
        self.database = database
        mq.create_topic("events", 3)
        Base.metadata.create_all(engine)
        self.producer = mq.producer("events")

    def sell(
        self, session: Session | scoped_session[Session] | Connection, note: str, producer: Producer | None = None
    ) -> Publication:
        """Insert an order and publish its event, both in the transaction of *session*."""
        session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
        return (producer or self.producer).produce(Message(note.encode(), b"k"), session=session)

    @property
    def orders(self) -> list[str]:
        """What was sold, in order of the ids."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(Order.note).order_by(Order.id)).scalars())

    @property
    def events(self) -> list[str]:
        """What is in the log of `events`, partition by partition, in order."""
        return [value for values in self.log().values() for value in values]

    def log(self, topic: str = "events", schema: str | None = None) -> dict[int, list[str]]:
        """Every partition's values, by its number, without the partitions that have none."""
        return read_log(self.engine, topic, schema or self.database.schema)


def read_log(engine: Engine, topic: str, schema: str | None) -> dict[int, list[str]]:
    prefix = f"{schema}." if schema else ""
    query = text(
        f"SELECT p.number, m.msg_offset, m.value FROM {prefix}sqlmq_message m"
        f" JOIN {prefix}sqlmq_partition p ON p.id = m.partition_id JOIN {prefix}sqlmq_topic t ON t.id = p.topic_id"
        " WHERE t.name = :topic ORDER BY p.number, m.msg_offset"
    )
    found: dict[int, list[str]] = {}
    with engine.connect() as connection:
        for number, offset, value in connection.execute(query, {"topic": topic}):
            values = found.setdefault(number, [])
            assert offset == len(values), "a gap in the offsets"
            values.append(bytes(value).decode())
    return found


def staged(engine: Engine, schema: str | None) -> int:
    """How many messages are committed and not in the log yet."""
    prefix = f"{schema}." if schema else ""
    with engine.connect() as connection:
        count: int = connection.execute(text(f"SELECT count(*) FROM {prefix}sqlmq_staged")).scalar_one()
    return count


# Each sells something (None), or is a savepoint: whether it is kept, and what happens in it.
savepoint_trees: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(st.none(), max_size=3),
    lambda inner: st.lists(st.none() | st.tuples(st.booleans(), inner), max_size=5),
    max_leaves=25,
)
