"""The shapes that a transaction of an application can have: sessions and connections, begun and committed in each way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from tests.support.application import Application

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTENS = pytest.mark.sync_only("a listener of SQLAlchemy is no coroutine, so it can't await an AsyncProducer")

Transacted = Session | scoped_session[Session] | Connection
Shape = Callable[[Application], AbstractContextManager[Transacted]]


@contextmanager
def a_session(app: Application) -> Iterator[Transacted]:
    with app.session() as session:
        yield session
        session.commit()


@contextmanager
def a_session_that_begins(app: Application) -> Iterator[Transacted]:
    with app.session() as session, session.begin():
        yield session


@contextmanager
def a_sessionmaker_that_begins(app: Application) -> Iterator[Transacted]:
    with app.sessionmaker().begin() as session:
        yield session


@contextmanager
def a_session_begun_by_hand(app: Application) -> Iterator[Transacted]:
    with app.session(autobegin=False) as session:
        session.begin()
        yield session
        session.commit()


@contextmanager
def a_scoped_session(app: Application) -> Iterator[Transacted]:
    session = app.scoped_session()
    try:
        yield session
        session.commit()
    finally:
        session.remove()


@contextmanager
def a_connection_that_begins(app: Application) -> Iterator[Transacted]:
    with app.engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def an_autobegun_connection(app: Application) -> Iterator[Transacted]:
    with app.engine.connect() as connection:
        yield connection
        connection.commit()


@contextmanager
def an_engine_that_begins(app: Application) -> Iterator[Transacted]:
    with app.engine.begin() as connection:
        yield connection


def a_session_joining(mode: Any) -> Shape:
    @contextmanager
    def shape(app: Application) -> Iterator[Transacted]:
        with app.engine.connect() as connection, connection.begin() as transaction:
            with app.session(bind=connection, join_transaction_mode=mode) as session:
                yield session
                session.commit()
            if transaction.is_active:
                transaction.commit()

    shape.__name__ = f"a_session_joining_{mode}"
    return shape


SHAPES = [
    a_session,
    a_session_that_begins,
    a_sessionmaker_that_begins,
    a_session_begun_by_hand,
    a_scoped_session,
    a_connection_that_begins,
    an_autobegun_connection,
    an_engine_that_begins,
    *(
        a_session_joining(mode)
        for mode in ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")
    ),
]
EACH_SHAPE = pytest.mark.parametrize("transaction", SHAPES, ids=lambda shape: shape.__name__)
