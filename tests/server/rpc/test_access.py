"""Keys and quotas over gRPC: who may call what, what a refusal reveals, and when it takes effect."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.clock import SystemClock
from isogloss_server.engine.registry import Registry
from isogloss_server.security.keys import KeyRing, changed
from isogloss_server.security.quotas import Quotas

from tests.support.in_process import CountingEmbedder, GatedEmbedder, ready, serving
from tests.support.keys import add_key, bearer
from tests.support.manual_clock import ManualClock
from tests.support.raw_http2 import RawCaller
from tests.support.wire import texts

EMBED = pb.EmbedRequest(texts=["one", "two"])
SIMILARITY = pb.SimilarityRequest(queries=texts("one"), candidates=texts("two"))
SERVICE = "isogloss.v1.EmbeddingService"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of a keys file, which has the key of another caller."""
    add_key(tmp_path / "keys.json", "somebody")
    return tmp_path / "keys.json"


def two_models(embedder: CountingEmbedder | None = None) -> Registry:
    """Returns a registry with the models "public", the default, and "secret"."""
    registry = Registry(["public", "secret"])
    for model in registry.models:
        model.serve(ready(embedder or CountingEmbedder()))
    return registry


def open_server(file: Path, registry: Registry | None = None, **parts: Any) -> Any:
    """Serves two models to callers with the keys in a file."""
    return serving(registry or two_models(), keys=KeyRing(file, SystemClock()), **parts)


async def refusal(call: Any) -> tuple[str, str, str]:
    """Returns the status, the reason and the message of a call, which must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return of(raised.value)


def of(error: grpc.aio.AioRpcError) -> tuple[str, str, str]:
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return error.code().name, info.reason, error.details() or ""


def calls_of(stub: Any, **options: Any) -> list[Any]:
    """Starts a call of each unary method."""
    return [
        stub.Embed(EMBED, **options),
        stub.Similarity(SIMILARITY, **options),
        stub.ListModels(pb.ListModelsRequest(), **options),
        stub.Health(pb.HealthRequest(), **options),
    ]


async def test_without_a_key_every_call_is_unauthenticated(file: Path) -> None:
    """The reason says that a key is missing, and nothing is computed."""
    embedder = CountingEmbedder()
    async with open_server(file, two_models(embedder)) as stub:
        for call in calls_of(stub):
            assert (await refusal(call))[:2] == ("UNAUTHENTICATED", "KEY_REQUIRED")
        stream = stub.EmbedStream()
        assert (await refusal(stream.read()))[:2] == ("UNAUTHENTICATED", "KEY_REQUIRED")
    assert embedder.calls == []


async def test_a_wrong_key_is_unauthenticated(file: Path) -> None:
    """The reason is that of an invalid key, whatever is wrong with it."""
    key = add_key(file)
    wrong = [f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}", "isogloss_0123456789abcdef_" + "A" * 43, "x"]
    async with open_server(file) as stub:
        seen = {await refusal(stub.Embed(EMBED, metadata=bearer(text))) for text in wrong}
    assert seen == {("UNAUTHENTICATED", "KEY_INVALID", "the API key is not valid")}


async def test_a_valid_key_may_call_everything(file: Path) -> None:
    """A key without scopes calls every method."""
    metadata = bearer(add_key(file))
    async with open_server(file) as stub:
        await asyncio.gather(*calls_of(stub, metadata=metadata))
        stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=EMBED)]), metadata=metadata)
        assert [response.response.embeddings.rows async for response in stream] == [2]


async def test_an_unauthenticated_request_is_not_read(file: Path) -> None:
    """The refusal arrives before the caller has sent a request."""
    async with open_server(file) as stub:

        def begin_and_wait() -> None:
            with RawCaller(stub.address) as raw:
                raw.begin("Embed")  # headers alone
                raw.wait_for_status()

        await asyncio.to_thread(begin_and_wait)


async def test_a_method_outside_the_scope_is_denied(file: Path) -> None:
    """The reason names the methods that are allowed; those that describe the server always are."""
    metadata = bearer(add_key(file, methods=("Embed",)))
    async with open_server(file) as stub:
        await stub.Embed(EMBED, metadata=metadata)
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        code, reason, message = await refusal(stub.Similarity(SIMILARITY, metadata=metadata))
        assert (code, reason) == ("PERMISSION_DENIED", "METHOD_NOT_ALLOWED")
        assert message == "the key may not call Similarity; allowed: Embed"
        assert (await refusal(stub.EmbedStream(metadata=metadata).read()))[0] == "PERMISSION_DENIED"


async def test_a_model_outside_the_scope_does_not_exist_for_the_key(file: Path) -> None:
    """Its error is that of a name that is not served, and no name of another model is in it."""
    metadata = bearer(add_key(file, models=("public",)))
    async with open_server(file) as stub:
        seen = set()
        for name in ("secret", "absent"):
            for call in (
                stub.Embed(pb.EmbedRequest(texts=["a"], model=name), metadata=metadata),
                stub.Similarity(pb.SimilarityRequest(queries=texts("a"), model=name), metadata=metadata),
                stub.Health(pb.HealthRequest(model=name), metadata=metadata),
            ):
                seen.add(await refusal(call))
        assert seen == {("NOT_FOUND", "UNKNOWN_MODEL", "unknown model; served: public")}


async def test_a_key_sees_its_models_alone(file: Path) -> None:
    """ListModels, Health and the standard health service list the models of the scope."""
    metadata = bearer(add_key(file, models=("secret", "absent")))
    async with open_server(file) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        listed = await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        reported = await stub.Health(pb.HealthRequest(), metadata=metadata)
        standard = await health.List(health_pb2.HealthListRequest(), metadata=metadata)
    assert [model.name for model in listed.models] == ["secret"]
    assert [model.model for model in reported.models] == ["secret"]
    assert set(standard.statuses) == {"", SERVICE, "secret"}


async def test_the_default_model_is_the_first_that_the_key_may_use(file: Path) -> None:
    """A request without a model gets the first model of the scope, on streams and for comparisons too."""
    metadata = bearer(add_key(file, models=("secret",)))
    async with open_server(file) as stub:
        embedded = await stub.Embed(EMBED, metadata=metadata)
        compared = await stub.Similarity(SIMILARITY, metadata=metadata)
        stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=EMBED)]), metadata=metadata)
        streamed = [response.response.model async for response in stream]
    assert [embedded.model, compared.model, *streamed] == ["secret"] * 3


async def test_a_key_without_a_served_model_gets_none(file: Path) -> None:
    """If the scope has no served model, every method says that none is served."""
    metadata = bearer(add_key(file, models=("absent",)))
    async with open_server(file) as stub:
        for call in calls_of(stub, metadata=metadata):
            assert await refusal(call) == ("NOT_FOUND", "UNKNOWN_MODEL", "unknown model; served: none")


async def test_open_health_reveals_no_model_without_a_key(file: Path) -> None:
    """Probes need no key by default; names of models are unknown to them."""
    async with open_server(file) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        for name in ("", SERVICE):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == 1
        watch = health.Watch(health_pb2.HealthCheckRequest(service="public"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()
        assert set((await health.List(health_pb2.HealthListRequest())).statuses) == {"", SERVICE}
        assert (await refusal(health.Check(health_pb2.HealthCheckRequest(service="public"))))[0] == "NOT_FOUND"


async def test_health_can_be_closed(file: Path) -> None:
    """Without `open_health`, every method of the standard service needs a key."""
    metadata = bearer(add_key(file))
    async with open_server(file, open_health=False) as stub:
        health = health_pb2_grpc.HealthStub(stub.channel)
        for check, request in (
            (health.Check, health_pb2.HealthCheckRequest()),
            (health.List, health_pb2.HealthListRequest()),
        ):
            assert (await refusal(check(request)))[:2] == ("UNAUTHENTICATED", "KEY_REQUIRED")
            await check(request, metadata=metadata)
        assert (await refusal(health.Watch(health_pb2.HealthCheckRequest()).read()))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("is_open", [False, True])
async def test_reflection_needs_a_key_unless_it_is_open(file: Path, is_open: bool) -> None:
    """By default, reflection needs a key."""
    metadata = bearer(add_key(file))
    async with open_server(file, open_reflection=is_open) as stub:
        reflection = reflection_pb2_grpc.ServerReflectionStub(stub.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        for given in (metadata, None) if is_open else (metadata,):
            call = reflection.ServerReflectionInfo(iter([request]), metadata=given)
            assert [response async for response in call]
        if not is_open:
            assert (await refusal(reflection.ServerReflectionInfo(iter([request])).read()))[0] == "UNAUTHENTICATED"


async def test_a_key_that_is_revoked_ends_its_use_on_open_streams(file: Path) -> None:
    """The next request of a stream fails after the key is revoked; what the caller holds open gives nothing more."""
    metadata = bearer(add_key(file))
    ring = KeyRing(file, SystemClock())
    async with serving(two_models(), keys=ring) as stub:
        stream = stub.EmbedStream(metadata=metadata)
        await stream.write(pb.EmbedStreamRequest(id=1, request=EMBED))
        assert (await stream.read()).HasField("response")
        with changed(file) as entries:
            entries.clear()
        ring.reload()
        await stream.write(pb.EmbedStreamRequest(id=2, request=EMBED))
        response = await stream.read()
        assert response.error.code == grpc.StatusCode.UNAUTHENTICATED.value[0]
        stream.cancel()


async def test_the_name_of_the_key_is_that_of_the_caller(file: Path) -> None:
    """The engine's requests have the name."""
    seen: list[str] = []
    registry = two_models()
    admission = registry.get("public").ready.admission
    admit = admission.admit

    def recording(request: Any, *arguments: Any) -> Any:
        seen.append(request.caller)
        return admit(request, *arguments)

    admission.admit = recording  # type: ignore[method-assign]
    metadata = bearer(add_key(file, "search"))
    async with open_server(file, registry) as stub:
        await asyncio.gather(stub.Embed(EMBED, metadata=metadata), stub.Similarity(SIMILARITY, metadata=metadata))
    assert seen == ["search", "search"]


async def test_a_key_for_a_server_without_keys_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The call succeeds with a trailer that says so; the server logs it once, without the key."""
    async with serving(two_models()) as stub:
        for _ in range(3):
            call = stub.Embed(EMBED, metadata=bearer("a-key-of-another-server"))
            await call
            assert dict(await call.trailing_metadata())["x-isogloss-warning"] == "KEY_IGNORED"
        call = stub.Embed(EMBED)
        await call
        assert "x-isogloss-warning" not in dict(await call.trailing_metadata())
    warned = [record for record in caplog.records if "sent an API key" in record.message]
    assert len(warned) == 1
    assert "a-key-of" not in caplog.text + str([vars(record) for record in caplog.records])


@pytest.fixture
async def limited(file: Path) -> AsyncIterator[tuple[Any, Any, ManualClock]]:
    """A server, the metadata of a caller with 60 texts a minute, and the clock of its quota."""
    clock = ManualClock()
    metadata = bearer(add_key(file, texts_per_minute=60))
    async with open_server(file, quotas=Quotas(clock)) as stub:
        yield stub, metadata, clock


def request_of(count: int) -> pb.EmbedRequest:
    return pb.EmbedRequest(texts=["a"] * count)


async def test_beyond_the_quota_a_call_is_refused_with_the_time_to_retry(limited: Any) -> None:
    """RESOURCE_EXHAUSTED, reason QUOTA, and RetryInfo with the time until the texts fit."""
    stub, metadata, clock = limited
    await stub.Embed(request_of(50), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Embed(request_of(30), metadata=metadata)
    assert of(raised.value)[:2] == ("RESOURCE_EXHAUSTED", "QUOTA")
    trailers: dict[str, Any] = dict(raised.value.trailing_metadata() or ())
    status, retry = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToMilliseconds() == pytest.approx(20_000, abs=1)
    assert trailers["grpc-retry-pushback-ms"] == "20000"
    clock.advance(20)
    await stub.Embed(request_of(30), metadata=metadata)


async def test_a_retry_beyond_the_deadline_is_forbidden(limited: Any) -> None:
    """If the time to retry is later than the deadline, the trailer forbids clients to wait for it."""
    stub, metadata, _ = limited
    await stub.Embed(request_of(60), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Embed(request_of(60), metadata=metadata, timeout=30)
    assert dict(raised.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "-1"


async def test_quotas_count_streams_and_comparisons(limited: Any) -> None:
    """The texts of a stream and of both sides of a comparison are charged; vectors are not."""
    stub, metadata, _ = limited
    stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=request_of(20))]), metadata=metadata)
    assert [response.HasField("response") async for response in stream] == [True]
    await stub.Similarity(pb.SimilarityRequest(queries=texts(*"ab"), candidates=texts(*"cdef")), metadata=metadata)
    vectors = pb.VectorList(
        vectors=pb.Matrix(data=b"\0\0\x80?" * 8, rows=2, columns=4, element_type=1), space_id="s-test"
    )
    await stub.Similarity(pb.SimilarityRequest(queries=pb.Items(vectors=vectors)), metadata=metadata)
    await stub.Embed(request_of(34), metadata=metadata)
    stream = stub.EmbedStream(iter([pb.EmbedStreamRequest(id=1, request=request_of(1))]), metadata=metadata)
    assert [response.error.code async for response in stream] == [grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]


async def test_list_models_announces_no_more_texts_than_the_quota(limited: Any) -> None:
    """A client that splits its calls by the announced limit stays within the quota of one call."""
    stub, metadata, _ = limited
    listed = await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    assert {model.max_texts for model in listed.models} == {60}


async def test_calls_in_flight_beyond_the_quota_are_refused(file: Path) -> None:
    """A call beyond the limit is QUOTA, of another key not; when one ends, the next is accepted."""
    metadata, other = bearer(add_key(file, calls=1)), bearer(add_key(file, "other"))
    embedder = GatedEmbedder()
    async with open_server(file, two_models(embedder)) as stub:
        first = asyncio.ensure_future(stub.Embed(EMBED, metadata=metadata))
        await embedder.wait_for_calls(1)
        assert (await refusal(stub.Embed(EMBED, metadata=metadata)))[1] == "QUOTA"
        assert (await refusal(stub.EmbedStream(metadata=metadata).read()))[1] == "QUOTA"
        await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        second = asyncio.ensure_future(stub.Embed(EMBED, metadata=other))
        await embedder.wait_for_calls(2)
        embedder.open.set()
        await asyncio.gather(first, second)
        await accepted(stub, metadata)


async def accepted(stub: Any, metadata: Any) -> None:
    """Returns when a call is accepted: gRPC reports the end of a call after its caller has the response."""
    for _ in range(1000):
        try:
            await stub.Embed(EMBED, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            assert of(error)[1] == "QUOTA"  # noqa: PT017 - the only error that may occur before
        else:
            return
    raise AssertionError("the call that has ended is still counted")


async def test_a_cancelled_call_is_no_longer_in_flight(file: Path) -> None:
    """A caller that leaves gives its place back."""
    metadata = bearer(add_key(file, calls=1))
    embedder = GatedEmbedder()
    async with open_server(file, two_models(embedder)) as stub:
        call = stub.Embed(EMBED, metadata=metadata)
        waiting = asyncio.ensure_future(call.wait_for_connection())
        await embedder.wait_for_calls(1)
        waiting.cancel()
        call.cancel()
        embedder.open.set()
        await accepted(stub, metadata)
