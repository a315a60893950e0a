"""OpenTelemetry: spans and metrics of what an MQ sends and handles, with traces that continue across the queue.

Call ``instrument(mq)`` once, where the MQ is made. Needs the API, ``pip install 'sqlmq[opentelemetry]'``; without its
SDK nothing is recorded. Names and attributes follow the semantic conventions for messaging:
https://opentelemetry.io/docs/specs/semconv/messaging/
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from sqlmq.errors import MissingDependencyError
from sqlmq.hooks.error_text import type_name
from sqlmq.model.message import Message, ProducerResult, ReceivedMessage

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind, StatusCode
except ModuleNotFoundError as error:
    raise MissingDependencyError("OpenTelemetry's API", "opentelemetry") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from opentelemetry.metrics import Counter, Histogram, Meter, MeterProvider
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider
    from sqlalchemy import Engine

    from sqlmq.aio import AsyncMQ
    from sqlmq.hooks.observer import Destined, Sent
    from sqlmq.mq import MQ

    Attributes = dict[str, str | int]

_SCHEMA = "https://opentelemetry.io/schemas/1.30.0"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The bounds of the histograms' buckets, as the conventions define them."""


def instrument(
    mq: MQ | AsyncMQ, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Telemetry:
    """Record what *mq* sends and handles from now on; by default with the global providers.

    Applies to existing producers too, but not to a ``run`` that has begun. ``mq.observe(None)`` ends it.
    """
    release = version("sqlmq")
    telemetry = Telemetry(
        trace.get_tracer("sqlmq", release, tracer_provider, _SCHEMA),
        metrics.get_meter("sqlmq", release, meter_provider, _SCHEMA),
        mq.engine,
    )
    mq.observe(telemetry)
    return telemetry


class Telemetry:
    """The ``Observer`` that ``instrument`` creates. Threads and tasks may share it."""

    def __init__(self, tracer: Tracer, meter: Meter, engine: Engine) -> None:
        self._tracer = tracer
        self._system: Attributes = {"messaging.system": "sqlmq"}
        if engine.url.host:
            self._system["server.address"] = engine.url.host
            if engine.url.port:
                self._system["server.port"] = engine.url.port
        self._sent = meter.create_counter(
            "messaging.client.sent.messages", "{message}", "Messages that producers have tried to send."
        )
        self._sending_seconds = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "How long sending took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "Messages that were given to handlers."
        )
        self._handling_seconds = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long handlers took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def send(
        self, topic: str, messages: Sequence[Message], send: Callable[[Sequence[Message]], list[Sent]]
    ) -> list[Sent]:
        """Send *messages*, with the trace in their headers, in a span ``send {topic}``."""
        operation, marked = self._begin_sending(topic, messages)
        with operation.around(contexts.get_current()):
            sent = send(marked)
            operation.span.set_attributes(_places(sent))
        return sent

    def submit(
        self, topic: str, message: Message, submit: Callable[[Message], Future[ProducerResult]]
    ) -> Future[ProducerResult]:
        """Submit a message as ``send`` sends it. The span ends when the message is sent or has failed."""
        operation, (marked,) = self._begin_sending(topic, [message])

        def end(future: Future[ProducerResult]) -> None:
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                operation.span.set_attributes(_places([future.result()]))
            operation.end(error)

        try:
            future = submit(marked)
        except BaseException as error:
            operation.end(error)
            raise
        future.add_done_callback(end)
        return future

    @contextmanager
    def handle(self, group: str, messages: Sequence[ReceivedMessage]) -> Iterator[None]:
        """Wrap the handling of *messages* of one topic by *group* in a span ``process {topic}``.

        ``run`` does it by itself. A loop of your own can use ``with telemetry.handle("billing", [message]):``.
        """
        context = propagate.extract(messages[0].headers, Context()) if len(messages) == 1 else Context()
        attributes = self._common("process", messages[0].topic) | {"messaging.consumer.group.name": group}
        span = self._tracer.start_span(
            f"process {messages[0].topic}",
            context,
            SpanKind.CONSUMER,
            attributes | _places(messages),
            [
                Link(created, {"messaging.message.id": _id(message)})
                for message in messages
                if (created := _created(message)) is not None
            ],
        )
        with _Operation(span, attributes, len(messages), self._consumed, self._handling_seconds).around(context):
            yield

    def _begin_sending(self, topic: str, messages: Sequence[Message]) -> tuple[_Operation, list[Message]]:
        """Start a span and put its context into *messages*, except those that have a context of their own."""
        # A received message that is sent on unchanged has the context of its previous send.
        given = [None if isinstance(message, ReceivedMessage) else _created(message) for message in messages]
        attributes = self._common("send", topic)
        span = self._tracer.start_span(
            f"send {topic}",
            kind=SpanKind.PRODUCER,
            attributes=attributes
            if len(messages) == 1
            else attributes | {"messaging.batch.message_count": len(messages)},
            links=[Link(created) for created in given if created is not None],
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        marked = [
            _with_headers(message, carrier) if created is None and carrier else message
            for message, created in zip(messages, given, strict=True)
        ]
        return _Operation(span, attributes, len(messages), self._sent, self._sending_seconds), marked

    def _common(self, operation: str, topic: str) -> Attributes:
        """Return the attributes that spans and metrics of an *operation* share."""
        return {
            **self._system,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": topic,
        }


class _Operation:
    """A span that has started, and the metrics that are recorded when it ends."""

    def __init__(self, span: Span, attributes: Attributes, messages: int, counter: Counter, seconds: Histogram) -> None:
        self.span = span
        self._attributes = attributes
        self._messages = messages
        self._counter = counter
        self._seconds = seconds
        self._began = time.perf_counter()

    @contextmanager
    def around(self, context: Context) -> Iterator[None]:
        """Make the span the current one, in *context*, and end it after the block."""
        token = contexts.attach(trace.set_span_in_context(self.span, context))
        try:
            yield
        except BaseException as error:
            self.end(error)
            raise
        else:
            self.end(None)
        finally:
            contexts.detach(token)

    def end(self, error: BaseException | None) -> None:
        """End the span. Records only the type of *error*: its message may quote parts of a message or a row."""
        attributes = self._attributes
        if error is not None:
            kind = type_name(error)
            attributes = attributes | {"error.type": kind}
            self.span.add_event("exception", {"exception.type": kind})
            self.span.set_attribute("error.type", kind)
            self.span.set_status(StatusCode.ERROR)
        self._counter.add(self._messages, attributes)
        self._seconds.record(time.perf_counter() - self._began, attributes)
        self.span.end()


def _created(message: Message) -> SpanContext | None:
    """Return the context in which *message* was created, if its headers have one."""
    if not message.headers:
        return None
    created = trace.get_current_span(propagate.extract(message.headers, Context())).get_span_context()
    return created if created.is_valid else None


def _with_headers(message: Message, carrier: Mapping[str, str]) -> Message:
    """Return a copy of *message* with the propagators' headers replaced by those of *carrier*."""
    own = propagate.get_global_textmap().fields
    kept = {name: text for name, text in message.headers.items() if name not in own}
    return Message(message.value, message.key, kept | dict(carrier))


def _places(messages: Sequence[ReceivedMessage] | Sequence[Destined]) -> Attributes:
    """Return the attributes of where *messages* are, as far as it is known, and how many they are."""
    attributes: Attributes = {}
    partitions = {message.partition for message in messages}
    if len(partitions) == 1:
        attributes["messaging.destination.partition.id"] = str(partitions.pop())
    if len(messages) != 1:
        attributes["messaging.batch.message_count"] = len(messages)
    elif isinstance(messages[0], ReceivedMessage | ProducerResult):
        attributes["messaging.message.id"] = _id(messages[0])
        attributes["messaging.sqlmq.message.offset"] = messages[0].offset
    return attributes


def _id(message: ReceivedMessage | ProducerResult) -> str:
    return f"{message.topic}/{message.partition}@{message.offset}"
