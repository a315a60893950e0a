"""The business's own tables."""

from __future__ import annotations

import os

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

TOPIC = "orders"


class Base(DeclarativeBase):
    """What Alembic or ``create_all`` makes."""


class Order(Base):
    """What a customer wants, written by the service."""

    __tablename__ = "flask_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]


class Shipment(Base):
    """A parcel, written by the consumer; one for each order, however often the message comes."""

    __tablename__ = "flask_shipment"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    address: Mapped[str]


def url_from_environment() -> str:
    return os.environ.get("ORDERS_URL", "sqlite:///orders.db")
