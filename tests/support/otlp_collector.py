"""A collector of traces: a gRPC server of OpenTelemetry's protocol that keeps what it receives."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives spans on a free port.

    Attributes:
        requests: The exports, in the order of their arrival.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self._changed = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",  # milliseconds between exports
        }

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name of the method
        """Keeps an export."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def resources(self) -> list[dict[str, str]]:
        """The attributes of the program that sent each export."""
        return [
            {attribute.key: attribute.value.string_value for attribute in spans.resource.attributes}
            for request in self.requests
            for spans in request.resource_spans
        ]

    @property
    def spans(self) -> list[Any]:
        """The spans, in the order of their arrival."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, name: str) -> Any:
        """Returns a span of this name, once one has arrived."""

        def find() -> Any:
            return next((span for span in self.spans if span.name == name), None)

        with self._changed:
            assert self._changed.wait_for(lambda: find() is not None, timeout=60)
        return find()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()
