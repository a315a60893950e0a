"""A child of a process with messages that wait for a commit: they are the parent's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import Session

from sqlmq import Message
from tests.support.processes import forks, in_fork
from tests.support.queue_state import QueueState
from tests.support.waiting import until

if TYPE_CHECKING:
    from typing import Any

    from tests.support.shop import Shop


pytestmark = [forks, pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")]


def sell_in_child(shop: Shop, note: str, level: Any = None) -> str:
    options = {} if level is None else {"isolation_level": level}
    engine = create_engine(shop.database.url, poolclass=NullPool, **options)
    with Session(engine) as session:
        shop.sell(session, note)
        session.commit()
    return "sold"


def test_a_forked_child_publishes_its_own_messages_and_none_of_the_parents(shop: Shop) -> None:
    with Session(shop.engine) as session:
        # No statement: on SQLite the child could not write beside a transaction of the parent's that does.
        publication = shop.producer.produce_with_partition(Message(b"parent"), 0, session=session)
        assert in_fork(lambda: sell_in_child(shop, "child")) == "sold"
        assert shop.events == ["child"]
        session.commit()

    assert publication.result is not None
    assert sorted(shop.events) == ["child", "parent"]


def test_a_forked_child_that_does_nothing_publishes_nothing_of_the_parents(shop: Shop) -> None:
    with Session(shop.engine) as session:
        shop.sell(session, "parent")
        assert in_fork(lambda: "nothing") == "nothing"
        assert shop.events == []
        session.rollback()

    assert shop.events == shop.orders == []


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_a_forked_child_moves_what_it_has_staged(shop: Shop) -> None:
    with Session(shop.engine.execution_options(isolation_level="SERIALIZABLE")) as session:
        # So that the parent's mover runs.
        shop.sell(session, "before")
        session.commit()
        until(lambda: shop.state.staged() == 0, "the parent's message in the log")

        def child() -> str:
            sell_in_child(shop, "child", "SERIALIZABLE")
            shop.mq._background.scheduler.close()
            return f"staged {QueueState(shop.mq.engine, None).staged()}"

        assert in_fork(child) == "staged 0"
        shop.sell(session, "after")
        session.commit()
        until(lambda: shop.state.staged() == 0, "the parent's message in the log")

    assert shop.events == shop.orders == ["before", "child", "after"]


@pytest.mark.parametrize("database", ["sqlite", "postgres"], indirect=True)
def test_a_forked_child_moves_what_it_has_delayed_and_leaves_the_parents_to_the_parent(shop: Shop) -> None:
    # So that the parent's mover runs, and waits.
    parents = shop.producer.schedule(Message(b"parent", b"k"), delay_seconds=3_600)

    def child() -> str:
        shop.producer.schedule(Message(b"child", b"k"), delay_seconds=0.1)
        until(lambda: shop.events == ["child"], "the child's message in the log")
        return "moved"

    assert in_fork(child) == "moved"
    assert shop.mq.admin.delayed("events") == [parents]
    shop.producer.schedule(Message(b"parent", b"k"), delay_seconds=0.1)
    until(lambda: shop.events == ["child", "parent"], "the parent's message in the log")
