"""Servers that implement a provider's API in part, or otherwise than its owner, with the real SDKs."""

from typing import Any

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.models.providers.embedder import call, probe
from isogloss_server.models.providers.interface import MAX_BILLED_TOKENS

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.fake_provider_wire import vectors_of
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, NIM, SMALL, Remote, failure, remote
from tests.support.wire import array_of

TEXTS = ["one", "two", "three"]
DOCUMENT = "search_document"
INVALID = ("UNAVAILABLE", "PROVIDER_ANSWER")
OPTIONS = InputType.SIMILARITY, Truncation.ERROR


def encoding_of(body: dict[str, Any]) -> str:
    """Returns the encoding that a request asks for."""
    return str(body.get("encoding_format") or body["embedding_types"][0])


async def rows_of(m: Remote) -> Any:
    """Returns the vectors of TEXTS."""
    return array_of((await m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30)).embeddings)


@pytest.mark.parametrize("source", [LIGHT, SMALL])
@pytest.mark.parametrize("words", ["encoding_format must be 'float'", "embedding_types: base64 is not supported"])
async def test_a_server_that_refuses_base64_is_asked_for_floats_once(source: str, words: str) -> None:
    """The refused call is repeated with floats, and later calls ask for floats at once."""
    with FakeProvider(key=KEY, refuses_base64=words) as fake:
        async with remote(fake, source, ManualClock()) as m:
            first, second = await rows_of(m), await rows_of(m)
    name, kind = (source.partition(":")[2], DOCUMENT if source is LIGHT else "")
    np.testing.assert_allclose(first, vectors_of(name, kind, TEXTS, first.shape[1]), atol=1e-7)
    np.testing.assert_array_equal(first, second)
    assert [encoding_of(request.body) for request in fake.requests] == ["base64", "float", "float"]


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_probe_finds_the_encoding_without_words(source: str) -> None:
    """A server that refuses base64 without a reason is recognized by the text of the probe, which is valid."""
    with FakeProvider(key=KEY, refuses_base64="") as fake:
        async with remote(fake, source, ManualClock()) as m:
            await probe(m.embedder._provider, timeout_s=30)
            await rows_of(m)
    assert [encoding_of(request.body) for request in fake.requests] == ["base64", "float", "float"]


async def test_a_refusal_for_another_reason_keeps_base64() -> None:
    """If floats are refused too, the error is that of base64, which is requested again."""
    with FakeProvider(key=KEY) as fake:
        async with remote(fake, SMALL, ManualClock()) as m:
            fake.script.extend([Scripted(status=400, body=b'{"detail": "bad encoding"}'), Scripted(status=422)])
            told = await failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30))
            await rows_of(m)
    assert (told.reason, told.message.endswith("bad encoding")) == ("PROVIDER_REFUSED", True)
    assert [encoding_of(request.body) for request in fake.requests] == ["base64", "float", "base64"]


def without_index(*rows: int) -> Scripted:
    """Returns a response whose items at `rows` have no index."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        for row in rows:
            del answer["data"][row]["index"]
        return answer

    return Scripted(edit=edit)


def with_indices(*indices: Any) -> Scripted:
    """Returns a response with these indices."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        for item, index in zip(answer["data"], indices, strict=True):
            item["index"] = index
        return answer

    return Scripted(edit=edit)


@pytest.mark.parametrize("scripted", [without_index(0), without_index(0, 1, 2), with_indices(None, 1, 2)])
async def test_omitted_indices_are_accepted(scripted: Scripted) -> None:
    """An index of 0 may be omitted, as proto3 JSON does. So may all: the order is then that of the texts."""
    with FakeProvider(key=KEY) as fake:
        fake.always = scripted
        async with remote(fake, SMALL, ManualClock()) as m:
            rows = await rows_of(m)
    np.testing.assert_allclose(rows, vectors_of("text-embedding-3-small", "", TEXTS, 1536), atol=1e-7)


async def test_an_omitted_index_of_0_keeps_its_place() -> None:
    """The item without an index is the first row, wherever it is in the response."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"data": [{**item, "index": item["index"] or None} for item in answer["data"]]}

    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(order=lambda n: range(n - 1, -1, -1), edit=edit)
        async with remote(fake, SMALL, ManualClock()) as m:
            rows = await rows_of(m)
    np.testing.assert_allclose(rows, vectors_of("text-embedding-3-small", "", TEXTS, 1536), atol=1e-7)


@pytest.mark.parametrize(
    "scripted",
    [
        without_index(1),
        without_index(0, 1),
        with_indices(0, 0, 0),
        with_indices(1, 2, 3),
        with_indices(-1, 0, 1),
        with_indices("0", "1", "2"),
        with_indices(0.0, 1.0, 2.0),
        with_indices(False, True, 2),
        with_indices([0], {}, None),
        with_indices(0, 1, 10**30),
    ],
)
async def test_ambiguous_indices_are_an_invalid_response(scripted: Scripted) -> None:
    """Indices that are not 0 to n - 1 are rejected: a vector is never assigned by a guess."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = scripted
        async with remote(fake, SMALL, clock) as m:
            told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30)))
    assert (told.code, told.reason) == INVALID


COUNTS = [-7, -0.5, 1e300, MAX_BILLED_TOKENS + 1, "many", None, [3], {}, float("nan"), float("inf")]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_an_impossible_number_of_billed_tokens_is_not_counted(source: str, count: Any) -> None:
    """Vectors are served whatever the usage says; what is not a count is reported as 0."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"usage": {"total_tokens": count}, "meta": {"billed_units": {"input_tokens": count}}}

    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(edit=edit)
        async with remote(fake, source, ManualClock()) as m:
            response = await m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30)
    assert (response.embeddings.rows, response.total_tokens, len(fake.requests)) == (3, 0, 1)


@pytest.mark.parametrize("usage", [None, {}, 5, "none", []])
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_response_without_usage_is_valid(source: str, usage: Any) -> None:
    """Servers that report no usage are served."""
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(edit=lambda answer: answer | {"usage": usage, "meta": usage})
        async with remote(fake, source, ManualClock()) as m:
            assert (await m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30)).total_tokens == 0


@pytest.mark.parametrize("numbers", [["0.5"] * 1536, [None] * 1536, [[0.5]] * 1536, [1e39] * 1536, [10**400]])
async def test_vectors_have_numbers_only(numbers: list[Any]) -> None:
    """Strings, null, nested lists and numbers beyond float32 are no vectors."""

    def edit(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"data": [{**item, "embedding": numbers} for item in answer["data"]]}

    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(edit=edit)
        async with remote(fake, SMALL, clock) as m:
            told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=30)))
    assert (told.code, told.reason) == INVALID


@pytest.mark.parametrize(
    ("input_type", "word"),
    [
        (pb.INPUT_TYPE_QUERY, "query"),
        (pb.INPUT_TYPE_DOCUMENT, "passage"),
        (pb.INPUT_TYPE_SIMILARITY, "query"),
        (pb.INPUT_TYPE_CLASSIFICATION, "query"),
        (pb.INPUT_TYPE_CLUSTERING, "query"),
    ],
)
async def test_input_types_are_mapped_to_nvidias(input_type: Any, word: str) -> None:
    """A model of the kind `nvidia` receives NVIDIA's input types and truncations in OpenAI's API."""
    with FakeProvider(key=KEY, needs_input_type=True) as fake:
        async with remote(fake, NIM, ManualClock()) as m:
            request = pb.EmbedRequest(texts=TEXTS, input_type=input_type, truncation=pb.TRUNCATION_START)
            rows = array_of((await m.stub.Embed(request)).embeddings)
            models = (await m.stub.ListModels(pb.ListModelsRequest())).models
    name = NIM.partition(":")[2]
    np.testing.assert_allclose(rows, vectors_of(name, word, TEXTS, 1024), atol=1e-7)
    [sent] = fake.requests
    assert (sent.path, sent.body["input_type"], sent.body["truncate"]) == ("/v1/embeddings", word, "START")
    assert (models[0].has_roles, models[0].backend) == (True, "nvidia")


async def test_openais_own_api_receives_no_input_type() -> None:
    """The fields of other servers are not sent to OpenAI, which rejects unknown ones."""
    with FakeProvider(key=KEY) as fake:
        async with remote(fake, SMALL, ManualClock()) as m:
            await call(m.embedder._provider, TEXTS, OPTIONS, timeout_s=30, columns=0)
    assert set(fake.requests[0].body) == {"model", "input", "encoding_format"}
