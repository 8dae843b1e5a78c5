"""Collects the spans of a server in the process of the test."""

from typing import Any

from isogloss_server.opentelemetry_tracer import OpenTelemetryTracer
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """The spans that have ended, and the tracer to give to a server."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OpenTelemetryTracer(SimpleSpanProcessor(self._exporter))

    @property
    def ended(self) -> list[ReadableSpan]:
        """All spans, in the order of their ends."""
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """Returns the spans of this name."""
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> Any:
        """Returns the only span of this name."""
        [span] = self.named(name)
        return span


def is_part_of(span: Any, parent: Any) -> bool:
    """Returns whether a span is a child of another one, in the same trace."""
    child, above = span.get_span_context(), parent.get_span_context()
    return span.parent is not None and (span.parent.span_id, child.trace_id) == (above.span_id, above.trace_id)


def duration_s(span: Any) -> float:
    """Returns the seconds between begin and end."""
    return float(span.end_time - span.start_time) / 1e9
