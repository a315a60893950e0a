"""The spans and metrics that OpenTelemetry was given in a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sqlmq.opentelemetry import Telemetry, instrument
from tests.support.waiting import until

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Tracer

    from sqlmq import MQ, AsyncMQ


class Recording:
    """Providers of spans and metrics that keep what they were given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self._tracers = TracerProvider()
        self._tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meters = MeterProvider([self._reader])

    def close(self) -> None:
        self._tracers.shutdown()
        self._meters.shutdown()

    @property
    def tracer(self) -> Tracer:
        """The application's own tracer."""
        return self._tracers.get_tracer("application")

    def of(self, mq: MQ | AsyncMQ) -> Telemetry:
        """Record what *mq* does."""
        return instrument(mq, tracer_provider=self._tracers, meter_provider=self._meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Return the spans of *name* that have ended, in that order."""
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        """Return the only span of *name*, when it has ended: the span of a future ends in another thread."""
        until(lambda: bool(self.spans(name)), f"a span {name!r}")
        (span,) = self.spans(name)
        return span

    def points(self, metric: str) -> list[tuple[dict[str, Any], Any]]:
        """Return attributes and data point of each series of *metric*."""
        data = self._reader.get_metrics_data()
        return [
            (dict(point.attributes or {}), point)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]

    def count(self, metric: str, **attributes: str) -> int:
        """Return how much *metric* has counted, or how often it was recorded, with exactly *attributes* besides the common ones."""
        names = {name.replace("_", "."): value for name, value in attributes.items()}
        return sum(
            point.value if hasattr(point, "value") else point.count
            for found, point in self.points(metric)
            if names.items() <= found.items() and ("error.type" in found) == ("error.type" in names)
        )


def follows(later: ReadableSpan, earlier: ReadableSpan) -> bool:
    """Whether *earlier* is the parent of *later*."""
    return later.parent is not None and later.parent.span_id == earlier.context.span_id


def linked(span: ReadableSpan) -> set[int]:
    """The ids of the spans that *span* is linked to."""
    return {link.context.span_id for link in span.links}
