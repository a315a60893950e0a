"""The same queue for asyncio: the same methods, awaited. No logic of its own.

mq           `AsyncMQ`
admin        `AsyncAdmin`, `AsyncTail`, `AsyncParked`: what operators do
producer     `AsyncProducer`: futures of the batcher, awaited
consumer     `AsyncConsumer`: the steps of a consumer's core in threads, the waits in the event loop
transaction  `AsyncTransaction`: the steps of a transaction, on a driver for asyncio
executor     calls a handler in the event loop, for worker threads
engines      engines for asyncio: the one given, or one for each event loop
futures      futures of the core, resolved together in an event loop
threads      the core's short units of work, run in threads
"""

from sqlmq.aio.admin import AsyncAdmin, AsyncParked
from sqlmq.aio.consumer import AsyncConsumer
from sqlmq.aio.mq import AsyncMQ
from sqlmq.aio.producer import AsyncProducer
from sqlmq.aio.transaction import AsyncTransaction

__all__ = ["AsyncAdmin", "AsyncConsumer", "AsyncMQ", "AsyncParked", "AsyncProducer", "AsyncTransaction"]
