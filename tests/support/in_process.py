"""Serves an embedder over gRPC in the process and on the event loop of the test."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from isogloss.v1 import embedding_pb2_grpc
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import Clock, SystemClock
from isogloss_server.engine.admission import Admission, AdmissionLimits
from isogloss_server.engine.backlog import Backlog, Throughput
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.registry import ReadyModel, Registry
from isogloss_server.engine.request import Limits
from isogloss_server.errors import TextWithoutTokensError
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Urgency
from isogloss_server.rpc.server import Server
from isogloss_server.security.keys import KeyRing
from isogloss_server.security.quotas import Quotas
from isogloss_server.security.tls import Certificates
from isogloss_server.settings.declarations import Settings
from isogloss_server.tracing import Tracer

CARD = ModelCard(backend="test", space_id="s-test", dimensions=(4, 2), max_tokens=10)
LIMITS = Limits(max_texts=5000, max_request_bytes=1 << 22, max_response_bytes=1 << 24, max_pairs=1 << 22)


class CountingEmbedder:
    """Returns the row [length, 1, 1, 1] for each text; "!!!" has no tokens. Each call runs `before` first."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.calls: list[list[str]] = []
        self._before = before

    card = CARD

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns rows float32 [n, 4]."""
        self.calls.append(list(texts))
        self._before()
        bad = [row for row, text in enumerate(texts) if text == "!!!"]
        row_errors = {row: TextWithoutTokensError("nothing left") for row in bad}
        rows = np.array([[len(text), 1, 1, 1] for text in texts], np.float32)
        counts = np.array([len(text) for text in texts])
        rows[bad], counts[bad] = 0, 0
        return Embedded(rows=rows, token_counts=counts, row_errors=row_errors, total_tokens=int(counts.sum()))

    def close(self, wait_s: float = 0.0) -> None:
        """Does nothing."""


class GatedEmbedder(CountingEmbedder):
    """An embedder whose calls wait until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self._call_began = asyncio.Event(), asyncio.Condition()

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        self.calls.append(list(texts))
        async with self._call_began:
            self._call_began.notify_all()
        await self.open.wait()
        return Embedded(rows=np.ones((len(texts), 4), np.float32), token_counts=None)

    async def wait_for_calls(self, calls: int) -> None:
        async with self._call_began:
            await self._call_began.wait_for(lambda: len(self.calls) >= calls)


class TruncationRecorder(CountingEmbedder):
    """Offers only the truncations `offered`, and records the truncation of each call in `truncations`."""

    def __init__(self, *offered: Truncation) -> None:
        super().__init__()
        self.truncations: list[Truncation] = []
        self.card = replace(CARD, truncations=offered)

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns rows float32 [n, 4]."""
        self.truncations.append(truncation)
        return await super().embed(texts, input_type, truncation, urgency, allow_partial=allow_partial)


def new_throughput() -> Throughput:
    """Returns the speed of a model, not measured yet."""
    return Throughput(full_units=128, memory_units=4096)


def ready(embedder: Embedder, clock: Clock | None = None, *, rate: float = 0, **limits: Any) -> ReadyModel:
    """Returns the embedder as a loaded model.

    Args:
        embedder: The embedder.
        clock: The clock of its admission.
        rate: Its measured tokens a second; 0 if they are not measured.
        limits: The AdmissionLimits that differ from the defaults.
    """
    throughput = new_throughput()
    throughput.record(1000, 1000 / rate if rate else 0)
    backlog = Backlog(throughput, lanes=1, turn=1)
    admission = Admission("test", embedder.card, AdmissionLimits(**limits), clock or SystemClock(), backlog)
    return ReadyModel(embedder, LIMITS, admission)


def ready_registry(embedder: Embedder, clock: Clock | None = None, **limits: Any) -> Registry:
    """Returns a registry that serves the embedder as model "test"; see `ready`."""
    registry = Registry(["test"])
    registry.get("test").serve(ready(embedder, clock, **limits))
    return registry


@asynccontextmanager
async def stoppable_serving(
    registry: Registry,
    clock: Clock | None = None,
    *,
    cache: Cache | None = None,
    certificates: Certificates | None = None,
    keys: KeyRing | None = None,
    quotas: Quotas | None = None,
    tracer: Tracer | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Any, Callable[[float | None], Awaitable[None]]]]:
    """Serves a registry on a free port; yields the stub, with `stub.channel` and `stub.address`, and `Server.stop`.

    With `certificates`, the stub does not work, because its channel uses plain text.
    """
    clock, executor = clock or SystemClock(), Executor(2)
    for model in registry.models:
        if model.is_loaded:
            model.ready.admission._clock = clock
    pipeline = Pipeline(registry, executor, clock, cache)
    server = Server(
        Settings(port=0, **settings),
        registry,
        pipeline,
        executor,
        clock,
        keys=keys,
        quotas=quotas,
        certificates=certificates,
        tracer=tracer,
    )
    port = await server.start()
    try:
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            stub.channel, stub.address = channel, address
            yield stub, server.stop
    finally:
        await server.stop(None)
        executor.close()


@asynccontextmanager
async def serving(registry: Registry, clock: Clock | None = None, **parts: Any) -> AsyncIterator[Any]:
    """Serves a registry on a free port, with the arguments of `stoppable_serving`; yields the stub."""
    async with stoppable_serving(registry, clock, **parts) as (stub, _):
        yield stub
