"""The drivers that an application can have, whatever the queue's own driver is."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from sqlmq import Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.support.shop import Shop

SYNC = pytest.mark.parametrize(
    ("database", "driver"),
    [
        ("sqlite", "sqlite"),
        *((kind, f"postgresql+{name}") for kind in ("postgres", "postgres-schema") for name in ("psycopg", "psycopg2")),
    ],
    indirect=["database"],
)
ASYNC = pytest.mark.parametrize(
    ("database", "driver"),
    [
        ("sqlite", "sqlite+aiosqlite"),
        *(
            (kind, f"postgresql+{name}")
            for kind in ("postgres", "postgres-schema")
            for name in ("psycopg_async", "asyncpg")
        ),
    ],
    indirect=["database"],
)
MESSAGES = [
    Message(b"\x00\xff\\x41%s", b"\xff\x00", {"a": "\u00e4%s\"'{},"}),
    Message(b"", b""),
    Message(b"no key"),
    Message(bytes(range(256)), b"k"),
    Message(b"\xff\x00", b"k", {"": "", "null": "NULL"}),
]


def url(shop: Shop, driver: str) -> str:
    return re.sub(r"^[a-z+]+:", f"{driver}:", shop.database.url)


def facts(messages: Sequence[Message]) -> list[tuple[bytes, bytes | None, dict[str, str]]]:
    found = [(message.value, message.key, dict(message.headers)) for message in messages]
    return sorted(found, key=repr)


def run(shop: Shop, driver: str, work: Callable[[AsyncEngine], Awaitable[Any]], **options: Any) -> None:
    async def main() -> None:
        engine = create_async_engine(url(shop, driver), **options)
        try:
            await work(engine)
        finally:
            await engine.dispose()

    asyncio.run(main())
