"""Spans of calls: their names, their places in the trace, their times and errors, and what is never in them."""

import asyncio
import contextlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import app, tracing
from isogloss_server.engine.admission import AdmissionLimits
from isogloss_server.errors import TracingSetupError

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.gated_model import GatedModel
from tests.support.in_process import CountingEmbedder, ready_registry, serving
from tests.support.injected_faults import ModelServer, serving_model
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, remote
from tests.support.spans import Spans, duration_s, is_part_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"
EMBED = "isogloss.v1.EmbeddingService/Embed"
STREAM = "isogloss.v1.EmbeddingService/EmbedStream"
SECRET = "a secret text"


@pytest.fixture
def spans() -> Spans:
    """The spans of the server that gets `spans.tracer`."""
    return Spans()


async def embed(stub: Any, *texts: str, **metadata: str) -> str:
    """Sends one Embed with this metadata, and returns the name of its status."""
    pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    try:
        await stub.Embed(pb.EmbedRequest(texts=texts), metadata=pairs, timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_a_call_is_a_span_by_the_stable_conventions_for_rpc(spans: Spans) -> None:
    """The span of a call has kind, name and attributes of the conventions, and the server's own attributes."""
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        assert await embed(stub, "one", "two", x_request_id="id-1") == "OK"
    span = spans.one(EMBED)
    attributes = dict(span.attributes)
    assert re.fullmatch("127.0.0.1", attributes.pop("network.peer.address"))
    assert attributes.pop("network.peer.port") > 0
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": EMBED,
        "rpc.status_code": "OK",
        "isogloss.request_id": "id-1",
        "isogloss.texts": 2,
        "isogloss.tokens": 6,
        "isogloss.model": "test",
        "isogloss.priority": "interactive",
    }
    assert (span.kind.name, span.status.status_code.name, span.parent) == ("SERVER", "UNSET", None)
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.45.0"


async def test_a_call_continues_the_trace_of_its_caller(spans: Spans) -> None:
    """The span of a call with a traceparent is a child of the caller's span, and keeps the tracestate."""
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        await embed(stub, "one", traceparent=PARENT, tracestate="vendor=1")
    span = spans.one(EMBED)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.context.trace_state == {"vendor": "1"}


async def test_a_trace_that_is_not_sampled_has_no_spans_but_an_id_in_the_log(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    """If the caller's trace is not sampled, no span is recorded; the log still names the trace."""
    caplog.set_level(logging.INFO)
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        await embed(stub, "one", traceparent=UNSAMPLED)
    assert spans.ended == []
    assert [record.fields["trace_id"] for record in caplog.records if hasattr(record, "fields")] == [TRACE]


@pytest.mark.parametrize(("metadata", "expected"), [({"traceparent": PARENT}, TRACE), ({}, "")])
async def test_without_a_tracer_the_log_has_the_trace_of_the_caller(
    caplog: pytest.LogCaptureFixture, metadata: dict[str, str], expected: str
) -> None:
    """A server that records no spans logs the id of the trace that the caller sent."""
    caplog.set_level(logging.INFO)
    async with serving(ready_registry(CountingEmbedder())) as stub:
        await embed(stub, "one", **metadata)
    assert [record.fields["trace_id"] for record in caplog.records if hasattr(record, "fields")] == [expected]


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        TRACE,
        PARENT.upper(),
        PARENT.replace("00-", "ff-"),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{PARENT}\n",
        f"00-{TRACE}é-b7ad6b7169203331-01",
    ],
)
def test_an_invalid_trace_context_is_no_trace(traceparent: str) -> None:
    """Only a traceparent as W3C defines it has a trace id, so that no other text of a caller is logged as one."""
    assert tracing.trace_id({"traceparent": traceparent}) == ""


def test_a_trace_context_of_a_later_version_is_read() -> None:
    """A traceparent of a version to come may be longer."""
    assert tracing.trace_id({"traceparent": f"{PARENT.replace('00-', '01-', 1)}-more"}) == TRACE


async def test_the_stages_of_a_call_are_parts_of_its_span(static_folder: Path, spans: Spans) -> None:
    """Admission, tokenization, queue, batch and inference are children of the call, with its tokens."""
    async with serving_model(static_folder, GatedModel(), tracer=spans.tracer) as server:
        await server.embed("one two", "three")
    call = spans.one(EMBED)
    stages = ["admission", "tokenization", "queue", "batch", "inference"]
    assert {span.name for span in spans.ended} == {EMBED, *stages}
    assert all(is_part_of(spans.one(stage), call) for stage in stages)
    assert dict(spans.one("batch").attributes) == {"isogloss.texts": 2, "isogloss.tokens": 3}


async def wait_in_queue(server: ModelServer, model: GatedModel) -> "asyncio.Task[Any]":
    """Occupies the only thread of the model, so that texts of later calls wait."""
    first = server.start_embed("one")
    await model.next_batch()
    return first


async def test_queue_and_inference_have_the_times_of_the_clock(static_folder: Path, spans: Spans) -> None:
    """The wait of a text for a batch, and the batch, are as long as they took."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = await wait_in_queue(server, model)
        second = server.start_embed("two")
        await server.wait_for_queued(1)
        server.clock.now_s += 3
        model.release()
        await first
        await model.next_batch()
        server.clock.now_s += 2
        model.release()
        await second
    later = spans.named(EMBED)[-1]
    [waited] = [span for span in spans.named("queue") if is_part_of(span, later)]
    [computed] = [span for span in spans.named("inference") if is_part_of(span, later)]
    assert [duration_s(span) for span in (waited, computed, later)] == pytest.approx([3, 2, 5])


async def test_a_batch_is_linked_to_the_spans_of_all_its_callers(static_folder: Path, spans: Spans) -> None:
    """Two calls whose texts share a batch have one span of it, linked to both, and both link to it."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = await wait_in_queue(server, model)
        others = [server.start_embed("two"), server.start_embed("three")]
        await server.wait_for_queued(2)
        model.release(2)
        await asyncio.gather(first, *others)
    batch = spans.named("batch")[-1]
    callers = {span.context.span_id for span in spans.named(EMBED)[1:]}
    assert {link.context.span_id for link in batch.links} == callers
    assert batch.parent is not None
    assert batch.parent.span_id in callers
    linked = [span for span in spans.named("inference") if span.links[0].context == batch.context]
    assert {span.parent.span_id for span in linked if span.parent} == callers


async def test_a_call_that_waits_for_a_text_of_another_call_is_linked_to_its_batch(
    static_folder: Path, spans: Spans
) -> None:
    """A text that is being computed already is not computed again, and its batch is linked to both calls."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = await wait_in_queue(server, model)
        joined = server.start_embed("one")
        await server.wait_for_admitted(2)
        await server.embed()  # is refused, after the texts of the call before it are queued
        model.release()
        await asyncio.gather(first, joined)
    assert len(spans.one("batch").links) == 2


async def test_an_untraced_call_in_a_batch_of_a_traced_one_has_no_span(static_folder: Path, spans: Spans) -> None:
    """A batch with a sampled and an unsampled call is linked to the sampled one."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = asyncio.ensure_future(embed(server.stub, "one", traceparent=UNSAMPLED))
        await model.next_batch()
        others = [
            asyncio.ensure_future(embed(server.stub, "two", traceparent=UNSAMPLED)),
            asyncio.ensure_future(embed(server.stub, "three", traceparent=PARENT)),
        ]
        await server.wait_for_queued(2)
        model.release(2)
        assert await asyncio.gather(first, *others) == ["OK"] * 3
    assert [link.context for link in spans.one("batch").links] == [spans.one(EMBED).context]


async def test_a_text_that_expires_in_the_queue_has_the_reason_in_its_span(static_folder: Path, spans: Spans) -> None:
    """If the deadline passes in the queue, its span and the call's are errors."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = await wait_in_queue(server, model)
        second = asyncio.ensure_future(server.embed("two", timeout_s=50))
        await server.wait_for_queued(1)
        server.clock.now_s += 60
        model.release(2)
        await asyncio.gather(first, second)
    [waited] = [span for span in spans.named("queue") if span.attributes]
    assert dict(waited.attributes or {}) == {"error.type": "DEADLINE_EXCEEDED"}
    [call] = [span for span in spans.named(EMBED) if not span.status.is_unset]
    assert (call.attributes or {})["error.type"] == "DEADLINE_EXCEEDED"


async def test_a_cancelled_call_ends_its_wait(static_folder: Path, spans: Spans) -> None:
    """A call that its caller cancels in the queue has a span of its wait, and no error of the server."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        first = await wait_in_queue(server, model)
        second = server.start_embed("two")
        await server.wait_for_queued(1)
        second.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await second
        async with asyncio.timeout(60):
            while len(spans.named(EMBED)) < 1:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0)
        model.release()
        await first
    [waited] = [span for span in spans.named("queue") if span.attributes]
    assert dict(waited.attributes or {}) == {"error.type": "CancelledError"}
    cancelled = spans.named(EMBED)[0]
    assert (cancelled.attributes or {})["rpc.status_code"] == "CANCELLED"
    assert cancelled.status.is_unset


def fail(_rows: Any) -> Any:
    raise RuntimeError(SECRET)


async def test_a_failed_batch_has_the_class_of_the_error_and_not_its_message(static_folder: Path, spans: Spans) -> None:
    """The spans of a batch on which the model fails have the class of the exception; no span has its message."""
    async with serving_model(static_folder, GatedModel(change=fail), tracer=spans.tracer) as server:
        await server.embed("one")
    assert dict(spans.one("inference").attributes) == {"error.type": "RuntimeError"}
    call = spans.one(EMBED)
    assert (call.attributes["error.type"], call.attributes["isogloss.reason"]) == ("INTERNAL", "INTERNAL")
    assert SECRET not in "".join(span.to_json() for span in spans.ended)


async def test_a_refusal_is_in_the_span_of_admission(static_folder: Path, spans: Spans) -> None:
    """A refused call has the reason in its span and in that of admission, and is no error of the server."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, tracer=spans.tracer) as server:
        server._model.ready.admission._limits = AdmissionLimits(max_bytes=1)
        first = await wait_in_queue(server, model)
        assert (await server.embed("two")).reason == "OVERLOADED"
        model.release()
        await first
    [refusal] = [span for span in spans.named("admission") if span.attributes]
    assert dict(refusal.attributes or {}) == {"error.type": "OVERLOADED"}
    call = spans.named(EMBED)[0]
    assert ((call.attributes or {})["isogloss.reason"], call.status.is_unset) == ("OVERLOADED", True)


async def test_each_request_of_a_stream_is_a_part_of_the_stream(spans: Spans) -> None:
    """A stream's requests have a span each, below which are the stages; a failed one has its status."""
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        call = stub.EmbedStream(timeout=60)
        for number, texts in enumerate([["one"], []]):
            await call.write(pb.EmbedStreamRequest(id=number, request=pb.EmbedRequest(texts=texts)))
            await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    requests = spans.named("request")
    assert [(span.attributes or {})["rpc.status_code"] for span in requests] == ["OK", "INVALID_ARGUMENT"]
    assert all(is_part_of(request, spans.one(STREAM)) for request in requests)
    assert is_part_of(spans.one("admission"), requests[0])


async def test_a_comparison_is_a_part_of_its_call(spans: Spans) -> None:
    """The comparison of vectors has a span."""
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        await stub.Similarity(pb.SimilarityRequest(queries=pb.Items(texts=pb.TextList(texts=["one", "two"]))))
    assert is_part_of(spans.one("comparison"), spans.one("isogloss.v1.EmbeddingService/Similarity"))


async def test_calls_to_a_provider_are_spans_with_their_outcome(spans: Spans) -> None:
    """Each attempt at a provider is a span of a client with the reason of its failure, after the wait for a place."""
    clock = ManualClock()
    with FakeProvider(key=KEY, now_s=clock.monotonic_s) as fake:
        fake.script.append(Scripted(status=503, body=SECRET.encode()))
        async with remote(fake, LIGHT, clock, tracer=spans.tracer) as m:
            await clock.run_until_done(m.stub.Embed(pb.EmbedRequest(texts=[SECRET])))
    attempts = spans.named("provider call")
    assert [dict(span.attributes or {}) for span in attempts] == [
        {"isogloss.model": "m", "isogloss.texts": 1, "error.type": "PROVIDER_UNAVAILABLE"},
        {"isogloss.model": "m", "isogloss.texts": 1},
    ]
    assert {span.kind.name for span in attempts} == {"CLIENT"}
    assert len(spans.named("provider queue")) == 2
    assert all(is_part_of(span, spans.one(EMBED)) for span in [*attempts, *spans.named("provider queue")])
    assert "traceparent" not in fake.requests[0].headers
    assert SECRET not in "".join(span.to_json() for span in spans.ended)


async def test_a_disabled_sdk_records_nothing_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With OTEL_SDK_DISABLED, calls succeed without spans, and the log has only the ids that callers send."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    caplog.set_level(logging.INFO)
    spans = Spans()
    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        assert [await embed(stub, "one"), await embed(stub, "one", traceparent=PARENT)] == ["OK", "OK"]
    assert spans.ended == []
    assert [record.fields["trace_id"] for record in caplog.records if hasattr(record, "fields")] == ["", TRACE]


async def test_health_checks_are_not_traced(spans: Spans) -> None:
    """Calls of other services, which load balancers send all the time, have no spans."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with serving(ready_registry(CountingEmbedder()), tracer=spans.tracer) as stub:
        await health_pb2_grpc.HealthStub(stub.channel).Check(health_pb2.HealthCheckRequest())
    assert spans.ended == []


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.1:5000", {"network.peer.address": "10.0.0.1", "network.peer.port": 5000}),
        ("ipv6:[::1]:5000", {"network.peer.address": "::1", "network.peer.port": 5000}),
        ("unix:/run/isogloss", {"network.peer.address": "/run/isogloss"}),
        ("unix:", {}),
        ("", {}),
    ],
)
def test_a_peer_has_an_address_and_a_port(peer: str, expected: dict[str, Any]) -> None:
    """What gRPC names a peer becomes the attributes of the conventions."""
    assert tracing.peer_attributes(peer) == expected


def test_the_reason_of_a_librarys_error_is_not_recorded() -> None:
    """Errors of libraries may have an attribute `reason` with a message; only their class is recorded."""
    error = UnicodeDecodeError("utf-8", b"x", 0, 1, SECRET)
    assert tracing.error_type(error) == "UnicodeDecodeError"


def test_missing_packages_have_their_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without OpenTelemetry, a server that shall record traces does not start, and reports what installs it."""
    monkeypatch.delitem(sys.modules, "isogloss_server.opentelemetry_tracer", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TracingSetupError, match=r"pip install 'isogloss-server\[tracing\]'"):
        app._tracer()
