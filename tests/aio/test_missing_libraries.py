"""What needs an optional library says which extra installs it. `house/test_wheel.py` asks where it is really missing."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from sqlmq import AsyncConsumer, AsyncMQ, AsyncProducer, Message
from sqlmq.errors import InvalidURLError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from sqlmq.model.message import ReceivedMessage

    Call = Callable[[AsyncProducer, AsyncConsumer], Awaitable[object]]


def hide(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """Make the import of *library* fail as if it were not installed."""
    monkeypatch.setitem(sys.modules, library, None)


async def use(directory: Path, call: Call) -> None:
    async with AsyncMQ(f"sqlite:///{directory / 'queue.db'}") as mq:
        await call(await mq.producer("orders"), await mq.consumer("orders", "billing"))


async def await_handler(_message: ReceivedMessage, _session: object) -> None: ...


def call_handler(_message: ReceivedMessage, _session: object) -> None: ...


async def produce(producer: AsyncProducer, _consumer: AsyncConsumer) -> None:
    await producer.produce(Message(b"1"), session=object())  # type: ignore[call-overload]  # it is not looked at


async def read_in_transaction(_producer: AsyncProducer, consumer: AsyncConsumer) -> None:
    async with consumer.transaction():
        pass


async def run_in_transactions(_producer: AsyncProducer, consumer: AsyncConsumer) -> None:
    await consumer.run(await_handler, transaction=True)


@pytest.mark.parametrize("call", [produce, read_in_transaction, run_in_transactions])
def test_without_greenlet_sessions_of_asyncio_name_the_extra(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "greenlet")

    with pytest.raises(MissingDependencyError, match=r"greenlet.*'sqlmq\[asyncio\]'") as raised:
        asyncio.run(use(tmp_path, call))

    assert (raised.value.library, raised.value.extra) == ("greenlet", "asyncio")


@pytest.mark.parametrize("call", [read_in_transaction, run_in_transactions])
def test_without_a_driver_transactions_of_asyncio_on_sqlite_name_the_extra(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "aiosqlite")

    with pytest.raises(MissingDependencyError, match=r"aiosqlite.*'sqlmq\[aiosqlite\]'"):
        asyncio.run(use(tmp_path, call))


def test_all_else_works_without_greenlet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "greenlet")

    async def call(producer: AsyncProducer, consumer: AsyncConsumer) -> None:
        await producer.produce(Message(b"1"))
        assert (await consumer.consume(timeout=5)).value == b"1"
        await consumer.commit()
        await producer.produce(Message(b"2"))
        summary = await consumer.run(call_handler, transaction=True, idle_seconds=0)
        assert summary.handled == 1

    asyncio.run(use(tmp_path, call))


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("sqlmq.opentelemetry", "opentelemetry", "opentelemetry"),
        ("sqlmq.prometheus", "prometheus_client", "prometheus"),
    ],
)
def test_a_module_without_its_library_names_the_extra(
    module: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, library)
    monkeypatch.delitem(sys.modules, module, raising=False)

    with pytest.raises(MissingDependencyError) as raised:
        importlib.import_module(module)

    assert raised.value.extra == extra
    assert isinstance(raised.value, ImportError)


def test_a_driver_that_cannot_be_imported_is_an_error_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(monkeypatch, "psycopg")
    monkeypatch.delitem(sys.modules, "sqlmq.dialects.postgresql.dialect", raising=False)

    with pytest.raises(InvalidURLError, match=r"can't be imported.*'sqlmq\[postgres\]'"):
        AsyncMQ("postgresql://user@localhost/orders")
