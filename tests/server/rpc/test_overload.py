"""Overload over gRPC: rejected calls with a retry delay, and streams that wait."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import metrics
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.registry import Registry

from tests.support.in_process import CARD, CountingEmbedder, GatedEmbedder, ready_registry, serving

TEXT = "x" * 300  # an estimate of 90 tokens, which the model's limit reduces to 10


def registry_of(embedder: CountingEmbedder, max_wait_s: float, max_bytes: int) -> Registry:
    """Returns a registry whose model computes a text a second."""
    return ready_registry(embedder, rate=10, max_wait_s=max_wait_s, max_bytes=max_bytes, bulk_slots=100)


def overload_error(error: grpc.aio.AioRpcError) -> tuple[str, float, dict[str, Any]]:
    """Returns the reason of an error, the seconds of its RetryInfo, and its trailers."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(retry)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return info.reason, retry.retry_delay.ToMilliseconds() / 1e3, trailers


def rejected_calls() -> float:
    labels = {"model": "test", "priority": "interactive"}
    return metrics.REGISTRY.get_sample_value("isogloss_admission_refusals_total", labels) or 0.0


async def rejection(call: Any) -> tuple[str, float, dict[str, Any]]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return overload_error(error)
    raise AssertionError("the call was not rejected")


async def test_a_full_queue_rejects_calls_with_a_retry_delay() -> None:
    """A full queue rejects a call with OVERLOADED, RetryInfo and a pushback; admitted calls succeed."""
    embedder, before = GatedEmbedder(), rejected_calls()
    async with serving(registry_of(embedder, 9.5, 1 << 20)) as stub:
        admitted = [asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT]))) for _ in range(10)]
        await embedder.wait_for_calls(10)
        reason, retry_s, trailers = await rejection(stub.Embed(pb.EmbedRequest(texts=[TEXT])))
        assert (reason, retry_s, trailers["grpc-retry-pushback-ms"]) == ("OVERLOADED", 5.0, "5000")
        assert (await stub.Health(pb.HealthRequest())).models[0].queued_texts == 10
        assert rejected_calls() == before + 1
        labels = {"model": "test", "priority": "interactive"}
        assert metrics.REGISTRY.get_sample_value("isogloss_queue_tokens", labels) == 100
        embedder.open.set()
        assert [len(response.embeddings.data) for response in await asyncio.gather(*admitted)] == [16] * 10
        await stub.Embed(pb.EmbedRequest(texts=[TEXT]))


async def test_the_pushback_is_well_before_the_deadline() -> None:
    """A call with a deadline is told to retry within the first quarter of the time that is left."""
    embedder = GatedEmbedder()
    async with serving(registry_of(embedder, 30, 1 << 20)) as stub:
        admitted = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.wait_for_calls(1)
        _, _, trailers = await rejection(stub.Embed(pb.EmbedRequest(texts=[TEXT]), timeout=0.9))
        assert 0 < int(trailers["grpc-retry-pushback-ms"]) <= 250
        embedder.open.set()
        await admitted


async def test_similarity_is_subject_to_admission() -> None:
    """A Similarity is rejected by the tokens of its texts or by the bytes of its vectors."""
    embedder = GatedEmbedder()
    vectors = pb.VectorList(
        vectors=pb.Matrix(data=bytes(16 * 1000), rows=1000, columns=4, element_type=pb.ELEMENT_TYPE_FLOAT32),
        space_id=CARD.space_id,
    )
    async with serving(registry_of(embedder, 1, 10_000)) as stub:
        admitted = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.wait_for_calls(1)
        sides = pb.Items(texts=pb.TextList(texts=[TEXT]))
        assert (await rejection(stub.Similarity(pb.SimilarityRequest(queries=sides))))[0] == "OVERLOADED"
        few = pb.VectorList(
            vectors=pb.Matrix(data=bytes(16), rows=1, columns=4, element_type=1), space_id=CARD.space_id
        )
        vectors_only = pb.SimilarityRequest(queries=pb.Items(vectors=few))
        assert (await stub.Similarity(vectors_only)).scores.rows == 1  # the model is not used
        large = pb.SimilarityRequest(queries=pb.Items(vectors=vectors), nearest=pb.Nearest(k=1))
        assert (await rejection(stub.Similarity(large)))[0] == "OVERLOADED"
        embedder.open.set()
        await admitted


async def test_requests_of_a_stream_wait_and_leave_room_for_calls() -> None:
    """Requests of a stream wait instead of being rejected, all are answered, and a call is admitted meanwhile."""
    embedder = GatedEmbedder()

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(12):
            yield pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=[TEXT], priority=pb.PRIORITY_BULK))

    async with serving(registry_of(embedder, 30, 1 << 20), stream_window_requests=5) as stub:
        stream = stub.EmbedStream(requests())
        await embedder.wait_for_calls(2)  # streams may hold two seconds of work
        call = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT])))
        await embedder.wait_for_calls(3)
        assert len(embedder.calls) == 3
        embedder.open.set()
        responses = [response async for response in stream]
        await call
    assert sorted(response.id for response in responses) == list(range(12))
    assert {response.WhichOneof("result") for response in responses} == {"response"}


async def test_requests_of_a_stream_are_rejected_beyond_the_limit_of_bytes() -> None:
    """A request beyond the limit is answered with OVERLOADED, and the stream continues."""
    embedder = GatedEmbedder()

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number in range(4):
            yield pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=[TEXT]))

    async with serving(registry_of(embedder, 1000, 700)) as stub:
        responses = []
        async for response in stub.EmbedStream(requests()):
            responses.append(response)
            if len(responses) == 2:
                embedder.open.set()
    assert {response.error.code for response in responses[:2]} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert [response.WhichOneof("result") for response in responses].count("response") == 2
    assert sorted(response.id for response in responses) == [0, 1, 2, 3]


async def test_a_full_queue_admits_requests_that_are_cached() -> None:
    """A call whose texts are all cached is admitted; one with a single other text is rejected."""
    embedder = GatedEmbedder()
    embedder.open.set()
    cached = [f"cached {row} {TEXT}" for row in range(3)]
    async with serving(registry_of(embedder, 1, 1 << 20), cache=Cache(SystemClock(), max_bytes=1 << 20)) as stub:
        before = await stub.Embed(pb.EmbedRequest(texts=cached))
        embedder.open.clear()
        admitted = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=[TEXT] * 10)))
        await embedder.wait_for_calls(2)
        again = await stub.Embed(pb.EmbedRequest(texts=cached))
        assert (again.embeddings, again.timings.cached_rows) == (before.embeddings, 3)
        assert (await rejection(stub.Embed(pb.EmbedRequest(texts=[*cached, "other"]))))[0] == "OVERLOADED"
        embedder.open.set()
        await admitted
