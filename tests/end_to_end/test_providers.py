"""A server process with models of a provider: the responses, statuses and metrics."""

import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.fake_provider_wire import vectors_of
from tests.support.provider import KEY, told
from tests.support.server_process import ServerProcess
from tests.support.wire import array_of, error_of

LIGHT, SMALL, LOCAL = "embed-multilingual-light-v3.0", "text-embedding-3-small", "all-MiniLM-L6-v2"
NO_KEYS: dict[str, str | None] = {"CO_API_KEY": None, "OPENAI_API_KEY": None}
KEYS: dict[str, str | None] = {"CO_API_KEY": KEY, "OPENAI_API_KEY": KEY}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[FakeProvider, ServerProcess]]:
    """A server with a model of each kind, and its provider."""
    with FakeProvider(key=KEY) as fake:
        sources = [
            f"cohere:{LIGHT}@{fake.address}",
            f"openai:{SMALL}@{fake.address}/v1",
            f"mine=openai:{LOCAL}@{fake.address}/v1/",
        ]
        flags = [part for source in sources for part in ("--model", source)]
        with ServerProcess(*flags, "--metrics-port", "0", "--cache-bytes", "0", env=KEYS) as process:
            yield fake, process


@pytest.fixture
def fake(shared: tuple[FakeProvider, ServerProcess]) -> FakeProvider:
    """The provider, without the requests of earlier tests."""
    shared[0].script.clear()
    shared[0].requests.clear()
    return shared[0]


@pytest.fixture(scope="module")
def metrics_url(shared: tuple[FakeProvider, ServerProcess]) -> str:
    """The URL of the metrics."""
    lines = "".join([shared[1].address, *shared[1].lines])
    found = re.search(r'"(http://[^"]*/metrics)"', lines)
    assert found is not None
    return found[1]


@pytest.fixture
def stub(shared: tuple[FakeProvider, ServerProcess]) -> Iterator[Any]:
    """The generated stub on the server."""
    with grpc.insecure_channel(shared[1].address) as channel:
        yield embedding_pb2_grpc.EmbeddingServiceStub(channel)


def failure(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


@pytest.mark.parametrize(
    ("model", "name", "kind"),
    [("", LIGHT, "search_document"), (LIGHT, LIGHT, "search_document"), (SMALL, SMALL, ""), ("mine", LOCAL, "")],
)
def test_responses_are_those_of_any_model(fake: FakeProvider, stub: Any, model: str, name: str, kind: str) -> None:
    """Whichever the provider, the vectors are those of the contract, in the texts' order."""
    texts = [f"line {row}" for row in range(70)]
    answer = stub.Embed(pb.EmbedRequest(texts=texts, model=model))
    np.testing.assert_allclose(array_of(answer.embeddings), vectors_of(name, kind, texts, fake.widths[name]), atol=1e-7)
    assert (answer.total_tokens, answer.per_text_counts) == (140, False)
    assert max(len(request.texts) for request in fake.requests) == {LIGHT: 70, SMALL: 32, LOCAL: 32}[name]


def test_list_models_has_the_properties_of_each(stub: Any) -> None:
    """Names, backends, dimensions and truncations are those of the provider's models, and no two share a space."""
    models = stub.ListModels(pb.ListModelsRequest()).models
    assert [(m.name, m.backend, m.dimensions[0], m.has_roles) for m in models] == [
        (LIGHT, "cohere", 384, True),
        (SMALL, "openai", 1536, False),
        ("mine", "openai", 384, False),
    ]
    everything = {pb.TRUNCATION_END, pb.TRUNCATION_START, pb.TRUNCATION_ERROR}
    assert [set(m.truncations) for m in models] == [everything, {pb.TRUNCATION_ERROR}, {pb.TRUNCATION_ERROR}]
    assert len({m.space_id for m in models}) == 3


def test_the_space_of_another_model_with_equal_dimensions_is_rejected(stub: Any) -> None:
    """light-v3.0 and MiniLM both have 384 dimensions, but different spaces."""
    light, _, mine = stub.ListModels(pb.ListModelsRequest()).models
    request = pb.EmbedRequest(texts=["one"], model="mine", space_id=light.space_id)
    assert error_of(lambda: stub.Embed(request)).reason == "SPACE_MISMATCH"
    assert mine.dimensions[0] == light.dimensions[0] == 384


def test_a_rate_limit_beyond_the_deadline(fake: FakeProvider, stub: Any) -> None:
    """Status, RetryInfo and the trailer that gRPC clients obey reach the caller at once."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "100"}))
    request = pb.EmbedRequest(texts=["one"], model="mine")
    seen = told(failure(lambda: stub.Embed(request, timeout=50)))
    assert (seen.code, seen.reason, seen.pushback_ms) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT", -1)
    assert seen.retry_s == 100
    assert len(fake.requests) == 1


def test_a_cancelled_rpc_cancels_the_providers_call(fake: FakeProvider, stub: Any) -> None:
    """If the caller cancels, the connection to the provider is closed."""
    fake.script.append(Scripted(gate=fake.gate()))
    future = stub.Embed.future(pb.EmbedRequest(texts=["one"]))
    request = fake.wait_for(1)
    future.cancel()
    assert request.cut.wait(60)


def test_metrics_count_calls_texts_and_billed_tokens(fake: FakeProvider, stub: Any, metrics_url: str) -> None:
    """Calls by outcome, texts, billed tokens and retries are counted for each model; no text is in them."""
    before = _metrics(metrics_url)
    fake.script.append(Scripted(status=500))
    stub.Embed(pb.EmbedRequest(texts=["secret words", "secret words", "more"], model=SMALL))
    after = _metrics(metrics_url)
    label = f'model="{SMALL}"'
    assert {name: value - before[name] for name, value in after.items() if value != before[name]} == {
        f'isogloss_provider_calls_total{{{label},outcome="PROVIDER_UNAVAILABLE"}}': 1,
        f'isogloss_provider_calls_total{{{label},outcome="ok"}}': 1,
        f"isogloss_provider_texts_total{{{label}}}": 2,
        f"isogloss_provider_billed_tokens_total{{{label}}}": 3,
        f"isogloss_provider_retries_total{{{label}}}": 1,
    }
    assert not any("secret" in name for name in after)


def _metrics(url: str) -> Counter[str]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    counted = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return Counter({name: float(value) for name, value in counted if "isogloss_provider" in name and "_total" in name})


def startup_error(*flags: str, env: dict[str, str | None], status: int) -> str:
    """Returns the line that the server's start fails with, after it has exited with `status`."""
    process = ServerProcess(*flags, env=env)
    assert process.wait() == status
    [line] = [line for line in process.lines if not line.startswith("{")]
    assert line.startswith("isogloss-server: ")
    return line


def test_a_missing_key_ends_the_start() -> None:
    """A provider's model without a key is one line that names the variable and the flag."""
    line = startup_error("--model", "cohere:embed-v4.0", env=NO_KEYS, status=2)
    assert "CO_API_KEY" in line
    assert "--cohere-key-file" in line


def test_the_error_of_a_retired_model_names_its_successors() -> None:
    """embed-multilingual-v2.0 is rejected with its successors."""
    line = startup_error("--model", "cohere:embed-multilingual-v2.0", env=KEYS, status=2)
    assert "embed-v4.0" in line
    assert "embed-multilingual-v3.0" in line


@pytest.mark.parametrize(
    ("source", "key", "word"),
    [
        ("cohere:embed-v4.0@{}", "wrong-0123456789-wrong", "key"),
        ("openai:nothing@{}/v1", KEY, "does not have the model"),
    ],
)
def test_a_rejection_by_the_provider_ends_the_start(source: str, key: str, word: str) -> None:
    """A key or model that the provider rejects ends the start with one line, which does not quote the key."""
    with FakeProvider(key=KEY) as fake:
        env = {"CO_API_KEY": key, "OPENAI_API_KEY": key}
        line = startup_error("--model", source.format(fake.address), env=env, status=1)
    assert word in line
    assert key[:12] not in line


@pytest.mark.parametrize(
    ("variable", "value"), [("ALL_PROXY", "socks5://user:secret@127.0.0.1:1"), ("SSL_CERT_FILE", "/nowhere/ca.pem")]
)
def test_a_variable_that_breaks_connections_ends_the_start(variable: str, value: str) -> None:
    """An unusable proxy or certificate file is one line that names the variable."""
    with FakeProvider(key=KEY) as fake:
        line = startup_error(
            "--model", f"openai:all-MiniLM-L6-v2@{fake.address}/v1", env={**KEYS, variable: value}, status=1
        )
    assert variable in line
    assert "secret" not in line


def test_a_model_of_nvidia_is_served_from_a_url() -> None:
    """A NIM, which requires an input type and refuses base64 without a reason, starts and serves."""
    with FakeProvider(key=KEY, needs_input_type=True, refuses_base64="") as fake:
        source = f"nvidia:nvidia/nv-embedqa-e5-v5@{fake.address}/v1"
        process = ServerProcess("--model", source, env={**NO_KEYS, "NVIDIA_API_KEY": KEY})
        with process, grpc.insecure_channel(process.address) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            request = pb.EmbedRequest(texts=["one"], model="nv-embedqa-e5-v5", input_type=pb.INPUT_TYPE_QUERY)
            assert stub.Embed(request, timeout=60).embeddings.columns == 1024
    sent = [(r.body["input_type"], r.body["encoding_format"]) for r in fake.requests]
    assert sent == [("passage", "base64"), ("passage", "float"), ("query", "float")]


def test_a_drain_waits_for_calls_to_the_provider(tmp_path: Path) -> None:
    """A call to the provider that is in flight at the signal succeeds."""
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    with FakeProvider(key=KEY) as fake:
        source = f"cohere:{LIGHT}@{fake.address}"
        process = ServerProcess("--model", source, "--cohere-key-file", str(file), env=NO_KEYS)
        with grpc.insecure_channel(process.address) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            gate, seen = fake.gate(), len(fake.requests)
            fake.script.append(Scripted(gate=gate))
            future = stub.Embed.future(pb.EmbedRequest(texts=["one"]))
            fake.wait_for(seen + 1)
            stopping = threading.Thread(target=process.stop)
            stopping.start()
            process.wait_for("draining")
            gate.open()
            assert future.result(timeout=60).embeddings.rows == 1
            stopping.join(60)
    assert process.process.returncode == 0
