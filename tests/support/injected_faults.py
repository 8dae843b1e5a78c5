"""Serves a GatedModel over gRPC in the process of the test, for tests that inject faults into the model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.executor import Executor, WatchedExecutor
from isogloss_server.engine.local_embedder import LocalEmbedder
from isogloss_server.engine.monitoring import CHECKS, State
from isogloss_server.engine.registry import Registry
from isogloss_server.models import model_folder, static
from isogloss_server.models.interfaces import Model
from isogloss_server.tracing import Tracer

from tests.support.gated_model import DIMENSIONS, WATCHDOG_S
from tests.support.in_process import new_throughput, ready, serving
from tests.support.manual_clock import ManualClock

CHECK_INTERVAL_S = WATCHDOG_S / CHECKS
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}  # the words of the static folder and their tokens


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a call: the rows, or the status code and the reason of the error."""

    rows: list[list[float]] | None = None
    code: str = "OK"
    reason: str = ""


class ModelServer:
    """A server of one model, and the clock of its watchdog.

    Attributes:
        stub: The stub of the server.
        clock: The clock of the server.
        batcher: The batcher of the model, if it has a queue.
    """

    def __init__(self, stub: Any, registry: Registry, clock: ManualClock, batcher: Batcher | None) -> None:
        self.stub = stub
        self.clock = clock
        self.batcher = batcher
        self._model = registry.get("")
        self._changed = asyncio.Event()
        registry.on_change(self._changed.set)

    async def embed(self, *texts: str, timeout_s: float = 60) -> Outcome:
        """Returns the outcome of an Embed."""
        try:
            response = await self.stub.Embed(pb.EmbedRequest(texts=texts, normalize=False), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Outcome(code=error.code().name, reason=_reason(error))
        matrix = response.embeddings
        return Outcome(np.frombuffer(matrix.data, "<f4").reshape(matrix.rows, matrix.columns).tolist())

    def start_embed(self, *texts: str) -> "asyncio.Task[Outcome]":
        """Starts an Embed and returns its task."""
        return asyncio.ensure_future(self.embed(*texts))

    async def wait_for_state(self, state: State) -> str:
        """Waits until both health services report `state`, and returns the detail."""
        async with asyncio.timeout(60):
            while self._model.health.state is not state:
                self._changed.clear()
                await self._changed.wait()
        health = (await self.stub.Health(pb.HealthRequest())).models[0]
        assert health.status == pb.ServingStatus.Value(f"SERVING_STATUS_{state.name}")
        standard = health_pb2_grpc.HealthStub(self.stub.channel)
        check = await standard.Check(health_pb2.HealthCheckRequest(service="isogloss.v1.EmbeddingService"))
        expected = "SERVING" if state in {State.SERVING, State.DEGRADED} else "NOT_SERVING"
        assert check.status == health_pb2.HealthCheckResponse.ServingStatus.Value(expected)
        return str(health.detail)

    async def wait_for_admitted(self, texts: int) -> None:
        """Waits until at least `texts` texts are admitted: queued, or in inference."""
        await poll(lambda: self._model.queued_texts >= texts)

    async def wait_for_queued(self, texts: int) -> None:
        """Waits until at least `texts` texts are in the batch queue."""
        await poll(lambda: self.batcher is not None and self.batcher.waiting_texts >= texts)

    async def run_checks(self, checks: int = 1) -> None:
        """Advances the clock until the watchdog has made `checks` checks."""
        for _ in range(checks):
            before = self.clock.requested_sleeps_s.count(CHECK_INTERVAL_S)
            self.clock.advance(CHECK_INTERVAL_S)
            await poll(lambda before=before: self.clock.requested_sleeps_s.count(CHECK_INTERVAL_S) > before)


async def poll(condition: Callable[[], bool]) -> None:
    """Waits for a condition that no event announces."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def rows_of(*texts: str) -> list[list[float]]:
    """Returns the rows of the gated model for texts of WORDS."""
    tokens = [[WORDS[word] for word in text.split()] for text in texts]
    return [[len(ids), ids[0], sum(ids)] for ids in tokens]


@asynccontextmanager
async def serving_model(
    folder: Path,
    model: Model,
    *,
    queued: bool = True,
    threads: int = 1,
    tokens: int = 100,
    tracer: Tracer | None = None,
) -> AsyncIterator[ModelServer]:
    """Serves `model` with the tokenizer of the static folder: with a batcher, or else on a watched executor."""
    clock, registry = ManualClock(), Registry(["test"])
    parts = static.load(model_folder.locate(str(folder)))
    served = registry.get("test")
    report = served.health.report
    batcher, executor, throughput = None, Executor(1), new_throughput()
    if queued:
        batcher = Batcher(
            model,
            dimensions=DIMENSIONS,
            threads=threads,
            max_batch_tokens=tokens,
            clock=clock,
            watchdog_s=WATCHDOG_S,
            throughput=throughput,
            report=report,
        )
    else:
        executor = WatchedExecutor(threads, WATCHDOG_S, clock, report)
    embedder = LocalEmbedder(
        model, parts.tokenizer, parts.card, {}, executor, clock, throughput=throughput, batcher=batcher, report=report
    )
    served.serve(ready(embedder, clock))
    try:
        async with serving(registry, clock, tracer=tracer) as stub:
            yield ModelServer(stub, registry, clock, batcher)
    finally:
        embedder.close(wait_s=60)
        executor.close()


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    details: Any = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    for packed in status_pb2.Status.FromString(details).details:
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
    return info.reason
