"""The calls of the soak that are to be answered, each held against what was asked for."""

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


class WrongAnswerError(Exception):
    """An answer that is not what was asked for."""


def hold(true: bool, what: str) -> None:  # noqa: FBT001 - as assert
    """Raises WrongAnswerError unless it is true."""
    if not true:
        raise WrongAnswerError(what)


@dataclass(slots=True)
class Shared:
    """What all callers of one process have; `models` begins with the one that is slow, `known` has bytes by model."""

    address: str
    models: Sequence[str]
    known: dict[str, bytes]
    random: random.Random
    client: AsyncClient
    blocking: Client
    channel: grpc.aio.Channel
    texts: list[str] = field(default_factory=lambda: workloads.texts(workloads.WORKLOADS["batch"], 4_000))
    done_texts: int = 0
    interactive_ms: list[float] = field(default_factory=list)

    def some(self, least: int, most: int) -> list[str]:
        """Returns so many texts of the load's."""
        return self.random.sample(self.texts, self.random.randint(least, most))

    def any_model(self) -> str:
        """Returns one of the models."""
        return self.random.choice(self.models)

    def raw(self, method: str, kind: str = "unary_unary") -> Any:
        """Returns what makes calls of bytes."""
        return getattr(self.channel, kind)(f"/{SERVICE}/{method}")


async def interactive(to: Shared) -> None:
    """A few texts for somebody who waits; its latency counts."""
    texts, loop = to.some(1, 3), asyncio.get_running_loop()
    began_s = loop.time()
    found = await to.client.embed(texts, model=to.models[0])
    to.interactive_ms.append((loop.time() - began_s) * 1000)
    hold(found.vectors.shape[0] == len(texts), "rows of embed")
    hold(bool(np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-3)), "unit length")
    to.done_texts += len(texts)


async def batch(to: Shared) -> None:
    """More texts in either lane, of any element type."""
    texts, element_type = to.some(4, 32), to.random.choice(ELEMENT_TYPES)
    found = await to.client.embed(
        texts,
        model=to.any_model(),
        element_type=element_type,
        priority=to.random.choice(("bulk", "interactive")),
        input_type=to.random.choice(("query", "document")),
    )
    hold(len(found.elements) == len(texts) == len(found.token_counts), f"rows of {element_type}")
    to.done_texts += len(texts)


async def known(to: Shared) -> None:
    """The known texts among others: the same bits as alone."""
    for model, expected in to.known.items():
        others = to.some(1, 6)
        found = await to.client.embed([*others, *KNOWN_TEXTS], model=model)
        hold(found.vectors[len(others) :].tobytes() == expected, f"bits of the known texts of {model}")
        to.done_texts += len(others) + len(KNOWN_TEXTS)


async def partial(to: Shared) -> None:
    """Texts of which one cannot be embedded."""
    texts = to.some(2, 6)
    bad = to.random.randrange(len(texts))
    texts[bad] = "  "
    found = await to.client.embed(texts, model=to.any_model(), allow_partial=True)
    hold([error.row for error in found.row_errors] == [bad], "the row that failed")
    hold(not found.vectors[bad].any(), "zeros for the row that failed")
    to.done_texts += len(texts) - 1


async def blocking(to: Shared) -> None:
    """The blocking client, on a thread."""
    texts = to.some(1, 4)
    found = await asyncio.to_thread(to.blocking.embed, texts, model=to.any_model())
    hold(found.vectors.shape[0] == len(texts), "rows of the blocking client")
    to.done_texts += len(texts)


async def many(to: Shared) -> None:
    """A stream of many texts, now and then read slowly."""
    model = to.any_model()
    texts = to.some(40, 80) if model == to.models[0] else to.some(200, 800)
    slow_s, row = to.random.choice((0, 0, 0.15)), 0
    async with aclosing(to.client.embed_many(texts, model=model, chunk_texts=to.random.choice((16, 64)))) as chunks:
        async for chunk in chunks:
            hold(chunk.start == row, "order of embed_many")
            row += len(chunk)
            await asyncio.sleep(slow_s)
    hold(row == len(texts), "rows of embed_many")
    to.done_texts += row


async def similarity(to: Shared) -> None:
    """Every shape and metric, either side as texts or as vectors."""
    model, metric = to.any_model(), to.random.choice(METRICS)
    queries, candidates = to.some(2, 5), to.some(5, 9)
    found = await to.client.embed(candidates, model=model)
    sides: tuple[list[str], Vectors] = (candidates, Vectors(found.vectors, space_id=found.space_id))
    side = to.random.choice(sides)
    scores = await to.client.similarity(queries, side, model=model, metric=metric)
    hold(scores.values.shape == (len(queries), len(candidates)), "shape of similarity")
    pairs = await to.client.pairwise(sides[1], candidates, model=model, metric=metric)
    hold(len(pairs.values) == len(candidates), "number of pairs")
    best = await to.client.nearest(queries[0], side, model=model, metric=metric, k=3)
    lists = await to.client.nearest_many(queries, side, model=model, metric=metric, k=100)
    hold(len(best) == 3, "number of neighbours")
    hold([len(one) for one in lists] == [len(candidates)] * len(queries), "all neighbours")
    to.done_texts += 3 * len(candidates) + 3 * len(queries)


async def state(to: Shared) -> None:
    """Health and ListModels, and grpc.health.v1's Check and List."""
    report = await to.client.health()
    hold([model.model for model in report.models] == list(to.models), "models of Health")
    hold([model.name for model in await to.client.models()] == list(to.models), "models of ListModels")
    stub: Any = health_pb2_grpc.HealthStub(to.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    hold(answer.status == health_pb2.HealthCheckResponse.SERVING, "Check")
    hold(len((await stub.List(health_pb2.HealthListRequest())).statuses) == 2 + len(to.models), "List")


async def watch(to: Shared) -> None:
    """A Watch that is held for a while, then cancelled."""
    stub: Any = health_pb2_grpc.HealthStub(to.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service=to.any_model()))
    hold((await call.read()).status == health_pb2.HealthCheckResponse.SERVING, "Watch")
    await asyncio.sleep(to.random.uniform(0, 1))
    call.cancel()


async def reflection(to: Shared) -> None:
    """Reflection: the services, and the file of one."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(to.channel)
    asked = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    )
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = [one.name for one in answers[0].list_services_response.service]
    hold(SERVICE in names, "services of reflection")
    hold(bool(answers[1].file_descriptor_response.file_descriptor_proto), "file of reflection")


async def reconnect(to: Shared) -> None:
    """A client of its own for one call, closed again."""
    async with AsyncClient(to.address) as client:
        texts = to.some(1, 2)
        hold(len(await client.embed(texts, model=to.models[1])) == len(texts), "rows of a new client")
    to.done_texts += len(texts)
