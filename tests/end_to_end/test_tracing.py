"""Traces over the wire: a server that exports to a collector, clients that send their context, and wrong settings."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import isogloss
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from tests.support.otlp_collector import Collector
from tests.support.server_process import ServerProcess

EMBED = "isogloss.v1.EmbeddingService/Embed"
CONTEXT = SpanContext(
    0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "1")])
)
TRACEPARENT = f"00-{0xABC:032x}-{0xDEF:016x}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that receives spans."""
    with Collector() as collector:
        yield collector


def test_a_server_exports_the_spans_of_calls_by_otlp(collector: Collector) -> None:
    """With --tracing, spans go to the collector that OpenTelemetry's variables name; the stop exports the rest."""
    environment = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with ServerProcess("--tracing", env=environment) as server:
        with isogloss.Client(server.address) as client, trace.use_span(NonRecordingSpan(CONTEXT)):
            client.embed(["one"])
        assert collector.requests == []
        assert server.stop() == 0
    [call] = [span for span in collector.spans if span.name == EMBED]
    assert (int.from_bytes(call.trace_id), int.from_bytes(call.parent_span_id)) == (0xABC, 0xDEF)
    parts = {span.name for span in collector.spans if span.parent_span_id == call.span_id}
    assert parts == {"admission", "tokenization", "inference"}
    [resource] = collector.resources
    assert (resource["service.name"], resource["service.version"]) == ("isogloss-server", isogloss.__version__)


def test_variables_of_opentelemetry_name_the_service_and_choose_the_sampler(collector: Collector) -> None:
    """OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_TRACES_SAMPLER have effect."""
    environment = {
        **collector.environment,
        "OTEL_SERVICE_NAME": "vectors",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
    }
    with ServerProcess("--tracing", env=environment) as server, isogloss.Client(server.address) as client:
        client.embed(["one"])
        with trace.use_span(NonRecordingSpan(CONTEXT)):
            client.embed(["two"])
        server.stop()
    assert [int.from_bytes(span.trace_id) for span in collector.spans if span.name == EMBED] == [0xABC]
    assert collector.resources[0]["service.name"] == "vectors"
    assert collector.resources[0]["deployment.environment.name"] == "test"


def test_a_collector_that_is_not_reached_delays_no_call_and_no_stop() -> None:
    """Without a collector, calls succeed, and the server drains and stops with status 0."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "10",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "600",
    }
    with ServerProcess("--tracing", env=environment) as server:
        with isogloss.Client(server.address) as client:
            assert client.embed(["one"]).vectors.shape[0] == 1
        assert server.stop() == 0


def test_without_the_setting_nothing_of_opentelemetry_is_imported() -> None:
    """A server that records no traces does not import the packages, whatever OpenTelemetry's variables say."""
    program = """
import sys
from isogloss_server.settings.declarations import Settings
import isogloss_server.app
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_client_without_opentelemetry_imports_nothing_of_it() -> None:
    """The client does not import OpenTelemetry, though it is installed, and sends no trace context."""
    program = """
import sys
import isogloss
from isogloss import _base_client
assert _base_client.trace_context() == ()
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_EXPORTER_OTLP_COMPRESSION", "swordfish"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "swordfish")],
)
def test_an_invalid_variable_of_opentelemetry_is_an_error_at_the_start(variable: str, value: str) -> None:
    """The server does not start, and the error names the variables, without their values."""
    with ServerProcess("--tracing", env={variable: value}) as server:
        assert server.wait() == 1
    [line] = [line for line in server.lines if line.startswith("isogloss-server: ")]
    assert "cannot set up tracing" in line
    assert "OTEL_" in line
    assert "swordfish" not in "".join(server.lines)


class Recorder(embedding_pb2_grpc.EmbeddingServiceServicer):
    """A server that keeps the metadata of its calls, and fails them."""

    def __init__(self) -> None:
        self.metadata: list[list[tuple[str, str]]] = []

    def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Keeps the metadata."""
        return self._record(context)

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """Keeps the metadata."""
        return self._record(context)

    def _record(self, context: Any) -> Any:
        self.metadata.append([(key, value) for key, value in context.invocation_metadata()])
        return context.abort(grpc.StatusCode.INVALID_ARGUMENT, "recorded")

    def traces(self) -> list[list[str]]:
        """Returns the values of traceparent and tracestate of each call."""
        return [
            [value for key, value in sorted(pairs) if key in {"traceparent", "tracestate"}] for pairs in self.metadata
        ]


@pytest.fixture
def recorder() -> Iterator[tuple[Recorder, str]]:
    """A server that records metadata, and its address."""
    from concurrent.futures import ThreadPoolExecutor

    server, recorder = grpc.server(ThreadPoolExecutor(1)), Recorder()
    embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(recorder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield recorder, f"127.0.0.1:{port}"
    server.stop(None).wait()


def embed(address: str) -> None:
    with isogloss.Client(address) as client:
        client.embed(["one"])


def embed_asyncio(address: str) -> None:
    async def run() -> None:
        async with isogloss.AsyncClient(address) as client:
            await client.embed(["one"])

    asyncio.run(run())


def embed_many(address: str) -> None:
    with isogloss.Client(address) as client:
        list(client.embed_many(["one"]))


CALLS = pytest.mark.parametrize("call", [embed, embed_asyncio, embed_many])


@CALLS
def test_a_client_sends_the_context_of_the_current_span(
    recorder: tuple[Recorder, str], call: Callable[[str], None]
) -> None:
    """Each request of a client has the trace context of the span that is current when it is sent."""
    with trace.use_span(NonRecordingSpan(CONTEXT)), pytest.raises(isogloss.IsoglossError):
        call(recorder[1])
    assert recorder[0].traces()[0] == [TRACEPARENT, "vendor=1"]


@CALLS
def test_a_client_without_a_current_span_sends_no_context(
    recorder: tuple[Recorder, str], call: Callable[[str], None]
) -> None:
    """Without a span, a client sends neither traceparent nor tracestate."""
    with pytest.raises(isogloss.IsoglossError):
        call(recorder[1])
    assert recorder[0].traces()[0] == []


@pytest.mark.parametrize(
    ("instrumentor", "call"), [(GrpcInstrumentorClient, embed), (GrpcAioInstrumentorClient, embed_asyncio)]
)
def test_the_instrumentation_of_grpc_puts_its_span_in_place_of_the_clients_context(
    recorder: tuple[Recorder, str],
    instrumentor: Any,
    call: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With OpenTelemetry's own instrumentation, a request has one context, which is of the instrumentation's span."""
    from opentelemetry.sdk.trace import TracerProvider

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider())
    instrumentor().instrument()
    try:
        with trace.use_span(NonRecordingSpan(CONTEXT)), pytest.raises(isogloss.IsoglossError):
            call(recorder[1])
    finally:
        instrumentor().uninstrument()
    [[parent, state]] = recorder[0].traces()
    assert parent.startswith(f"00-{0xABC:032x}-")
    assert parent != TRACEPARENT
    assert state == "vendor=1"
