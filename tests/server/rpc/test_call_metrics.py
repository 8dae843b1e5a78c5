"""The metrics of calls, queues, models and the cache, as calls to a server in this process change them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import metrics
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.monitoring import State
from isogloss_server.engine.registry import Registry

from tests.server.rpc.test_overload import GatedEmbedder, registry_of
from tests.support.in_process import CountingEmbedder, ready, ready_registry, serving
from tests.support.injected_faults import poll
from tests.support.scrape import Scrape

MARKED = "chosen-by-a-caller"


async def fails(call: Any) -> str:
    """Returns the name of the status with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return str(raised.value.code().name)


async def test_calls_are_counted_by_method_code_and_reason() -> None:
    """Each call counts once, with its time, under its method, its status and the reason of its error."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        before = Scrape.of_this_process()
        await stub.Embed(pb.EmbedRequest(texts=["one"]))
        await stub.Embed(pb.EmbedRequest(texts=["two"]))
        assert await fails(stub.Embed(pb.EmbedRequest())) == "INVALID_ARGUMENT"
        assert await fails(stub.Similarity(pb.SimilarityRequest(model="other"))) == "NOT_FOUND"
        await health_pb2_grpc.HealthStub(stub.channel).Check(health_pb2.HealthCheckRequest())
        after = Scrape.of_this_process()
    for labels, calls in {
        'method="Embed",code="OK",reason=""': 2,
        'method="Embed",code="INVALID_ARGUMENT",reason="EMPTY_TEXTS"': 1,
        'method="Similarity",code="NOT_FOUND",reason="UNKNOWN_MODEL"': 1,
        'method="grpc.health.v1.Health/Check",code="OK",reason=""': 1,
    }.items():
        assert after.rise(f"isogloss_calls_total{{{labels}}}", before) == calls
        timed = labels.rpartition(",")[0]
        assert after.rise(f"isogloss_call_duration_seconds_count{{{timed}}}", before) == calls


async def test_calls_in_flight_are_those_that_have_not_ended() -> None:
    """The gauge has each call from its beginning to its end, also of one that is cancelled."""
    in_flight = 'isogloss_calls_in_flight{method="Embed"}'
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder)) as stub:
        calls = [stub.Embed(pb.EmbedRequest(texts=[str(row)])) for row in range(3)]
        await embedder.wait_for_calls(3)
        assert Scrape.of_this_process().value(in_flight) == 3
        calls[0].cancel()
        embedder.open.set()
        await asyncio.gather(*calls[1:])
    assert Scrape.of_this_process().value(in_flight) == 0


async def test_a_call_that_its_caller_cancels_has_no_reason() -> None:
    """A cancelled call counts as CANCELLED."""
    embedder, before = GatedEmbedder(), Scrape.of_this_process()
    async with serving(ready_registry(embedder)) as stub:
        call = stub.Embed(pb.EmbedRequest(texts=["one"]))
        await embedder.wait_for_calls(1)
        call.cancel()
        await poll(lambda: Scrape.of_this_process().value('isogloss_calls_in_flight{method="Embed"}') == 0)
    labels = 'method="Embed",code="CANCELLED",reason=""'
    assert Scrape.of_this_process().rise(f"isogloss_calls_total{{{labels}}}", before) == 1


async def test_requests_of_a_stream_have_their_own_outcomes() -> None:
    """Each request of a stream counts with its own code and reason, and the stream as one call."""

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for number, texts in enumerate((["one"], ["two"], [])):
            yield pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts))

    before = Scrape.of_this_process()
    async with serving(ready_registry(CountingEmbedder())) as stub:
        assert len([response async for response in stub.EmbedStream(requests())]) == 3
        after = Scrape.of_this_process()
    assert after.rise('isogloss_stream_requests_total{code="OK",reason=""}', before) == 2
    assert after.rise('isogloss_stream_requests_total{code="INVALID_ARGUMENT",reason="EMPTY_TEXTS"}', before) == 1
    assert after.rise('isogloss_stream_request_duration_seconds_count{code="OK"}', before) == 2
    assert after.rise('isogloss_calls_total{method="EmbedStream",code="OK"}', before) == 1


async def test_refusals_are_counted_by_reason() -> None:
    """A call that the server refuses for now counts under its reason; one that is invalid does not."""
    embedder = GatedEmbedder()
    async with serving(registry_of(embedder, 1, 1 << 20)) as stub:
        admitted = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=["x" * 300] * 10)))
        await embedder.wait_for_calls(1)
        before = Scrape.of_this_process()
        assert await fails(stub.Embed(pb.EmbedRequest(texts=["x" * 300]))) == "RESOURCE_EXHAUSTED"
        assert await fails(stub.Embed(pb.EmbedRequest())) == "INVALID_ARGUMENT"
        after = Scrape.of_this_process()
        embedder.open.set()
        await admitted
    assert after.rise("isogloss_refusals_total", before) == 1
    assert after.rise('isogloss_refusals_total{reason="OVERLOADED"}', before) == 1
    assert after.rise('isogloss_admission_refusals_total{model="test",priority="interactive"}', before) == 1


async def test_the_queue_has_tokens_and_bytes_of_each_priority() -> None:
    """While requests are computed, their tokens and bytes count under their priority, and afterwards no more."""
    embedder = GatedEmbedder()
    async with serving(ready_registry(embedder)) as stub:
        texts = ["x" * 300] * 2
        calls = [
            asyncio.ensure_future(stub.Embed(pb.EmbedRequest(texts=texts[:rows], priority=priority)))
            for rows, priority in ((1, pb.PRIORITY_INTERACTIVE), (2, pb.PRIORITY_BULK))
        ]
        await embedder.wait_for_calls(2)
        queued = Scrape.of_this_process()
        embedder.open.set()
        await asyncio.gather(*calls)
        idle = Scrape.of_this_process()
    for priority, texts_queued in (("interactive", 1), ("bulk", 2)):
        labels = f'model="test",priority="{priority}"'
        assert queued.value(f"isogloss_queue_tokens{{{labels}}}") == 10 * texts_queued  # the model's limit
        assert queued.value(f"isogloss_queue_bytes{{{labels}}}") == (300 + 4 * 4) * texts_queued
        assert idle.value(f"isogloss_queue_tokens{{{labels}}}") == 0
        assert idle.value(f"isogloss_queue_bytes{{{labels}}}") == 0


async def test_texts_tokens_and_stages_are_measured_for_each_model_and_priority() -> None:
    """Texts and tokens are those of the responses; each request has one wait, tokenization and inference."""
    before = Scrape.of_this_process()
    async with serving(ready_registry(CountingEmbedder())) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["one", "three"], priority=pb.PRIORITY_BULK))
        await stub.Embed(pb.EmbedRequest(texts=["four", "!!!"], allow_partial=True))
        after = Scrape.of_this_process()
    for priority, texts, tokens in (("bulk", 2, 8), ("interactive", 1, 4)):
        labels = f'model="test",priority="{priority}"'
        assert after.rise(f"isogloss_texts_total{{{labels}}}", before) == texts
        assert after.rise(f"isogloss_tokens_total{{{labels}}}", before) == tokens
        assert after.rise(f"isogloss_wait_seconds_count{{{labels}}}", before) == 1
    assert after.rise('isogloss_tokenization_seconds_count{model="test"}', before) == 2
    assert after.rise('isogloss_inference_seconds_count{model="test"}', before) == 2


async def test_rows_of_the_cache_are_counted_for_each_model() -> None:
    """Hits, misses and evictions of one model are not counted under another's name."""
    registry = Registry(["first", "second"])
    for model in registry.models:
        model.serve(ready(CountingEmbedder()))
    before = Scrape.of_this_process()
    async with serving(registry, cache=Cache(SystemClock(), max_bytes=1000)) as stub:  # two rows
        await stub.Embed(pb.EmbedRequest(texts=["a", "b"], model="first"))
        await stub.Embed(pb.EmbedRequest(texts=["b", "c"], model="first"))
        await stub.Embed(pb.EmbedRequest(texts=["d" * 2], model="second"))
        after = Scrape.of_this_process()
    rows = {
        (model, outcome): after.rise(
            f'isogloss_cache_rows_total{{model="{model}",level="memory",outcome="{outcome}"}}', before
        )
        for model in ("first", "second")
        for outcome in ("hit", "miss")
    }
    assert rows == {("first", "hit"): 1, ("first", "miss"): 3, ("second", "hit"): 0, ("second", "miss"): 1}
    assert after.rise('isogloss_cache_evictions_total{model="first"}', before) == 2
    assert after.rise('isogloss_cache_evictions_total{model="second"}', before) == 0


def states_of(model: str) -> set[str]:
    """Returns the states that a model is in, by the metrics."""
    scrape = Scrape.of_this_process()
    return {
        labels["state"]
        for labels in scrape.labels_of("isogloss_model_state")
        if labels["model"] == model
        and scrape.value(f'isogloss_model_state{{model="{model}",state="{labels["state"]}"}}') == 1
    }


def test_a_model_is_in_one_state() -> None:
    """The state is starting until the model is loaded, then the one that health has."""
    model = Registry(["test"]).get("test")
    assert states_of("test") == {"starting"}
    model.serve(ready(CountingEmbedder()))
    assert states_of("test") == {"serving"}
    model.health.report("batches", State.DEGRADED, "failed")
    assert states_of("test") == {"degraded"}
    model.health.report("threads", State.NOT_SERVING, "stalled")
    assert states_of("test") == {"not_serving"}


def test_facts_about_build_and_models_are_labels() -> None:
    """The info metrics have the version, and the backend and space of each loaded model."""
    ready_registry(CountingEmbedder())
    scrape = Scrape.of_this_process()
    assert [labels["version"] for labels in scrape.labels_of("isogloss_build_info")] == [metrics.__version__]
    facts = [labels for labels in scrape.labels_of("isogloss_model_info") if labels["model"] == "test"]
    assert facts == [{"model": "test", "backend": "test", "space_id": "s-test", "revision": "", "dimensions": "4"}]


async def test_no_label_has_a_value_that_a_caller_chose() -> None:
    """Neither a method, a model, an id, a user agent nor a text of a caller is in the metrics."""
    async with serving(ready_registry(CountingEmbedder())) as stub:
        before = Scrape.of_this_process()
        metadata = (("x-request-id", MARKED), ("authorization", f"Bearer {MARKED}"), (MARKED, MARKED))
        await stub.Embed(pb.EmbedRequest(texts=[MARKED]), metadata=metadata)
        assert await fails(stub.Embed(pb.EmbedRequest(texts=["one"], model=MARKED))) == "NOT_FOUND"
        for method in (f"/{MARKED}", f"/{MARKED}/Embed", f"/isogloss.v1.EmbeddingService/{MARKED}"):
            assert await fails(stub.channel.unary_unary(method)(b"")) == "UNIMPLEMENTED"
        health = health_pb2_grpc.HealthStub(stub.channel)
        assert await fails(health.Check(health_pb2.HealthCheckRequest(service=MARKED))) == "NOT_FOUND"
        after = Scrape.of_this_process()
    assert MARKED not in after.text
    assert after.rise('isogloss_calls_total{method="unknown",code="UNIMPLEMENTED",reason=""}', before) == 3
