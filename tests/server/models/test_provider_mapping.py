"""Requests to providers, and the parsing of their responses, with the real SDKs and a provider on this machine."""

from typing import Any

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import ElementType
from isogloss.wire.matrix import to_elements, unit_length

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.fake_provider_wire import vectors_of
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, SMALL, V4, failure, remote
from tests.support.wire import array_of, texts

DOCUMENT = "search_document"
LIGHT_NAME, SMALL_NAME = "embed-multilingual-light-v3.0", "text-embedding-3-small"


@pytest.mark.parametrize(
    ("input_type", "word"),
    [
        (pb.INPUT_TYPE_UNSPECIFIED, DOCUMENT),
        (pb.INPUT_TYPE_SIMILARITY, DOCUMENT),
        (pb.INPUT_TYPE_DOCUMENT, DOCUMENT),
        (pb.INPUT_TYPE_QUERY, "search_query"),
        (pb.INPUT_TYPE_CLASSIFICATION, "classification"),
        (pb.INPUT_TYPE_CLUSTERING, "clustering"),
    ],
)
async def test_input_types_are_mapped_to_coheres(fake: FakeProvider, input_type: Any, word: str) -> None:
    """Each input type is sent as Cohere's, and the vectors are unchanged."""
    async with remote(fake, LIGHT, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["one", "two"], input_type=input_type))
    [request] = fake.requests
    assert (request.path, request.body["input_type"]) == ("/v2/embed", word)
    assert request.body == {
        "texts": ["one", "two"],
        "model": LIGHT_NAME,
        "input_type": word,
        "embedding_types": ["base64"],
        "truncate": "END",
    }
    assert request.headers["authorization"] == f"Bearer {KEY}"
    np.testing.assert_allclose(
        array_of(answer.embeddings), vectors_of(LIGHT_NAME, word, ["one", "two"], 384), atol=1e-7
    )


@pytest.mark.parametrize(
    ("truncation", "word"),
    [
        (pb.TRUNCATION_UNSPECIFIED, "END"),
        (pb.TRUNCATION_END, "END"),
        (pb.TRUNCATION_START, "START"),
        (pb.TRUNCATION_ERROR, "NONE"),
    ],
)
async def test_truncations_are_mapped_to_coheres(fake: FakeProvider, truncation: Any, word: str) -> None:
    """Each truncation is sent as Cohere's."""
    async with remote(fake, LIGHT, ManualClock()) as m:
        await m.stub.Embed(pb.EmbedRequest(texts=["one"], truncation=truncation))
    assert [request.body["truncate"] for request in fake.requests] == [word]


async def test_a_text_over_coheres_limit_is_an_invalid_argument(fake: FakeProvider) -> None:
    """If truncation is forbidden, Cohere's error is INVALID_ARGUMENT with its message, and is not retried."""
    async with remote(fake, LIGHT, ManualClock()) as m:
        call = m.stub.Embed(pb.EmbedRequest(texts=["word " * 513], truncation=pb.TRUNCATION_ERROR))
        told = await failure(call)
    assert (told.code, told.reason, told.retry_s) == ("INVALID_ARGUMENT", "PROVIDER_REFUSED", None)
    assert "too many tokens" in told.message
    assert len(fake.requests) == 1


@pytest.mark.parametrize("truncation", [pb.TRUNCATION_END, pb.TRUNCATION_START])
async def test_openai_has_no_truncation(fake: FakeProvider, truncation: Any) -> None:
    """A truncation that OpenAI does not offer is rejected before a call."""
    async with remote(fake, SMALL, ManualClock()) as m:
        told = await failure(m.stub.Embed(pb.EmbedRequest(texts=["one"], truncation=truncation)))
        listed = (await m.stub.ListModels(pb.ListModelsRequest())).models[0]
    assert (told.code, told.reason) == ("INVALID_ARGUMENT", "UNSUPPORTED_TRUNCATION")
    assert (list(listed.truncations), fake.requests) == ([pb.TRUNCATION_ERROR], [])


@pytest.mark.parametrize("truncation", [pb.TRUNCATION_UNSPECIFIED, pb.TRUNCATION_ERROR])
async def test_requests_to_openai_have_model_texts_and_encoding_alone(fake: FakeProvider, truncation: Any) -> None:
    """OpenAI receives model, texts and encoding, whatever the dimensions; the server truncates vectors."""
    async with remote(fake, SMALL, ManualClock()) as m:
        request = pb.EmbedRequest(texts=["one", "two"], dimensions=256, truncation=truncation)
        answer = await m.stub.Embed(request)
    [sent] = fake.requests
    assert (sent.path, sent.headers["authorization"]) == ("/v1/embeddings", f"Bearer {KEY}")
    assert sent.body == {"input": ["one", "two"], "model": SMALL_NAME, "encoding_format": "base64"}
    whole = vectors_of(SMALL_NAME, "", ["one", "two"], 1536)
    np.testing.assert_allclose(array_of(answer.embeddings), unit_length(whole[:, :256]), atol=1e-7)


@pytest.mark.parametrize("dimensions", [0, 256, 512, 1024, 1536])
async def test_the_server_truncates_vectors_of_embed_v4(fake: FakeProvider, dimensions: int) -> None:
    """embed-v4.0 is requested with all dimensions; the server keeps the leading columns, with unit length."""
    async with remote(fake, V4, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["one"], dimensions=dimensions))
    assert fake.requests[0].body["output_dimension"] == 1536
    whole = vectors_of("embed-v4.0", DOCUMENT, ["one"], 1536)
    np.testing.assert_allclose(array_of(answer.embeddings), unit_length(whole[:, : dimensions or 1536]), atol=1e-7)


@pytest.mark.parametrize(("source", "dimensions"), [(V4, 384), (LIGHT, 256), (SMALL, 100)])
async def test_unsupported_dimensions_are_rejected_before_a_call(
    fake: FakeProvider, source: str, dimensions: int
) -> None:
    """Dimensions that ListModels does not list are rejected before a call."""
    async with remote(fake, source, ManualClock()) as m:
        told = await failure(m.stub.Embed(pb.EmbedRequest(texts=["one"], dimensions=dimensions)))
    assert (told.reason, fake.requests) == ("UNSUPPORTED_DIMENSIONS", [])


@pytest.mark.parametrize("element_type", list(ElementType))
@pytest.mark.parametrize(("source", "model", "kind"), [(LIGHT, LIGHT_NAME, DOCUMENT), (SMALL, SMALL_NAME, "")])
async def test_the_server_converts_to_element_types(
    fake: FakeProvider, source: str, model: str, kind: str, element_type: ElementType
) -> None:
    """The bytes of every element type are those that the engine converts the provider's floats to."""
    async with remote(fake, source, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["one", "two"], element_type=element_type.number))
    rows = vectors_of(model, kind, ["one", "two"], fake.widths[model])
    due = to_elements(rows, rows.shape[1], normalize=True, element_type=element_type)
    np.testing.assert_array_equal(array_of(answer.embeddings), due.array)
    np.testing.assert_array_equal(answer.embeddings.row_scales, due.row_scales)


@pytest.mark.parametrize(("source", "model", "kind"), [(LIGHT, LIGHT_NAME, DOCUMENT), (SMALL, SMALL_NAME, "")])
async def test_lists_of_floats_are_parsed_too(source: str, model: str, kind: str) -> None:
    """A server that returns floats instead of base64 has the same vectors."""
    with FakeProvider(key=KEY, floats_only=True) as fake:
        async with remote(fake, source, ManualClock()) as m:
            answer = await m.stub.Embed(pb.EmbedRequest(texts=["one"]))
    np.testing.assert_allclose(
        array_of(answer.embeddings), vectors_of(model, kind, ["one"], fake.widths[model]), atol=1e-7
    )


async def test_vectors_of_openai_are_ordered_by_index(fake: FakeProvider) -> None:
    """Vectors in another order are arranged by their index."""
    fake.script.append(Scripted(order=lambda n: range(n)[::-1]))
    lines = ["one", "two", "three", "four", "five"]
    async with remote(fake, SMALL, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=lines))
    np.testing.assert_allclose(array_of(answer.embeddings), vectors_of(SMALL_NAME, "", lines, 1536), atol=1e-7)


async def test_similarity_sends_each_side_with_its_input_type(fake: FakeProvider) -> None:
    """Queries and candidates are sent with their input types, and scored by the provider's vectors."""
    async with remote(fake, LIGHT, ManualClock()) as m:
        answer = await m.stub.Similarity(
            pb.SimilarityRequest(
                queries=texts("a", input_type=pb.INPUT_TYPE_QUERY),
                candidates=texts("b", "c", input_type=pb.INPUT_TYPE_DOCUMENT),
            )
        )
    assert {request.body["input_type"]: request.texts for request in fake.requests} == {
        "search_query": ["a"],
        DOCUMENT: ["b", "c"],
    }
    due = vectors_of(LIGHT_NAME, "search_query", ["a"], 384) @ vectors_of(LIGHT_NAME, DOCUMENT, ["b", "c"], 384).T
    np.testing.assert_allclose(array_of(answer.scores), due, atol=1e-6)


async def test_models_with_equal_dimensions_have_different_spaces(fake: FakeProvider) -> None:
    """Two models with 384 dimensions never share a space; neither does one model at two addresses."""
    cards = []
    with FakeProvider(key=KEY) as other:
        for where, source in (
            (fake, LIGHT),
            (fake, "cohere:embed-english-light-v3.0"),
            (fake, "openai:all-MiniLM-L6-v2"),
            (other, LIGHT),
        ):
            async with remote(where, source, ManualClock()) as m:
                cards.append((await m.stub.ListModels(pb.ListModelsRequest())).models[0])
    assert {card.dimensions[0] for card in cards} == {384}
    assert len({card.space_id for card in cards}) == 4
    assert [(card.backend, card.has_roles) for card in cards] == [
        ("cohere", True),
        ("cohere", True),
        ("openai", False),
        ("cohere", True),
    ]
