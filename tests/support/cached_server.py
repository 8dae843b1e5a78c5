"""A real server before a real Redis, and what it tells of both."""

import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.server_process import ServerProcess

PATIENT_MS = "5000"


class Face:
    """A server's stub, metrics and lines."""

    def __init__(self, process: ServerProcess, stub: Any, metrics: str) -> None:
        self.process = process
        self.stub = stub
        self._metrics = metrics

    def embed(self, texts: Sequence[str]) -> pb.EmbedResponse:
        """Returns an answer."""
        answer: pb.EmbedResponse = self.stub.Embed(pb.EmbedRequest(texts=texts), timeout=60)
        return answer

    def health(self) -> tuple[str, str]:
        """Returns the model's status and detail."""
        model = self.stub.Health(pb.HealthRequest()).models[0]
        return pb.ServingStatus.Name(model.status).removeprefix("SERVING_STATUS_"), model.detail

    def is_degraded(self) -> bool:
        """Returns True if health is DEGRADED because of the shared cache."""
        status, detail = self.health()
        assert status in {"DEGRADED", "SERVING"}
        assert ("shared cache unavailable: " in detail) == (status == "DEGRADED")
        return status == "DEGRADED"

    def counted(self, sample: str) -> float:
        """Returns the value of one line of the metrics."""
        with urllib.request.urlopen(self._metrics) as page:
            lines = page.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample)), 0.0)


@contextmanager
def serving(url: str, *flags: str, timeout_ms: str = PATIENT_MS) -> Iterator[Face]:
    """Runs a server that keeps nothing itself, so that Redis is asked each time."""
    given = ["--cache-bytes", "0", "--cache-redis-timeout-ms", timeout_ms, "--metrics-port", "0", *flags]
    with ServerProcess(*given, env={"ISOGLOSS_CACHE_REDIS_URL": url}) as process:
        metrics = str(process.wait_for("serving metrics")["url"])
        with grpc.insecure_channel(process.address) as channel:
            yield Face(process, embedding_pb2_grpc.EmbeddingServiceStub(channel), metrics)
