"""The business's own tables: the orders, and one for each group, in place of a mail server, a search engine and so on."""

from __future__ import annotations

import os

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TOPIC = "orders"


class Base(DeclarativeBase):
    """What Alembic compares the database with."""


class Order(Base):
    """What a customer wants, written by the service."""

    __tablename__ = "fastapi_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    item: Mapped[str]
    cents: Mapped[int]


class Mail(Base):
    """A confirmation, one for each order."""

    __tablename__ = "fastapi_mail"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    recipient: Mapped[str]


class SearchEntry(Base):
    """A word of an order, in one of several indexes."""

    __tablename__ = "fastapi_search_entry"

    index: Mapped[str] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(primary_key=True)


class Sale(Base):
    """A sum for the statistics. The key is the message's place, so that it is counted once even if it comes twice."""

    __tablename__ = "fastapi_sale"

    partition: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


def url_from_environment() -> str:
    return os.environ["ORDERS_URL"]
