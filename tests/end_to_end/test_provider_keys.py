"""The API key never leaks into logs, statuses, trailers, metrics or health, whatever the provider does."""

import json
import re
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Ending, Scripted, changed
from tests.support.server_process import ServerProcess

KEY = "sk-SENTINEL-4f0e9b1c7a2d8e6f5b3a-Zq"
PART_CHARACTERS = 12
TEXT = "the caller's own words, which are private"
LIGHT, SMALL = "embed-multilingual-light-v3.0", "text-embedding-3-small"
SOON = {"Retry-After": "1"}  # after the caller's deadline, so that the error is immediate
QUOTED = json.dumps(
    {
        "message": f"invalid: Bearer {KEY} for {TEXT}",
        "error": {"message": f"{KEY} and {TEXT}", "code": KEY, "type": KEY, "param": KEY},
    }
).encode()
QUOTING = {"X-Api-Key": KEY, "Set-Cookie": f"key={KEY}", **SOON}
SCENES = {
    "success": Scripted(headers=QUOTING),
    **{
        f"{status} that quotes the key": Scripted(status=status, headers=QUOTING, body=QUOTED)
        for status in (400, 401, 403, 404, 418, 422, 429, 498, 500, 503)
    },
    "401": Scripted(status=401),
    "a page that quotes the key": Scripted(headers={"Content-Type": "text/html"}, body=f"<p>{KEY}".encode()),
    "a response that quotes the key": Scripted(body=QUOTED),
    "malformed": Scripted(body=f'{{"data": "{KEY}'.encode()),
    "absurd": Scripted(body=json.dumps([KEY, {"embeddings": KEY}]).encode()),
    "absurd within": Scripted(
        body=json.dumps({"data": [{"index": {KEY: 1}}], "embeddings": {"base64": KEY}, "meta": KEY}).encode()
    ),
    "not compressed": Scripted(headers={"Content-Encoding": "gzip"}, body=KEY.encode()),
    "invalid character set": Scripted(headers={"Content-Type": f"application/json; charset={KEY}"}, body=QUOTED),
    "a redirect": Scripted(status=307, headers={"Location": f"http://127.0.0.1:1/?key={KEY}"}, body=b""),
    "reset": Scripted(ending=Ending.RESET),
    "too few": changed(lambda rows: rows[:0]),
}


def parts_of(key: str) -> Iterator[str]:
    """Yields every part of the key that is long enough to be useful."""
    for first in range(len(key) - PART_CHARACTERS + 1):
        yield key[first : first + PART_CHARACTERS]


def leaks(text: str) -> list[str]:
    """Returns the parts of the key in a text."""
    return [part for part in parts_of(KEY) if part in text]


def everything_of(error: Any) -> str:
    """Returns everything that a caller receives of a failed call."""
    metadata = *error.trailing_metadata(), *(error.initial_metadata() or ())
    words = str(error), repr(error), error.code().name, error.details(), error.debug_error_string()
    return "\n".join([*words, *(f"{name}={value!r}" for name, value in metadata)])


def health_of(stub: Any) -> str:
    return str(stub.Health(pb.HealthRequest())) + str(stub.ListModels(pb.ListModelsRequest()))


def test_neither_key_nor_text_leaks(tmp_path: Path) -> None:
    """At log level debug, with every failure, and with the key in variable and file, no 12 characters of it leak."""
    file = tmp_path / "key"
    file.write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with FakeProvider(key=KEY) as fake, FakeProvider(key=KEY, tls=context) as untrusted:
        sources = [
            f"cohere:{LIGHT}@{fake.address}",
            f"openai:{SMALL}@{fake.address}/v1",
            f"tls=cohere:{LIGHT}@{untrusted.address}",
            f"tls2=openai:{SMALL}@{untrusted.address}/v1",
        ]
        flags = [part for source in sources for part in ("--model", source)]
        flags += ["--log-level", "debug", "--metrics-port", "0", "--openai-key-file", str(file), "--cache-bytes", "0"]
        # Makes the SDKs log requests.
        noisy = {"CO_API_KEY": KEY, "OPENAI_API_KEY": None, "OPENAI_LOG": "debug", "HTTPX_LOG_LEVEL": "trace"}
        with ServerProcess(*flags, env=noisy) as process, grpc.insecure_channel(process.address) as channel:
            stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
            visible = [health_of(stub)]
            codes_by_scene = {}
            for name, scene in SCENES.items():
                fake.always = scene
                codes_by_scene[name], messages = _call_both(stub, (LIGHT, SMALL), 20.0 if name == "success" else 0.3)
                visible += [*messages, health_of(stub)]
                fake.always = None  # a success in between, so that the breaker stays closed
                assert _call_both(stub, (LIGHT, SMALL), 20.0)[0] == ["OK"] * 2
            visible += _call_both(stub, ("tls", "tls2"), 0.3)[1]
            url = re.search(r'"(http://[^"]*/metrics)"', "".join(process.lines))
            assert url is not None
            with urllib.request.urlopen(url[1], timeout=60) as response:
                visible.append(response.read().decode())
        lines = "".join(process.lines)
    assert {request.headers["authorization"] for request in fake.requests} == {f"Bearer {KEY}"}
    assert [name for name, codes in codes_by_scene.items() if "OK" in codes] == ["success"]
    assert not [name for name, codes in codes_by_scene.items() if {"INTERNAL", "UNKNOWN"} & set(codes)]
    assert not leaks(lines)
    assert not leaks("\n".join(visible))
    assert TEXT not in lines


def _call_both(stub: Any, models: tuple[str, str], timeout_s: float) -> tuple[list[str], list[str]]:
    """Returns the codes of a call to each model, and everything that the callers receive of failures."""
    codes, messages = [], []
    for call in [stub.Embed.future(pb.EmbedRequest(texts=[TEXT], model=m), timeout=timeout_s) for m in models]:
        codes.append(call.code().name)
        messages += [] if call.code() is grpc.StatusCode.OK else [everything_of(call.exception())]
    return codes, messages


@pytest.mark.parametrize("kind", ["cohere", "openai"])
def test_a_failed_start_does_not_leak_the_key(kind: str) -> None:
    """If a provider rejects the key and quotes it, the start fails with a line without it."""
    source = {"cohere": f"cohere:{LIGHT}@{{}}", "openai": f"openai:{SMALL}@{{}}/v1"}[kind]
    with FakeProvider() as fake:
        fake.always = Scripted(status=401, headers=QUOTING, body=QUOTED)
        env = {"CO_API_KEY": KEY, "OPENAI_API_KEY": KEY}
        process = ServerProcess("--log-level", "debug", "--model", source.format(fake.address), env=env)
        assert process.wait() == 1
    assert not leaks("".join(process.lines))
