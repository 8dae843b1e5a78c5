"""A real server with a real Redis, its health and its metrics."""

import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess

LONG_TIMEOUT_MS = "5000"


class CachedServer:
    """The process, the stub and the metrics of a server."""

    def __init__(self, process: ServerProcess, stub: Any, metrics: str) -> None:
        self.process = process
        self.stub = stub
        self._metrics = metrics

    def embed(self, texts: Sequence[str]) -> pb.EmbedResponse:
        """Returns the response of an Embed."""
        response: pb.EmbedResponse = self.stub.Embed(pb.EmbedRequest(texts=texts), timeout=60)
        return response

    def health(self) -> tuple[str, str]:
        """Returns the status and the detail of the model."""
        model = self.stub.Health(pb.HealthRequest()).models[0]
        return pb.ServingStatus.Name(model.status).removeprefix("SERVING_STATUS_"), model.detail

    def is_degraded(self) -> bool:
        """Returns whether health reports that the shared cache is unavailable."""
        status, detail = self.health()
        assert status in {"DEGRADED", "SERVING"}
        assert ("shared cache unavailable: " in detail) == (status == "DEGRADED")
        return status == "DEGRADED"

    def metric(self, sample: str) -> float:
        """Returns the value of the first sample whose line begins with `sample`, or 0."""
        with urllib.request.urlopen(self._metrics) as page:
            lines = page.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample)), 0.0)


@contextmanager
def serving(url: str, *flags: str, timeout_ms: str = LONG_TIMEOUT_MS) -> Iterator[CachedServer]:
    """Yields a server without a cache of its own, so that each request is looked up in Redis."""
    arguments = ["--cache-bytes", "0", "--cache-redis-timeout-ms", timeout_ms, "--metrics-port", "0", *flags]
    with ServerProcess(*arguments, env={"ISOGLOSS_CACHE_REDIS_URL": url}) as process:
        metrics = str(process.wait_for("serving metrics")["url"])
        with grpc.insecure_channel(process.address) as channel:
            yield CachedServer(process, embedding_pb2_grpc.EmbeddingServiceStub(channel), metrics)
