"""Calls of the `soak` workload that must succeed; each function checks the response."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss import AsyncClient, Client, Vectors

from benchmarks import workloads

SERVICE = "isogloss.v1.EmbeddingService"
ELEMENT_TYPES = ("float32", "float16", "int8", "uint8", "ubinary", "binary")
METRICS = ("cosine", "dot", "euclidean", "manhattan")
KNOWN_TEXTS = ("Good morning", "おはようございます", "Where is the station?")


class WrongResponseError(Exception):
    """A response that does not match its request."""


def check(condition: bool, subject: str) -> None:  # noqa: FBT001 - like an assertion
    """Raises WrongResponseError unless the condition holds."""
    if not condition:
        raise WrongResponseError(subject)


@dataclass(slots=True)
class Context:
    """Clients, models and counters that the callers of one process share.

    Attributes:
        models: Names of the served models, the slow model first.
        known: The bytes of the vectors of KNOWN_TEXTS by model.
        embedded_texts: Texts embedded since the last report.
        interactive_ms: Latencies of interactive calls since the last report.
    """

    address: str
    models: Sequence[str]
    known: dict[str, bytes]
    random: random.Random
    client: AsyncClient
    blocking: Client
    channel: grpc.aio.Channel
    texts: list[str] = field(default_factory=lambda: workloads.texts(workloads.WORKLOADS["batch"], 4_000))
    embedded_texts: int = 0
    interactive_ms: list[float] = field(default_factory=list)

    def sample(self, minimum: int, maximum: int) -> list[str]:
        """Returns a random number of random texts."""
        return self.random.sample(self.texts, self.random.randint(minimum, maximum))

    def any_model(self) -> str:
        """Returns a random model."""
        return self.random.choice(self.models)

    def raw(self, method: str, kind: str = "unary_unary") -> Any:
        """Returns a callable for a method of the service that sends and returns bytes."""
        return getattr(self.channel, kind)(f"/{SERVICE}/{method}")


async def interactive(context: Context) -> None:
    """Embeds a few texts with interactive priority and records the latency."""
    texts, loop = context.sample(1, 3), asyncio.get_running_loop()
    start_s = loop.time()
    response = await context.client.embed(texts, model=context.models[0])
    context.interactive_ms.append((loop.time() - start_s) * 1000)
    check(response.vectors.shape[0] == len(texts), "rows of embed")
    check(bool(np.allclose(np.linalg.norm(response.vectors, axis=1), 1, atol=1e-3)), "unit length")
    context.embedded_texts += len(texts)


async def batch(context: Context) -> None:
    """Embeds a batch with a random priority and element type."""
    texts, element_type = context.sample(4, 32), context.random.choice(ELEMENT_TYPES)
    response = await context.client.embed(
        texts,
        model=context.any_model(),
        element_type=element_type,
        priority=context.random.choice(("bulk", "interactive")),
        input_type=context.random.choice(("query", "document")),
    )
    check(len(response.elements) == len(texts) == len(response.token_counts), f"rows of {element_type}")
    context.embedded_texts += len(texts)


async def known(context: Context) -> None:
    """Embeds the known texts in a batch with others; their vectors must be bit-identical to those without others."""
    for model, expected in context.known.items():
        others = context.sample(1, 6)
        response = await context.client.embed([*others, *KNOWN_TEXTS], model=model)
        check(response.vectors[len(others) :].tobytes() == expected, f"bits of the known texts of {model}")
        context.embedded_texts += len(others) + len(KNOWN_TEXTS)


async def partial(context: Context) -> None:
    """Embeds texts with allow_partial, one of which has no tokens."""
    texts = context.sample(2, 6)
    bad = context.random.randrange(len(texts))
    texts[bad] = "  "
    response = await context.client.embed(texts, model=context.any_model(), allow_partial=True)
    check([error.row for error in response.row_errors] == [bad], "the row that failed")
    check(not response.vectors[bad].any(), "zeros for the row that failed")
    context.embedded_texts += len(texts) - 1


async def blocking(context: Context) -> None:
    """Embeds with the blocking client on a thread."""
    texts = context.sample(1, 4)
    response = await asyncio.to_thread(context.blocking.embed, texts, model=context.any_model())
    check(response.vectors.shape[0] == len(texts), "rows of the blocking client")
    context.embedded_texts += len(texts)


async def many(context: Context) -> None:
    """Embeds many texts through embed_many; one call in three reads slowly."""
    model = context.any_model()
    texts = context.sample(40, 80) if model == context.models[0] else context.sample(200, 800)
    slow_s, row = context.random.choice((0, 0, 0.15)), 0
    async with aclosing(
        context.client.embed_many(texts, model=model, chunk_texts=context.random.choice((16, 64)))
    ) as chunks:
        async for chunk in chunks:
            check(chunk.start == row, "order of embed_many")
            row += len(chunk)
            await asyncio.sleep(slow_s)
    check(row == len(texts), "rows of embed_many")
    context.embedded_texts += row


async def similarity(context: Context) -> None:
    """Calls similarity, pairwise and nearest with a random metric, with candidates as texts or as vectors."""
    model, metric = context.any_model(), context.random.choice(METRICS)
    queries, candidates = context.sample(2, 5), context.sample(5, 9)
    response = await context.client.embed(candidates, model=model)
    sides: tuple[list[str], Vectors] = (candidates, Vectors(response.vectors, space_id=response.space_id))
    side = context.random.choice(sides)
    scores = await context.client.similarity(queries, side, model=model, metric=metric)
    check(scores.values.shape == (len(queries), len(candidates)), "shape of similarity")
    pairs = await context.client.pairwise(sides[1], candidates, model=model, metric=metric)
    check(len(pairs.values) == len(candidates), "number of pairs")
    best = await context.client.nearest(queries[0], side, model=model, metric=metric, k=3)
    lists = await context.client.nearest_many(queries, side, model=model, metric=metric, k=100)
    check(len(best) == 3, "number of neighbours")
    check([len(hits) for hits in lists] == [len(candidates)] * len(queries), "all neighbours")
    context.embedded_texts += 3 * len(candidates) + 3 * len(queries)


async def state(context: Context) -> None:
    """Calls Health and ListModels, and Check and List of grpc.health.v1."""
    report = await context.client.health()
    check([model.model for model in report.models] == list(context.models), "models of Health")
    check([model.name for model in await context.client.models()] == list(context.models), "models of ListModels")
    stub: Any = health_pb2_grpc.HealthStub(context.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    check(response.status == health_pb2.HealthCheckResponse.SERVING, "Check")
    check(len((await stub.List(health_pb2.HealthListRequest())).statuses) == 2 + len(context.models), "List")


async def watch(context: Context) -> None:
    """Opens a Watch of grpc.health.v1 and cancels it within a second."""
    stub: Any = health_pb2_grpc.HealthStub(context.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service=context.any_model()))
    check((await call.read()).status == health_pb2.HealthCheckResponse.SERVING, "Watch")
    await asyncio.sleep(context.random.uniform(0, 1))
    call.cancel()


async def reflection(context: Context) -> None:
    """Lists the services through reflection and reads the file of one."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(context.channel)
    requests = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    )
    responses = [response async for response in stub.ServerReflectionInfo(iter(requests))]
    names = [service.name for service in responses[0].list_services_response.service]
    check(SERVICE in names, "services of reflection")
    check(bool(responses[1].file_descriptor_response.file_descriptor_proto), "file of reflection")


async def reconnect(context: Context) -> None:
    """Makes one call with a new client."""
    async with AsyncClient(context.address) as client:
        texts = context.sample(1, 2)
        check(len(await client.embed(texts, model=context.models[1])) == len(texts), "rows of a new client")
    context.embedded_texts += len(texts)
