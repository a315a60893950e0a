"""The faces of the queue for asyncio: the same methods, awaited.

Each stands before an object of the synchronous core and has no logic of its own: `threads` has the core's short units
of work run where the loop does not wait for them, `consumer` does the waiting between two of them in the loop.
"""

from sqlmq.aio.consumer import AsyncConsumer
from sqlmq.aio.mq import AsyncMQ
from sqlmq.aio.parked import AsyncParked
from sqlmq.aio.producer import AsyncProducer
from sqlmq.aio.transaction import AsyncTransaction

__all__ = ["AsyncConsumer", "AsyncMQ", "AsyncParked", "AsyncProducer", "AsyncTransaction"]
