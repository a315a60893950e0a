"""A message queue that lives in the SQL database you already have.

    MQ                          a database, its topics, and what is made from it            mq
     ├── Producer               messages in                                                 producer, coalescer, outbox
     ├── Consumer               messages out, for a group                                   consumer, stock, ownership
     └── AsyncMQ, ...           the same, for asyncio                                       aio
          │
    transactions                where they begin and end, and are tried again               database
          │
    verbs                       what one transaction does                                   flows
          │
    nouns                       the SQL, a module for each family of tables                 store
          │
    databases                   everything in which they differ                             dialects
          │
    plain values                decisions without SQL, clock or threads                     assignment, progress, ...

Imports point down only. ``sqlmq.migrate`` makes the tables, ``sqlmq.cli`` is the command. docs/architecture.md walks a
message through all of it.
"""

from importlib.metadata import version

from sqlmq import migrate
from sqlmq.admin.parked import Parked
from sqlmq.aio import AsyncConsumer, AsyncMQ, AsyncParked, AsyncProducer, AsyncTransaction
from sqlmq.consumer.consumer import Consumer
from sqlmq.consumer.transaction import Transaction
from sqlmq.consumer.worker.pool import RunSummary
from sqlmq.errors import (
    ClosedError,
    ConsumerClosedError,
    DatabaseBusyError,
    DatabaseDamagedError,
    DatabaseError,
    DatabaseFullError,
    DatabaseUnavailableError,
    EvictedError,
    FencedError,
    ForkedError,
    GroupInUseError,
    InvalidGroupError,
    InvalidMessageError,
    InvalidOffsetError,
    InvalidPartitionError,
    InvalidTopicError,
    InvalidURLError,
    IsolationError,
    MessageTooLargeError,
    MQClosedError,
    NotOwnedError,
    NotParkedError,
    OffsetGapError,
    OutboxError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ProducerClosedError,
    ReadOnlyDatabaseError,
    SchemaError,
    SchemaMissingError,
    SchemaTooNewError,
    SchemaTooOldError,
    SqlmqError,
    TopicConflictError,
    TransactionError,
    UnknownGroupError,
    UnknownTopicError,
)
from sqlmq.hooks.clock import Clock
from sqlmq.hooks.observer import Observer
from sqlmq.model.message import DelayedMessage, Message, ProducerResult
from sqlmq.model.retention import Retention
from sqlmq.model.retry import Retry
from sqlmq.mq import MQ
from sqlmq.producer.outbox import Publication
from sqlmq.producer.producer import Producer
from sqlmq.reports.descriptions import (
    BlockedKey,
    Eviction,
    GroupDescription,
    GroupPartition,
    MemberDescription,
    ParkedDetails,
    ParkedMessage,
    PartitionDescription,
    PartitionLag,
    PartitionReset,
    RetentionResult,
    TopicDescription,
)
from sqlmq.reports.diagnosis import Finding
from sqlmq.reports.doctor import DoctorLimits, Problem

__version__ = version("sqlmq")

__all__ = [
    "MQ",
    "AsyncConsumer",
    "AsyncMQ",
    "AsyncParked",
    "AsyncProducer",
    "AsyncTransaction",
    "BlockedKey",
    "Clock",
    "ClosedError",
    "Consumer",
    "ConsumerClosedError",
    "DatabaseBusyError",
    "DatabaseDamagedError",
    "DatabaseError",
    "DatabaseFullError",
    "DatabaseUnavailableError",
    "DelayedMessage",
    "DoctorLimits",
    "EvictedError",
    "Eviction",
    "FencedError",
    "Finding",
    "ForkedError",
    "GroupDescription",
    "GroupInUseError",
    "GroupPartition",
    "InvalidGroupError",
    "InvalidMessageError",
    "InvalidOffsetError",
    "InvalidPartitionError",
    "InvalidTopicError",
    "InvalidURLError",
    "IsolationError",
    "MQClosedError",
    "MemberDescription",
    "Message",
    "MessageTooLargeError",
    "NotOwnedError",
    "NotParkedError",
    "Observer",
    "OffsetGapError",
    "OutboxError",
    "OutcomeUnknownError",
    "Parked",
    "ParkedDetails",
    "ParkedMessage",
    "PartitionDescription",
    "PartitionLag",
    "PartitionReset",
    "PermissionDeniedError",
    "Problem",
    "Producer",
    "ProducerClosedError",
    "ProducerResult",
    "Publication",
    "ReadOnlyDatabaseError",
    "Retention",
    "RetentionResult",
    "Retry",
    "RunSummary",
    "SchemaError",
    "SchemaMissingError",
    "SchemaTooNewError",
    "SchemaTooOldError",
    "SqlmqError",
    "TopicConflictError",
    "TopicDescription",
    "Transaction",
    "TransactionError",
    "UnknownGroupError",
    "UnknownTopicError",
    "migrate",
]
