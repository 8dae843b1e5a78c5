"""Texts of callers, keys and other words of theirs are in nothing that a server writes, whatever happens."""

import contextlib
import io
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import isogloss
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc
from isogloss_server import logs, metrics
from isogloss_server.models.interfaces import Rows
from prometheus_client import generate_latest

from tests.support import shapes
from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Ending, Scripted
from tests.support.gated_model import GatedModel
from tests.support.injected_faults import serving_model
from tests.support.otlp_collector import Collector
from tests.support.panicking_tokenizer import PANIC_LETTER, panic_on_letter
from tests.support.provider import KEY
from tests.support.raw_http2 import RawCaller
from tests.support.server_process import ServerProcess
from tests.support.spans import Spans

MARK = "swordfish"
TEXT = f"one {MARK} two"
EMBED = "/isogloss.v1.EmbeddingService/Embed"
SMALL = "text-embedding-3-small"
METADATA = (
    ("authorization", f"Bearer {MARK}"),
    ("x-own", MARK),
    ("traceparent", f"00-{1:032x}-{1:016x}-01"),
    ("tracestate", MARK),  # invalid, since it has no value
    ("baggage", f"a={MARK}"),
)
Call = Callable[[Any], Any]


def embed(**fields: Any) -> Call:
    """Returns a call of Embed with a marked text, unless there are others."""
    request = pb.EmbedRequest(**{"texts": [TEXT], **fields})
    return lambda stub: stub.Embed(request, metadata=METADATA, timeout=60)


def similarity(**fields: Any) -> Call:
    """Returns a call of Similarity with marked texts."""
    items = pb.Items(texts=pb.TextList(texts=[TEXT, MARK]))
    request = pb.SimilarityRequest(**{"queries": items, "candidates": items, **fields})
    return lambda stub: stub.Similarity(request, metadata=METADATA, timeout=60)


def stream(*requests: pb.EmbedStreamRequest) -> Call:
    """Returns a call of EmbedStream, all of whose responses are read."""
    return lambda stub: list(stub.EmbedStream(iter(requests), metadata=METADATA, timeout=60))


def raw(method: str, request: bytes) -> Call:
    """Returns a call of any method with any bytes."""
    return lambda stub: stub.channel.unary_unary(method)(request, metadata=METADATA, timeout=60)


def cancelled(stub: Any) -> None:
    end = threading.Event()

    def requests() -> Iterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(id=1, request=STREAMED)
        end.wait(60)

    call = stub.EmbedStream(requests(), metadata=METADATA, timeout=60)
    next(call)
    call.cancel()
    end.set()
    next(call)


LARGE = [f"{TEXT} {row}" for row in range(1000)]
MALFORMED = b"\x0a\xff" + MARK.encode()
STREAMED = pb.EmbedRequest(texts=[TEXT])
# Each call with the codes that it may end with.
CALLS: dict[str, tuple[Call, str]] = {
    "static": (embed(), "OK"),
    "packed": (embed(model="packed", texts=[TEXT, MARK]), "OK"),
    "truncated": (embed(model="packed", texts=[f"{MARK} " * 5000]), "OK"),
    "too long": (embed(model="packed", texts=[f"{MARK} " * 5000], truncation="TRUNCATION_ERROR"), "INVALID_ARGUMENT"),
    "partial": (embed(texts=[TEXT, " ", ""], allow_partial=True), "OK"),
    "an empty text": (embed(texts=[TEXT, ""]), "INVALID_ARGUMENT"),
    "an unknown model": (embed(model=MARK), "NOT_FOUND"),
    "an unknown space": (embed(space_id=MARK), "FAILED_PRECONDITION"),
    "a comparison": (similarity(), "OK"),
    "the nearest": (similarity(nearest=pb.Nearest(k=1), model="packed"), "OK"),
    "an invalid k": (similarity(nearest=pb.Nearest(k=0)), "INVALID_ARGUMENT"),
    "an expired deadline": (
        lambda stub: stub.Embed(pb.EmbedRequest(texts=LARGE, model="packed"), timeout=0.001),
        "DEADLINE_EXCEEDED",
    ),
    "cancelled": (cancelled, "CANCELLED"),
    "too many texts": (embed(texts=[MARK] * 60_000), "INVALID_ARGUMENT"),
    "too large": (embed(texts=[MARK * 600_000]), "INVALID_ARGUMENT"),
    "larger than a message": (embed(texts=[MARK * 3_000_000]), "RESOURCE_EXHAUSTED"),
    "a malformed message": (
        raw("/isogloss.v1.EmbeddingService/Embed", MALFORMED),
        "INVALID_ARGUMENT",
    ),
    "an unknown method": (raw(f"/isogloss.v1.EmbeddingService/{MARK}", MARK.encode()), "UNIMPLEMENTED"),
    "a panic": (embed(model="panics", texts=[f"{MARK} {PANIC_LETTER}"]), "INTERNAL"),
    "a panic on a thread": (embed(model="panics", texts=[f"{MARK} {PANIC_LETTER} " * 200]), "INTERNAL"),
    "a stream": (
        stream(
            pb.EmbedStreamRequest(id=1, request=STREAMED),
            pb.EmbedStreamRequest(id=2, request=pb.EmbedRequest(texts=[TEXT], model=MARK)),
            pb.EmbedStreamRequest(id=3, request=pb.EmbedRequest(texts=[f"{MARK} {PANIC_LETTER}"], model="panics")),
        ),
        "OK",
    ),
    "a malformed message of a stream": (
        lambda stub: list(stub.channel.stream_stream(f"{EMBED}Stream")(iter([MALFORMED]), timeout=60)),
        "INVALID_ARGUMENT",
    ),
    "health of an unknown model": (
        lambda stub: stub.Health(pb.HealthRequest(model=MARK), metadata=METADATA, timeout=60),
        "NOT_FOUND",
    ),
    "health of an unknown service": (
        lambda stub: health_pb2_grpc.HealthStub(stub.channel).Check(health_pb2.HealthCheckRequest(service=MARK)),
        "NOT_FOUND",
    ),
    "reflection": (
        lambda stub: list(
            reflection_pb2_grpc.ServerReflectionStub(stub.channel).ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=MARK)])
            )
        ),
        "OK",
    ),
}
# What a provider sends back, and the reason of the error.
PROVIDER_FAULTS: dict[str, tuple[Scripted, str]] = {
    "refusal": (Scripted(status=400, body=f'{{"message": "invalid text: {TEXT}"}}'.encode()), "PROVIDER_REFUSED"),
    "key": (Scripted(status=401, body=f'{{"message": "no such key: {MARK}"}}'.encode()), "PROVIDER_CREDENTIALS"),
    "failure": (Scripted(status=500, body=f"<html>{TEXT}</html>".encode()), "PROVIDER_UNAVAILABLE"),
    "limit": (Scripted(status=429, body=f'{{"message": "{TEXT}"}}'.encode()), "PROVIDER_RATE_LIMIT"),
    "no-json": (Scripted(body=f"{{{TEXT}".encode()), "PROVIDER_ANSWER"),
    "no-vectors": (Scripted(body=f'{{"embeddings": {{"float": ["{TEXT}"]}}}}'.encode()), "PROVIDER_ANSWER"),
    "reset": (Scripted(ending=Ending.RESET), "PROVIDER_UNAVAILABLE"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a server wrote during all calls above: its output, its metrics, and its spans, by kind."""
    folder = tmp_path_factory.mktemp("models")
    packed, panics = (
        shapes.write(folder / "packed", shapes.SMALL),
        shapes.write(folder / "panics", shapes.SMALL, seed=1),
    )
    panic_on_letter(panics)
    outcomes: dict[str, str] = {}
    with FakeProvider(key=KEY) as fake, Collector() as collector:
        hosted = [f"{name}=openai:{SMALL}@{fake.address}/v1" for name in PROVIDER_FAULTS]
        models = ["isogloss-static", f"packed={packed}", f"panics={panics}", *hosted]
        flags = [part for model in models for part in ("--model", model)]
        flags += ["--tracing", "--log-level", "debug", "--metrics-port", "0", "--graph-cache", str(folder / "graphs")]
        environment = {**collector.environment, "OPENAI_API_KEY": KEY}
        with ServerProcess(*flags, env=environment) as server, grpc.insecure_channel(server.address) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            stub.channel = channel
            for name, (call, _) in CALLS.items():
                outcomes[name] = code_of(call, stub)
            for name, (fault, _) in PROVIDER_FAULTS.items():
                fake.script.append(fault)
                code_of(embed(model=name, texts=[f"{TEXT} {name}"]), stub)  # no text that is cached
            with isogloss.Client(server.address) as client:
                list(client.embed_many([TEXT] * 100))
            raw_calls(server.address)
            [url] = re.findall(r'"(http://[^"]*/metrics)"', "".join(server.lines))
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"{url}?{MARK}", timeout=60).read()
            page = urllib.request.urlopen(url, timeout=60).read().decode()
            server.stop()
        spans = "".join(map(str, collector.requests))
        outcomes |= dict(map(provider_fault, filter(is_failed_provider_call, collector.spans)))
    return {"output": "".join(server.lines), "metrics": page, "spans": spans, **outcomes}


def is_failed_provider_call(span: Any) -> bool:
    """Returns whether a span is of a call to the provider that failed."""
    return span.name == "provider call" and any(attribute.key == "error.type" for attribute in span.attributes)


def provider_fault(span: Any) -> tuple[str, str]:
    """Returns the model and the reason of a failed call to the provider."""
    attributes = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    return attributes["isogloss.model"], attributes["error.type"]


def code_of(call: Call, stub: Any) -> str:
    """Returns the code that a call ends with."""
    try:
        call(stub)
    except grpc.RpcError as error:
        return error.code().name  # type: ignore[attr-defined,no-any-return]
    return "OK"


def raw_calls(address: str) -> None:
    """Sends a call that ends in the middle of its text, and what is no call."""
    with RawCaller(address) as caller:
        caller.begin("Embed", (b"user-agent", b"raw"))
        caller.send(MARK.encode())
    with RawCaller(address, preface=False) as caller:
        caller.send(f"POST /{MARK} HTTP/1.1\r\n\r\n{TEXT}".encode())


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_take_the_paths_that_they_are_for(written: dict[str, str], name: str) -> None:
    """Each call ends as its path ends, so that the tests below are about that path."""
    assert written[name] == CALLS[name][1]


@pytest.mark.parametrize("name", PROVIDER_FAULTS)
def test_the_faults_of_the_provider_are_in_the_spans_by_their_reason(written: dict[str, str], name: str) -> None:
    """The span of the call to the provider has the reason of the fault."""
    assert written[name] == PROVIDER_FAULTS[name][1]


@pytest.mark.parametrize("kind", ["output", "metrics", "spans"])
def test_nothing_that_is_written_has_words_of_callers(written: dict[str, str], kind: str) -> None:
    """Neither the output, at the level debug, nor the metrics nor the spans have a text, a key, or metadata."""
    assert MARK not in written[kind].casefold()
    assert KEY not in written[kind]


def test_the_spans_are_of_all_kinds(written: dict[str, str]) -> None:
    """The spans that were searched are those of calls, stages, batches and calls to the provider."""
    for name in ("Embed", "EmbedStream", "Similarity"):
        assert f'name: "isogloss.v1.EmbeddingService/{name}"' in written["spans"]
    for name in ("admission", "tokenization", "queue", "batch", "inference", "request", "provider call", "comparison"):
        assert f'name: "{name}"' in written["spans"]


def raising(rows: Rows) -> Rows:
    raise ValueError(TEXT)


def exhausting(rows: Rows) -> Rows:
    raise MemoryError(TEXT)


def exiting(rows: Rows) -> Rows:
    raise SystemExit(TEXT)


@pytest.mark.parametrize("queued", [True, False], ids=["batcher", "direct"])
@pytest.mark.parametrize("fault", [raising, exhausting, exiting])
async def test_a_fault_of_a_model_that_quotes_a_text_is_written_without_it(
    static_folder: Path, fault: Callable[[Rows], Rows], *, queued: bool
) -> None:
    """The exception of a model is in log, spans and metrics by its class, and in the response not at all."""
    output, spans = io.StringIO(), Spans()
    handlers = [logging.StreamHandler(output), logging.StreamHandler(output)]
    for handler, formatter in zip(handlers, (logs.JsonFormatter(), logs.TextFormatter()), strict=True):
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    try:
        async with serving_model(static_folder, GatedModel(change=fault), queued=queued, tracer=spans.tracer) as server:
            outcome = await server.embed("one")
    finally:
        logging.getLogger().setLevel(logging.WARNING)
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
    exported = "".join(span.to_json() for span in spans.ended)
    page = generate_latest(metrics.REGISTRY).decode()
    assert outcome.code != "OK"
    assert f'"reason": "{outcome.reason}"' in output.getvalue()
    assert outcome.code in exported
    assert MARK not in f"{output.getvalue()}{exported}{page}{outcome}"
