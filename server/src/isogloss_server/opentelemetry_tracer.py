"""The tracer of OpenTelemetry: spans by its conventions, exported by OTLP over gRPC. The only importer of its packages.

OpenTelemetry's own variables configure it, such as OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER,
OTEL_RESOURCE_ATTRIBUTES and OTEL_BSP_MAX_QUEUE_SIZE: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import logging
import threading
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Span as LibrarySpan
from opentelemetry.trace import Tracer as LibraryTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from isogloss_server._version import __version__
from isogloss_server.tracing import Attributes, Span

SERVICE = "isogloss-server"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.45.0"  # the first version in which the conventions of RPC are stable
FLUSH_S = 2.0  # time for the spans that wait at the end of the process
NS = 1_000_000_000
logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)  # its warnings quote headers of callers


class OpenTelemetrySpan:
    """A span of the library, whose times are moments of the server's clock."""

    def __init__(self, tracer: LibraryTracer, span: LibrarySpan, zero_ns: int) -> None:
        """Takes the span, and the time since 1970 that is the moment 0 of the clock."""
        self._tracer = tracer
        self._span = span
        self._zero_ns = zero_ns

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits; an empty string if OTEL_SDK_DISABLED is set."""
        context = self._span.get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else ""

    @property
    def is_recorded(self) -> bool:
        """True if the trace is sampled."""
        return self._span.is_recording()

    def start(
        self, name: str, began_s: float, *, links: Sequence[Span] = (), is_call: bool = False
    ) -> "OpenTelemetrySpan":
        """Starts a span for a part of this one; see `tracing.Span`."""
        span = self._tracer.start_span(
            name,
            set_span_in_context(self._span, Context()),
            SpanKind.CLIENT if is_call else SpanKind.INTERNAL,
            links=[Link(link._span.get_span_context()) for link in links if isinstance(link, OpenTelemetrySpan)],  # noqa: SLF001
            start_time=self._time_ns(began_s),
        )
        return OpenTelemetrySpan(self._tracer, span, self._zero_ns)

    def end(self, ended_s: float, attributes: Attributes | None = None, *, error: str = "") -> None:
        """Ends the span; see `tracing.Span`."""
        if attributes:
            self._span.set_attributes(attributes)
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._time_ns(ended_s))

    def _time_ns(self, moment_s: float) -> int:
        return self._zero_ns + round(moment_s * NS)


class OpenTelemetryTracer:
    """Makes spans with OpenTelemetry's SDK."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        """Creates a tracer.

        Args:
            processor: Receives the spans; None stands for a thread that exports them by OTLP.

        Raises:
            ValueError: A variable of OpenTelemetry has an invalid value.
            OSError: A file that a variable names cannot be read.
        """
        given = OTELResourceDetector().detect().attributes  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        own = {"service.name": SERVICE, "service.version": __version__}
        resource = Resource.create({name: value for name, value in own.items() if name not in given})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("isogloss_server", __version__, SCHEMA_URL)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, metadata: Mapping[str, str], began_s: float) -> OpenTelemetrySpan:
        """Starts the span of a call; see `tracing.Tracer`."""
        span = self._tracer.start_span(
            method,
            self._propagator.extract(metadata, Context()),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
        )
        began_ns = getattr(span, "start_time", 0)  # a span that is not sampled has no time
        return OpenTelemetrySpan(self._tracer, span, began_ns - round(began_s * NS))

    def close(self) -> None:
        """Exports the spans that wait, for FLUSH_S at most: an unreachable collector would take half a minute."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
