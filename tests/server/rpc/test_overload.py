"""What callers see of a queue without room: refusals that tell when to come back, streams that are slowed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import InputType, Truncation
from isogloss_server import metrics
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.registry import Registry
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.in_process import CARD, CountingEmbedder, ready_registry, serving

TEXT = "x" * 300  # 90 tokens by the first estimate, were the model's most not 10


class GatedEmbedder(CountingEmbedder):
    """Answers nothing until it is opened; `begun` wakes whoever waits for so many calls."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self._begun = asyncio.Event(), asyncio.Condition()

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
        async with self._begun:
            self._begun.notify_all()
        await self.open.wait()
        return Embedded(rows=np.ones((len(texts), 4), np.float32), token_counts=None)

    async def begun(self, calls: int) -> None:
        async with self._begun:
            await self._begun.wait_for(lambda: len(self.calls) >= calls)


def registry_of(embedder: CountingEmbedder, max_tokens: int, max_bytes: int) -> Registry:
    return ready_registry(embedder, max_tokens=max_tokens, max_bytes=max_bytes, bulk_slots=100)


def refused(error: grpc.aio.AioRpcError) -> tuple[str, float, dict[str, Any]]:
    """Returns an error's reason, the seconds of its RetryInfo, and its trailers."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(retry)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return info.reason, retry.retry_delay.ToMilliseconds() / 1e3, trailers


def refused_so_far() -> float:
    labels = {"model": "test", "priority": "interactive"}
    return metrics.REGISTRY.get_sample_value("isogloss_refused_calls_total", labels) or 0.0


async def refusal(call: Any) -> tuple[str, float, dict[str, Any]]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return refused(error)
    raise AssertionError("it was not refused")


async def test_a_full_queue_answers_at_once_when_to_come_back() -> None:
    """With the queue full a call is refused with OVERLOADED, RetryInfo and a pushback; what was let in is answered."""
    embedder, before = GatedEmbedder(), refused_so_far()
    async with serving(registry_of(embedder, 100, 1 << 20)) as stub:
        inside = [asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 5))) for _ in range(2)]
        await embedder.begun(2)
        reason, retry_s, trailers = await refusal(stub.Embed(pb.EmbedRequest(texts=[TEXT])))
        assert (reason, retry_s, trailers["grpc-retry-pushback-ms"]) == ("OVERLOADED", 1.0, "1000")
        assert (await stub.Health(pb.HealthRequest())).models[0].queued_texts == 10
        assert refused_so_far() == before + 1
        assert metrics.REGISTRY.get_sample_value("isogloss_queue_tokens", {"model": "test"}) == 100
        embedder.open.set()
        assert [len(answer.embeddings.data) for answer in await asyncio.gather(*inside)] == [80, 80]
        await stub.Embed(pb.EmbedRequest(texts=[TEXT]))


async def test_a_caller_whose_deadline_is_sooner_is_told_not_to_retry() -> None:
    """Where RetryInfo lies behind the deadline, the pushback is -1: gRPC would wait for it in vain."""
    embedder = GatedEmbedder()
    async with serving(registry_of(embedder, 100, 1 << 20)) as stub:
        inside = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.begun(1)
        _, _, trailers = await refusal(stub.Embed(pb.EmbedRequest(texts=[TEXT]), timeout=0.9))
        assert trailers["grpc-retry-pushback-ms"] == "-1"
        embedder.open.set()
        await inside


async def test_similarity_needs_room_as_well() -> None:
    """A Similarity is refused like an Embed, by its texts or by its vectors' memory."""
    embedder = GatedEmbedder()
    vectors = pb.VectorList(
        vectors=pb.Matrix(data=bytes(16 * 1000), rows=1000, columns=4, element_type=pb.ELEMENT_TYPE_FLOAT32),
        space_id=CARD.space_id,
    )
    async with serving(registry_of(embedder, 100, 10_000)) as stub:
        inside = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.begun(1)
        sides = pb.Items(texts=pb.TextList(texts=[TEXT]))
        assert (await refusal(stub.Similarity(pb.SimilarityRequest(queries=sides))))[0] == "OVERLOADED"
        few = pb.VectorList(
            vectors=pb.Matrix(data=bytes(16), rows=1, columns=4, element_type=1), space_id=CARD.space_id
        )
        alone = pb.SimilarityRequest(queries=pb.Items(vectors=few))
        assert (await stub.Similarity(alone)).scores.rows == 1  # which has nothing to do with the model
        large = pb.SimilarityRequest(queries=pb.Items(vectors=vectors), nearest=pb.Nearest(k=1))
        assert (await refusal(stub.Similarity(large)))[0] == "OVERLOADED"
        embedder.open.set()
        await inside


async def test_a_stream_is_slowed_and_calls_get_through_beside_it() -> None:
    """A stream's requests wait for room instead of being refused, all are answered, and calls have room meanwhile."""
    embedder = GatedEmbedder()

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(12):
            yield pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=[TEXT], priority=pb.PRIORITY_BULK))

    async with serving(registry_of(embedder, 100, 1 << 20), stream_window_requests=5) as stub:
        stream = stub.EmbedStream(requests())
        await embedder.begun(2)  # 25 tokens are the streams' room
        call = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT])))
        await embedder.begun(3)
        assert len(embedder.calls) == 3
        embedder.open.set()
        answers = [answer async for answer in stream]
        await call
    assert sorted(answer.id for answer in answers) == list(range(12))
    assert {answer.WhichOneof("result") for answer in answers} == {"response"}


async def test_streams_are_refused_where_memory_is_full() -> None:
    """Beyond the bytes that may wait, a stream's request is answered with OVERLOADED, and the stream goes on."""
    embedder = GatedEmbedder()

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(4):
            yield pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=[TEXT]))

    async with serving(registry_of(embedder, 10_000, 700)) as stub:
        answers = []
        async for answer in stub.EmbedStream(requests()):
            answers.append(answer)
            if len(answers) == 2:
                embedder.open.set()
    assert {answer.error.code for answer in answers[:2]} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert [answer.WhichOneof("result") for answer in answers].count("response") == 2
    assert sorted(answer.id for answer in answers) == [0, 1, 2, 3]


async def test_what_the_cache_has_is_answered_by_a_full_queue() -> None:
    """A call of which every text is known needs no room; one with a single unknown text does."""
    embedder = GatedEmbedder()
    embedder.open.set()
    known = [f"known {row} {TEXT}" for row in range(3)]
    async with serving(registry_of(embedder, 100, 1 << 20), cache=Cache(SystemClock(), max_bytes=1 << 20)) as stub:
        before = await stub.Embed(pb.EmbedRequest(texts=known))
        embedder.open.clear()
        inside = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.begun(2)
        again = await stub.Embed(pb.EmbedRequest(texts=known))
        assert (again.embeddings, again.timings.cached_rows) == (before.embeddings, 3)
        assert (await refusal(stub.Embed(pb.EmbedRequest(texts=[*known, "other"]))))[0] == "OVERLOADED"
        embedder.open.set()
        await inside
