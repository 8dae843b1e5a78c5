"""Calls: deadlines, internal errors, log lines, health, and a responsive event loop."""

import asyncio
import json
import logging
import threading
from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server import logs
from isogloss_server.engine import similarity
from isogloss_server.engine.registry import Registry, State
from isogloss_server.engine.similarity import Comparison

from tests.support.in_process import CountingEmbedder, ready, ready_registry, serving
from tests.support.wire import texts

SECRET = "the caller's own words"


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


class JumpingClock:
    """A clock that advances by an hour at each reading."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        self.now_s += 3600
        return self.now_s


async def test_an_expired_call_is_not_computed() -> None:
    """A call whose deadline has passed gets DEADLINE_EXCEEDED, and its texts are not embedded."""
    embedder = CountingEmbedder()
    async with serving(ready_registry(embedder), JumpingClock()) as stub:
        for call in (
            stub.Embed(pb.EmbedRequest(texts=["a"]), timeout=60),
            stub.Similarity(pb.SimilarityRequest(queries=texts("a")), timeout=60),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert b"DEADLINE_EXCEEDED" in dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert embedder.calls == []
        assert (await stub.Embed(pb.EmbedRequest(texts=["a"]))).embeddings.rows == 1


async def test_an_internal_error_has_an_id_that_the_log_has_too(caplog: pytest.LogCaptureFixture) -> None:
    """INTERNAL has an opaque id; the log has it with the location of the error; neither contains the text."""

    def fail() -> None:
        raise KeyError(SECRET)

    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder(fail))) as stub:
            error = await failure(stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=[("x-request-id", "r-1")]))
            assert (await stub.Health(pb.HealthRequest())).status == pb.SERVING_STATUS_SERVING
    assert error.code() is grpc.StatusCode.INTERNAL
    errors = [record for record in caplog.records if record.name == "isogloss_server.errors"]
    fields = errors[0].__dict__["fields"]
    assert len(errors) == 1
    assert fields["fault_id"] in str(error.details())
    assert fields["request_id"] == "r-1"
    assert "KeyError" in fields["error"]
    assert "in_process.py" in fields["error"]
    for record in caplog.records:
        assert SECRET not in logs.JsonFormatter().format(record)
        assert SECRET not in logs.TextFormatter().format(record)
    assert SECRET not in str(error.details())


async def test_each_call_has_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line has method, code, milliseconds, texts, tokens, model and request id, but no text."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder())) as stub:
            await stub.Embed(pb.EmbedRequest(texts=[SECRET, "ab"]), metadata=[("x-request-id", "r-2")])
            await failure(stub.Embed(pb.EmbedRequest(texts=[" "])))
            await stub.Similarity(pb.SimilarityRequest(queries=texts(SECRET), candidates=texts("a", "b")))
    lines = [logs.JsonFormatter().format(r) for r in caplog.records if r.name == "isogloss_server.access"]
    assert SECRET not in "".join(lines)
    fields = [json.loads(line) for line in lines]
    first = {key: fields[0][key] for key in ("method", "code", "texts", "tokens", "model", "request_id")}
    tokens = len(SECRET) + 2
    assert first == {
        "method": "Embed", "code": "OK", "texts": 2, "tokens": tokens, "model": "test", "request_id": "r-2"
    }  # fmt: skip
    assert [(line["method"], line["code"], line["texts"], line["model"]) for line in fields[1:]] == [
        ("Embed", "INVALID_ARGUMENT", 1, "test"),
        ("Similarity", "OK", 3, "test"),
    ]
    assert all(line["ms"] >= 0 for line in fields)


async def test_without_the_access_log_calls_have_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """With --no-access-log no line is written for a call."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder()), access_log=False) as stub:
            await stub.Embed(pb.EmbedRequest(texts=["a"]))
    assert not [record for record in caplog.records if record.name == "isogloss_server.access"]


def test_the_text_format_leaves_out_empty_fields() -> None:
    """The text format is one line with name=value pairs, quoted where needed, without empty fields."""
    record = logging.makeLogRecord(
        {
            "name": "isogloss_server.access",
            "levelname": "INFO",
            "msg": "call",
            "fields": {"code": "OK", "model": "", "id": "a code=NO"},
        }
    )
    assert logs.TextFormatter().format(record).endswith('info    call code=OK id="a code=NO"')


async def test_a_large_comparison_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other calls are served while a million pairs are compared."""
    other_done, comparing = threading.Event(), threading.Event()
    scores = Comparison.scores

    def wait_for_the_other_call(self: Comparison, queries: Any) -> Any:
        comparing.set()
        assert other_done.wait(60), "no other call was served during the comparison"
        return scores(self, queries)

    monkeypatch.setattr(similarity.Comparison, "scores", wait_for_the_other_call)
    many = [f"text {row}" for row in range(1000)]
    async with serving(ready_registry(CountingEmbedder())) as stub:
        pairs = asyncio.ensure_future(stub.Similarity(pb.SimilarityRequest(queries=texts(*many))))
        await asyncio.get_running_loop().run_in_executor(None, comparing.wait, 60)
        assert (await stub.Health(pb.HealthRequest())).status == pb.SERVING_STATUS_SERVING
        other_done.set()
        response = await pairs
    assert (response.scores.rows, response.scores.columns) == (1000, 1000)


async def test_a_model_that_is_loading_is_unavailable() -> None:
    """The calls of a loading model get UNAVAILABLE, reason NOT_READY, and its health is STARTING."""
    registry = Registry(["slow"])
    async with serving(registry) as stub:
        for call in (stub.Embed(pb.EmbedRequest(texts=["a"])), stub.ListModels(pb.ListModelsRequest())):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert b"NOT_READY" in dict(error.trailing_metadata())["grpc-status-details-bin"]
        health = await stub.Health(pb.HealthRequest())
        assert (health.status, health.models[0].detail) == (pb.SERVING_STATUS_STARTING, "loading")


async def test_ready_models_are_served_while_another_loads() -> None:
    """While one model loads, the ready models are listed and serve calls."""
    registry = Registry(["slow", "test"])
    registry.get("test").serve(ready(CountingEmbedder()))
    async with serving(registry) as stub:
        assert [model.name for model in (await stub.ListModels(pb.ListModelsRequest())).models] == ["test"]
        assert (await stub.Embed(pb.EmbedRequest(texts=["a"], model="test"))).model == "test"
        health = await stub.Health(pb.HealthRequest())
    assert [model.status for model in health.models] == [pb.SERVING_STATUS_STARTING, pb.SERVING_STATUS_SERVING]


async def test_a_malformed_health_check_is_an_invalid_argument(caplog: pytest.LogCaptureFixture) -> None:
    """Malformed bytes to grpc.health.v1 get INVALID_ARGUMENT; its calls are not logged."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder())) as stub:
            check = stub.channel.unary_unary("/grpc.health.v1.Health/Check")
            assert (await failure(check(b"\xff\xff"))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.name.startswith("isogloss_server")]


async def test_the_status_of_the_server_is_the_worst_of_its_models() -> None:
    """Health has the worst status of all models, and the status of each model."""
    registry = ready_registry(CountingEmbedder())
    async with serving(registry) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["a", "b"]))
        registry.get("test").health.report("test", State.DEGRADED, "slow today")
        health = await stub.Health(pb.HealthRequest(model="test"))
    model = health.models[0]
    assert health.status == model.status == pb.SERVING_STATUS_DEGRADED
    assert (model.model, model.detail, model.queued_texts, model.embedded_texts) == ("test", "slow today", 0, 2)
    assert health.version


async def test_a_cancelled_call_is_logged_as_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a call that its caller cancels has the code CANCELLED."""
    began, logged = asyncio.Event(), asyncio.Event()

    class Stalled(CountingEmbedder):
        async def embed(self, *args: Any, **options: Any) -> Any:
            began.set()
            await asyncio.Event().wait()

    class LogEvent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    logger = logging.getLogger("isogloss_server.access")
    logger.addHandler(handler := LogEvent())
    try:
        with caplog.at_level(logging.INFO):
            async with serving(ready_registry(Stalled())) as stub:
                call = stub.Embed(pb.EmbedRequest(texts=["a"]))
                await began.wait()
                call.cancel()
                await logged.wait()
    finally:
        logger.removeHandler(handler)
    lines = [record for record in caplog.records if record.name == "isogloss_server.access"]
    assert lines[-1].__dict__["fields"]["code"] == "CANCELLED"
