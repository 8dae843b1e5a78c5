"""A model that the test holds and fails, served over gRPC in the test's own process, with or without a queue."""

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

from tests.support.gated_model import DIMENSIONS, WATCHDOG_S
from tests.support.in_process import ready, serving
from tests.support.own_time import OwnTime

LOOK_S = WATCHDOG_S / CHECKS
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}  # of the static folder, with their tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: rows of a good one, else code and reason."""

    rows: list[list[float]] | None = None
    code: str = "OK"
    reason: str = ""


class Faulty:
    """The server around the model, and the clock that its watch looks at."""

    def __init__(self, stub: Any, registry: Registry, time: OwnTime, batcher: Batcher | None) -> None:
        self.stub = stub
        self.time = time
        self.batcher = batcher
        self._served = registry.get("")
        self._changed = asyncio.Event()
        registry.on_change(self._changed.set)

    async def embed(self, *texts: str, timeout_s: float = 60) -> Answer:
        """Returns what becomes of an Embed."""
        try:
            response = await self.stub.Embed(pb.EmbedRequest(texts=texts, normalize=False), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Answer(code=error.code().name, reason=_reason(error))
        matrix = response.embeddings
        return Answer(np.frombuffer(matrix.data, "<f4").reshape(matrix.rows, matrix.columns).tolist())

    def embedding(self, *texts: str) -> "asyncio.Task[Answer]":
        """Lets a call begin."""
        return asyncio.ensure_future(self.embed(*texts))

    async def until(self, state: State) -> str:
        """Returns the detail once health tells of `state`; both health services have to agree."""
        async with asyncio.timeout(60):
            while self._served.health.state is not state:
                self._changed.clear()
                await self._changed.wait()
        health = (await self.stub.Health(pb.HealthRequest())).models[0]
        assert health.status == pb.ServingStatus.Value(f"SERVING_STATUS_{state.name}")
        standard = health_pb2_grpc.HealthStub(self.stub.channel)
        told = await standard.Check(health_pb2.HealthCheckRequest(service="isogloss.v1.EmbeddingService"))
        ready = state in {State.SERVING, State.DEGRADED}
        assert told.status == health_pb2.HealthCheckResponse.ServingStatus.Value("SERVING" if ready else "NOT_SERVING")
        return str(health.detail)

    async def waiting(self, texts: int) -> None:
        """Returns once so many texts wait for a thread or are at work."""
        await soon(lambda: self._served.queued_texts >= texts)

    async def in_queue(self, texts: int) -> None:
        """Returns once so many texts wait in the model's queue."""
        await soon(lambda: self.batcher is not None and self.batcher.waiting_texts >= texts)

    async def look(self, times: int = 1) -> None:
        """Lets time pass until the watch has looked so often."""
        for _ in range(times):
            looks = self.time.slept_s.count(LOOK_S)
            self.time.pass_s(LOOK_S)
            await soon(lambda before=looks: self.time.slept_s.count(LOOK_S) > before)


async def soon(condition: Callable[[], bool]) -> None:
    """Returns once something is so that nothing tells of."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def rows_of(*texts: str) -> list[list[float]]:
    """Returns what the gated model gives for texts of the static folder's words."""
    tokens = [[WORDS[word] for word in text.split()] for text in texts]
    return [[len(ids), ids[0], sum(ids)] for ids in tokens]


@asynccontextmanager
async def serving_faulty(
    folder: Path, model: Model, *, queued: bool = True, threads: int = 1, tokens: int = 100
) -> AsyncIterator[Faulty]:
    """Serves `model` behind the tokenizer of the static folder; where not `queued`, on watched workers."""
    time, registry = OwnTime(), Registry(["test"])
    parts = static.load(model_folder.locate(str(folder)))
    served = registry.get("test")
    report = served.health.report
    batcher, workers = None, Executor(1)
    if queued:
        batcher = Batcher(
            model,
            dimensions=DIMENSIONS,
            threads=threads,
            max_batch_tokens=tokens,
            clock=time,
            watchdog_s=WATCHDOG_S,
            report=report,
        )
    else:
        workers = WatchedExecutor(threads, WATCHDOG_S, time, report)
    embedder = LocalEmbedder(model, parts.tokenizer, parts.card, {}, workers, time, batcher=batcher, report=report)
    served.serve(ready(embedder, time))
    try:
        async with serving(registry, time) as stub:
            yield Faulty(stub, registry, time, batcher)
    finally:
        embedder.close(wait_s=60)
        workers.close()


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    details: Any = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    for packed in status_pb2.Status.FromString(details).details:
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
    return info.reason
