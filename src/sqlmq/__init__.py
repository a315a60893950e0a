"""A message queue that lives in the SQL database you already have.

    mq            MQ: one database, its topics, and what is made from it
    resources     what an MQ has opened, and how it is closed
    producer      messages in
    consumer      messages out, for a group
    admin         what an operator does and sees
    aio           the same for asyncio: AsyncMQ, AsyncProducer, AsyncConsumer
    background    the threads of one MQ: heartbeats, wake-ups, scheduler, retention
    database      where transactions begin, end and are retried
    operations    what one transaction does
    store         the SQL, a module for each table
    dialects      every difference between databases
    model         values and decisions, without SQL, clock or threads
    reports       what people look at: descriptions, diagnoses
    schema        the tables
    hooks         where tests and telemetry attach
    errors        every error that the library raises on purpose
    testing       failpoints, and a clock that tests control
    verify        the promises put to the test, by runs under faults
    prometheus    lag, rates and problems as metrics; opentelemetry: spans

Imports point down only. ``sqlmq.migrate`` makes the tables, ``sqlmq.cli`` is the command. docs/architecture.md walks a
message through all of it.

Names are imported when they are first used. So the command hears signals before it imports the database's libraries, which
takes some tenths of a second.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlmq import errors, migrate
    from sqlmq.admin.admin import Admin
    from sqlmq.admin.parked import Parked
    from sqlmq.aio import AsyncAdmin, AsyncConsumer, AsyncMQ, AsyncParked, AsyncProducer, AsyncTransaction
    from sqlmq.consumer.consumer import Consumer
    from sqlmq.consumer.transaction import Transaction
    from sqlmq.consumer.worker.pool import RunSummary
    from sqlmq.errors import (
        ClosedError,
        DatabaseBusyError,
        DatabaseUnavailableError,
        EvictedError,
        FencedError,
        OutcomeUnknownError,
        SqlmqError,
        UnknownTopicError,
    )
    from sqlmq.hooks.observer import Observer
    from sqlmq.model.message import DelayedMessage, Message, ProducerResult, Publication, ReceivedMessage
    from sqlmq.model.retention import Retention
    from sqlmq.model.retry import Retry
    from sqlmq.mq import MQ
    from sqlmq.producer.producer import Producer
    from sqlmq.reports.descriptions import (
        BlockedKey,
        Eviction,
        GroupDescription,
        MemberDescription,
        ParkedDetails,
        ParkedMessage,
        PartitionDescription,
        PartitionLag,
        PartitionReset,
        RetentionResult,
        TopicDescription,
    )
    from sqlmq.reports.doctor import DoctorLimits
    from sqlmq.reports.problem import Problem

    __version__: str
else:
    from importlib import import_module
    from importlib.util import find_spec

    def __getattr__(name: str) -> object:
        """Import the public *name*, or the module *name*, when it is first used."""
        value: object
        if name == "__version__":
            from importlib.metadata import version

            value = version("sqlmq")
        elif name in _HOMES:
            value = getattr(import_module(f"sqlmq.{_HOMES[name]}"), name)
        elif not name.startswith("_") and find_spec(f"sqlmq.{name}") is not None:
            value = import_module(f"sqlmq.{name}")
        else:
            message = f"module 'sqlmq' has no attribute {name!r}"
            raise AttributeError(message)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})


__all__ = [
    "MQ",
    "Admin",
    "AsyncAdmin",
    "AsyncConsumer",
    "AsyncMQ",
    "AsyncParked",
    "AsyncProducer",
    "AsyncTransaction",
    "BlockedKey",
    "ClosedError",
    "Consumer",
    "DatabaseBusyError",
    "DatabaseUnavailableError",
    "DelayedMessage",
    "DoctorLimits",
    "EvictedError",
    "Eviction",
    "FencedError",
    "GroupDescription",
    "MemberDescription",
    "Message",
    "Observer",
    "OutcomeUnknownError",
    "Parked",
    "ParkedDetails",
    "ParkedMessage",
    "PartitionDescription",
    "PartitionLag",
    "PartitionReset",
    "Problem",
    "Producer",
    "ProducerResult",
    "Publication",
    "ReceivedMessage",
    "Retention",
    "RetentionResult",
    "Retry",
    "RunSummary",
    "SqlmqError",
    "TopicDescription",
    "Transaction",
    "UnknownTopicError",
    "errors",
    "migrate",
]

_HOMES = {
    "MQ": "mq",
    "Admin": "admin.admin",
    "AsyncAdmin": "aio",
    "AsyncConsumer": "aio",
    "AsyncMQ": "aio",
    "AsyncParked": "aio",
    "AsyncProducer": "aio",
    "AsyncTransaction": "aio",
    "BlockedKey": "reports.descriptions",
    "ClosedError": "errors",
    "Consumer": "consumer.consumer",
    "DatabaseBusyError": "errors",
    "DatabaseUnavailableError": "errors",
    "DelayedMessage": "model.message",
    "DoctorLimits": "reports.doctor",
    "EvictedError": "errors",
    "Eviction": "reports.descriptions",
    "FencedError": "errors",
    "GroupDescription": "reports.descriptions",
    "MemberDescription": "reports.descriptions",
    "Message": "model.message",
    "Observer": "hooks.observer",
    "OutcomeUnknownError": "errors",
    "Parked": "admin.parked",
    "ParkedDetails": "reports.descriptions",
    "ParkedMessage": "reports.descriptions",
    "PartitionDescription": "reports.descriptions",
    "PartitionLag": "reports.descriptions",
    "PartitionReset": "reports.descriptions",
    "Problem": "reports.problem",
    "Producer": "producer.producer",
    "ProducerResult": "model.message",
    "Publication": "model.message",
    "ReceivedMessage": "model.message",
    "Retention": "model.retention",
    "RetentionResult": "reports.descriptions",
    "Retry": "model.retry",
    "RunSummary": "consumer.worker.pool",
    "SqlmqError": "errors",
    "TopicDescription": "reports.descriptions",
    "Transaction": "consumer.transaction",
    "UnknownTopicError": "errors",
}
"""The module of each public name that is no module itself."""
