"""What stands around a call: deadlines, faults, logs, the event loop kept free."""

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


class LeapingClock:
    """Each look at it finds an hour passed."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        self.now_s += 3600
        return self.now_s


async def test_no_work_is_started_past_the_deadline() -> None:
    """A call whose deadline has passed gets DEADLINE_EXCEEDED, and nothing is embedded for it."""
    embedder = CountingEmbedder()
    async with serving(ready_registry(embedder), LeapingClock()) as stub:
        for call in (
            stub.Embed(pb.EmbedRequest(texts=["a"]), timeout=60),
            stub.Similarity(pb.SimilarityRequest(queries=texts("a")), timeout=60),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert b"DEADLINE_EXCEEDED" in dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert embedder.calls == []
        assert (await stub.Embed(pb.EmbedRequest(texts=["a"]))).embeddings.rows == 1


async def test_an_unforeseen_fault_is_told_by_an_id_that_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """INTERNAL carries an opaque id; the log has it with the place of the fault, and neither quotes the text."""

    def fail() -> None:
        raise KeyError(SECRET)

    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder(fail))) as stub:
            error = await failure(stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=[("x-request-id", "r-1")]))
            assert (await stub.Health(pb.HealthRequest())).status == pb.SERVING_STATUS_SERVING
    assert error.code() is grpc.StatusCode.INTERNAL
    faults = [record for record in caplog.records if record.name == "isogloss_server.errors"]
    fields = faults[0].__dict__["fields"]
    assert len(faults) == 1
    assert fields["fault_id"] in str(error.details())
    assert fields["request_id"] == "r-1"
    assert "KeyError" in fields["error"]
    assert "in_process.py" in fields["error"]
    for record in caplog.records:
        assert SECRET not in logs.JsonFormatter().format(record)
        assert SECRET not in logs.TextFormatter().format(record)
    assert SECRET not in str(error.details())


async def test_each_call_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A call's line tells method, code, milliseconds, texts, tokens, model and request id, and nothing of the texts."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder())) as stub:
            await stub.Embed(pb.EmbedRequest(texts=[SECRET, "ab"]), metadata=[("x-request-id", "r-2")])
            await failure(stub.Embed(pb.EmbedRequest(texts=[" "])))
            await stub.Similarity(pb.SimilarityRequest(queries=texts(SECRET), candidates=texts("a", "b")))
    lines = [logs.JsonFormatter().format(r) for r in caplog.records if r.name == "isogloss_server.access"]
    assert SECRET not in "".join(lines)
    told = [json.loads(line) for line in lines]
    first = {key: told[0][key] for key in ("method", "code", "texts", "tokens", "model", "request_id")}
    tokens = len(SECRET) + 2
    assert first == {
        "method": "Embed", "code": "OK", "texts": 2, "tokens": tokens, "model": "test", "request_id": "r-2"
    }  # fmt: skip
    assert [(line["method"], line["code"], line["texts"], line["model"]) for line in told[1:]] == [
        ("Embed", "INVALID_ARGUMENT", 1, "test"),
        ("Similarity", "OK", 3, "test"),
    ]
    assert all(line["ms"] >= 0 for line in told)


async def test_no_line_a_call_with_the_access_log_off(caplog: pytest.LogCaptureFixture) -> None:
    """--no-access-log writes no line a call."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder()), access_log=False) as stub:
            await stub.Embed(pb.EmbedRequest(texts=["a"]))
    assert not [record for record in caplog.records if record.name == "isogloss_server.access"]


def test_readable_lines_leave_out_what_is_empty() -> None:
    """The text format is one readable line with name=value pairs."""
    record = logging.makeLogRecord(
        {
            "name": "isogloss_server.access",
            "levelname": "INFO",
            "msg": "call",
            "fields": {"code": "OK", "model": "", "id": "a code=NO"},
        }
    )
    assert logs.TextFormatter().format(record).endswith('info    call code=OK id="a code=NO"')


async def test_a_million_pairs_leave_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a million pairs are compared, other calls are answered."""
    answered, comparing = threading.Event(), threading.Event()
    scores = Comparison.scores

    def wait_for_the_other_call(self: Comparison, queries: Any) -> Any:
        comparing.set()
        assert answered.wait(60), "nothing else was answered while the comparison ran"
        return scores(self, queries)

    monkeypatch.setattr(similarity.Comparison, "scores", wait_for_the_other_call)
    many = [f"text {row}" for row in range(1000)]
    async with serving(ready_registry(CountingEmbedder())) as stub:
        pairs = asyncio.ensure_future(stub.Similarity(pb.SimilarityRequest(queries=texts(*many))))
        await asyncio.get_running_loop().run_in_executor(None, comparing.wait, 60)
        assert (await stub.Health(pb.HealthRequest())).status == pb.SERVING_STATUS_SERVING
        answered.set()
        response = await pairs
    assert (response.scores.rows, response.scores.columns) == (1000, 1000)


async def test_a_model_that_is_not_loaded_is_unavailable() -> None:
    """Until a model is loaded its calls are UNAVAILABLE, reason NOT_READY, and health says STARTING."""
    registry = Registry(["slow"])
    async with serving(registry) as stub:
        for call in (stub.Embed(pb.EmbedRequest(texts=["a"])), stub.ListModels(pb.ListModelsRequest())):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert b"NOT_READY" in dict(error.trailing_metadata())["grpc-status-details-bin"]
        health = await stub.Health(pb.HealthRequest())
        assert (health.status, health.models[0].detail) == (pb.SERVING_STATUS_STARTING, "loading")


async def test_models_are_listed_as_they_are_ready() -> None:
    """While one model loads, those that are ready are listed and answer."""
    registry = Registry(["slow", "test"])
    registry.get("test").serve(ready(CountingEmbedder()))
    async with serving(registry) as stub:
        assert [model.name for model in (await stub.ListModels(pb.ListModelsRequest())).models] == ["test"]
        assert (await stub.Embed(pb.EmbedRequest(texts=["a"], model="test"))).model == "test"
        health = await stub.Health(pb.HealthRequest())
    assert [model.status for model in health.models] == [pb.SERVING_STATUS_STARTING, pb.SERVING_STATUS_SERVING]


async def test_malformed_health_checks_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no message are INVALID_ARGUMENT for grpc.health.v1 as well, whose calls are not logged."""
    with caplog.at_level(logging.INFO):
        async with serving(ready_registry(CountingEmbedder())) as stub:
            check = stub.channel.unary_unary("/grpc.health.v1.Health/Check")
            assert (await failure(check(b"\xff\xff"))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.name.startswith("isogloss_server")]


async def test_health_is_the_worst_of_the_models() -> None:
    """The server's status is the worst of its models'; a model's own can be asked for."""
    registry = ready_registry(CountingEmbedder())
    async with serving(registry) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["a", "b"]))
        registry.get("test").health.report("test", State.DEGRADED, "slow today")
        health = await stub.Health(pb.HealthRequest(model="test"))
    model = health.models[0]
    assert health.status == model.status == pb.SERVING_STATUS_DEGRADED
    assert (model.model, model.detail, model.queued_texts, model.embedded_texts) == ("test", "slow today", 0, 2)
    assert health.version


async def test_a_cancelled_call_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    """A call that its caller cancels ends in the log as CANCELLED."""
    begun, logged = asyncio.Event(), asyncio.Event()

    class Hanging(CountingEmbedder):
        async def embed(self, *args: Any, **options: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    class Seen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.set()

    logger = logging.getLogger("isogloss_server.access")
    logger.addHandler(seen := Seen())
    try:
        with caplog.at_level(logging.INFO):
            async with serving(ready_registry(Hanging())) as stub:
                call = stub.Embed(pb.EmbedRequest(texts=["a"]))
                await begun.wait()
                call.cancel()
                await logged.wait()
    finally:
        logger.removeHandler(seen)
    lines = [record for record in caplog.records if record.name == "isogloss_server.access"]
    assert lines[-1].__dict__["fields"]["code"] == "CANCELLED"
