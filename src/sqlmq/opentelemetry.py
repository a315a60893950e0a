"""Spans and metrics of what an MQ sends and handles, for OpenTelemetry, and traces that go on from one to the other.

``instrument(mq)`` once, where the MQ is made. Needs the API, ``pip install 'sqlmq[opentelemetry]'``; without its SDK
nothing is recorded. Names and attributes are those of the semantic conventions for messaging:
https://opentelemetry.io/docs/specs/semconv/messaging/
"""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import context as contexts
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, StatusCode

from sqlmq.model.message import Message, ProducerResult

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
"""Bounds of the histograms' buckets, as the conventions ask for them."""


def instrument(
    mq: MQ | AsyncMQ, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> Telemetry:
    """Have OpenTelemetry told of what *mq* sends and handles from now on; the providers are the global ones by default.

    Producers that are made already are told of too, runs that have begun are not. ``mq.observe(None)`` ends it.
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
    """Tells OpenTelemetry what an MQ does: its ``Observer``. Made by ``instrument``; may be shared by threads and tasks."""

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
        """As ``send``; the span ends when the message is sent, or will not be."""
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
    def handle(self, group: str, messages: Sequence[Message]) -> Iterator[None]:
        """Stand around the handling of *messages* of one topic by *group*, with a span ``process {topic}``.

        ``run`` does so by itself; a loop of your own can: ``with telemetry.handle("billing", [message]):``.
        """
        context = propagate.extract(messages[0].headers, Context()) if len(messages) == 1 else Context()
        told = self._common("process", messages[0].topic or "") | {"messaging.consumer.group.name": group}
        span = self._tracer.start_span(
            f"process {messages[0].topic}",
            context,
            SpanKind.CONSUMER,
            told | _places(messages),
            [
                Link(created, {"messaging.message.id": _id(message)})
                for message in messages
                if (created := _created(message)) is not None
            ],
        )
        with _Operation(span, told, len(messages), self._consumed, self._handling_seconds).around(context):
            yield

    def _begin_sending(self, topic: str, messages: Sequence[Message]) -> tuple[_Operation, list[Message]]:
        """Begin a span, and put its context into *messages*, but for those that were given one when they were made."""
        # What has arrived, and goes out again as it is, has the context of the time before.
        given = [_created(message) if message.offset is None else None for message in messages]
        told = self._common("send", topic)
        span = self._tracer.start_span(
            f"send {topic}",
            kind=SpanKind.PRODUCER,
            attributes=told if len(messages) == 1 else told | {"messaging.batch.message_count": len(messages)},
            links=[Link(created) for created in given if created is not None],
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        marked = [
            _with_headers(message, carrier) if created is None and carrier else message
            for message, created in zip(messages, given, strict=True)
        ]
        return _Operation(span, told, len(messages), self._sent, self._sending_seconds), marked

    def _common(self, operation: str, topic: str) -> Attributes:
        """What both spans and metrics tell of an *operation*."""
        return {
            **self._system,
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": topic,
        }


class _Operation:
    """A span that has begun, and the metrics that tell the same when it ends."""

    def __init__(self, span: Span, told: Attributes, messages: int, counter: Counter, seconds: Histogram) -> None:
        self.span = span
        self._told = told
        self._messages = messages
        self._counter = counter
        self._seconds = seconds
        self._began = time.perf_counter()

    @contextmanager
    def around(self, context: Context) -> Iterator[None]:
        """Have the span be the current one, in *context*, and end with what is done inside."""
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
        """End the span. Of an *error* only the type is told: its message may quote what a message or a row holds."""
        told = self._told
        if error is not None:
            kind = type(error).__qualname__
            told = told | {"error.type": kind}
            self.span.add_event("exception", {"exception.type": kind})
            self.span.set_attribute("error.type", kind)
            self.span.set_status(StatusCode.ERROR)
        self._counter.add(self._messages, told)
        self._seconds.record(time.perf_counter() - self._began, told)
        self.span.end()


def _created(message: Message) -> SpanContext | None:
    """The context in which *message* was made, if its headers tell."""
    if not message.headers:
        return None
    created = trace.get_current_span(propagate.extract(message.headers, Context())).get_span_context()
    return created if created.is_valid else None


def _with_headers(message: Message, carrier: Mapping[str, str]) -> Message:
    """A copy of *message* that has the headers of *carrier*, and of the propagators' own no others."""
    own = propagate.get_global_textmap().fields
    kept = {name: text for name, text in message.headers.items() if name not in own}
    return Message(message.value, message.key, kept | dict(carrier))


def _places(messages: Sequence[Message] | Sequence[Destined]) -> Attributes:
    """Where *messages* are, as far as that is known, and how many they are."""
    told: Attributes = {}
    partitions = {message.partition for message in messages}
    if len(partitions) == 1:
        told["messaging.destination.partition.id"] = str(partitions.pop())
    if len(messages) != 1:
        told["messaging.batch.message_count"] = len(messages)
    elif isinstance(messages[0], Message | ProducerResult) and messages[0].offset is not None:
        told["messaging.message.id"] = _id(messages[0])
        told["messaging.sqlmq.message.offset"] = messages[0].offset
    return told


def _id(message: Message | ProducerResult) -> str:
    return f"{message.topic}/{message.partition}@{message.offset}"
