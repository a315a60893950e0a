"""An application beside the queue: orders in a table of its own, in the same database, and an event for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session

from sqlmq import Message
from tests.support.application import Application
from tests.support.queue_state import QueueState

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
    """Sells in transactions, each with an event on the topic `events`, which has three partitions.

    It sells in sessions of *app*, and looks at the tables by *engine*.
    """

    def __init__(self, mq: MQ, engine: Engine, database: DatabaseUnderTest, app: Application | None = None) -> None:
        self.mq = mq
        self.engine = engine
        self.database = database
        self.app = app or Application(engine)
        mq.create_topic("events", 3)
        Base.metadata.create_all(engine)
        self.producer = mq.producer("events")
        self.state = QueueState(engine, database.schema)

    def sell(
        self, session: Session | scoped_session[Session] | Connection, note: str, producer: Producer | None = None
    ) -> Publication:
        """Insert an order and publish its event, both in the transaction of *session*."""
        session.execute(text("INSERT INTO customer_order (note) VALUES (:note)"), {"note": note})
        return (producer or self.producer).produce(Message(note.encode(), b"k"), session=session)

    def session(self, **options: Any) -> Session:
        return self.app.session(**options)

    def connect(self) -> Connection:
        return self.app.engine.connect()

    @property
    def orders(self) -> list[str]:
        """The orders, by id."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(Order.note).order_by(Order.id)).scalars())

    @property
    def events(self) -> list[str]:
        """The log of `events`, partition by partition."""
        return [value for values in self.log().values() for value in values]

    def log(self, topic: str = "events") -> dict[int, list[str]]:
        """Return the values in the log of *topic*, by partition, without empty ones."""
        return self.state.texts(topic)


# Each sells something (None), or is a savepoint: whether it is kept, and what happens in it.
savepoint_trees: st.SearchStrategy[list[Any]] = st.recursive(
    st.lists(st.none(), max_size=3),
    lambda inner: st.lists(st.none() | st.tuples(st.booleans(), inner), max_size=5),
    max_leaves=25,
)
