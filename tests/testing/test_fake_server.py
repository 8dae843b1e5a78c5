"""FakeServer: reproducible vectors, responses and limits of the contract, health and recorded requests."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
from isogloss import (
    Client,
    ElementType,
    InvalidArgumentError,
    Metric,
    ServingStatus,
    SpaceMismatchError,
)
from isogloss.testing import FakeServer

TRANSLATIONS = [("Good morning", "おはよう", "Guten Morgen"), ("Good night", "おやすみ")]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Provides a server with translations and three lengths of vectors."""
    with FakeServer(translations=TRANSLATIONS, dimensions=(256, 64, 8)) as running:
        yield running


def test_vectors_are_equal_bit_for_bit_everywhere(client: Client) -> None:
    """A vector depends on text and space only: these are its bytes since the first release."""
    found = client.embed(["Good morning"]).vectors
    assert found.dtype == np.dtype("<f4")
    assert hashlib.sha256(found.tobytes()).hexdigest() == (
        "d4d7cba38d9a072a295674417324729d0c008524c4df72e90250d6c0a3de336d"
    )


@pytest.mark.parametrize("dimensions", [256, 64, 8])
def test_translations_are_close_and_other_texts_are_not(client: Client, dimensions: int) -> None:
    """The cosine of translations is at least 0.9 for all dimensions; that of other texts is near 0 for many."""
    texts = [text for group in TRANSLATIONS for text in group]
    vectors = client.embed(texts, dimensions=dimensions).vectors
    cosines = vectors @ vectors.T
    assert np.allclose(np.diagonal(cosines), 1, atol=1e-6)
    assert cosines[:3, :3].min() >= 0.9
    assert cosines[3:, 3:].min() >= 0.9
    if dimensions == 256:
        assert np.abs(cosines[:3, 3:]).max() < 0.4


def test_many_texts_stay_far_apart() -> None:
    """Among hundreds of texts, no two have a high cosine."""
    with FakeServer() as server, Client(server.target) as client:
        vectors = client.embed([f"text {number}" for number in range(500)]).vectors
    cosines = vectors @ vectors.T - np.eye(500, dtype=np.float32)
    assert np.abs(cosines).max() < 0.4
    assert abs(cosines.mean()) < 0.01


def test_added_translations_join_groups(server: FakeServer, client: Client) -> None:
    """Added texts are close to all texts of the groups they join, whose vectors do not change."""
    before = client.embed(["Good morning"]).vectors
    server.add_translations("Bonjour", "Buenos días")
    server.add_translations("Bonjour", "Guten Morgen")
    near = client.similarity(["Good morning", "Buenos días"], ["おはよう", "Bonjour"]).values
    assert near.min() >= 0.9
    assert np.array_equal(client.embed(["Good morning"]).vectors, before)


def test_a_str_as_a_group_is_refused() -> None:
    """A str in place of a group would be read as its characters."""
    with pytest.raises(TypeError, match="groups of texts"):
        FakeServer(translations=["Good morning"])


@pytest.mark.parametrize("element_type", ElementType)
def test_element_types_agree_with_float32(client: Client, element_type: ElementType) -> None:
    """Vectors of every element type equal the float32 ones within the precision of the type."""
    exact = client.embed(["a", "b"]).vectors
    found = client.embed(["a", "b"], element_type=element_type)
    assert found.element_type is element_type
    packed = element_type in {ElementType.BINARY, ElementType.UBINARY}
    assert np.allclose(found.vectors, np.where(exact > 0, 1, -1) if packed else exact, atol=1e-3)


def test_shorter_vectors_are_the_first_columns(client: Client) -> None:
    """Shorter vectors are the first columns of longer ones, with unit length only if normalized."""
    long = client.embed(["a"], normalize=False).vectors[0]
    short = client.embed(["a"], normalize=False, dimensions=8).vectors[0]
    assert np.array_equal(short, long[:8])
    assert np.linalg.norm(long) > 10
    unit = client.embed(["a"], dimensions=8).vectors[0]
    assert np.allclose(unit, short / np.linalg.norm(short))


def test_scores_are_those_of_the_vectors(client: Client) -> None:
    """For every shape, metric and form of the sides, scores are computed from the vectors."""
    texts, others = ["a", "b"], ["c", "a", "d"]
    one, other = client.embed(texts), client.embed(others)
    differences = one.vectors[:, None] - other.vectors[None]
    expected = {
        Metric.COSINE: one.vectors @ other.vectors.T,
        Metric.DOT: one.vectors @ other.vectors.T,
        Metric.EUCLIDEAN: -np.linalg.norm(differences, axis=2),
        Metric.MANHATTAN: -np.abs(differences).sum(axis=2),
    }
    for metric, scores in expected.items():
        for sides in ((texts, others), (one, others), (texts, other), (one, other)):
            assert np.allclose(client.similarity(*sides, metric=metric).values, scores, atol=1e-5)
        assert np.allclose(client.pairwise(texts, others[:2], metric=metric).values, np.diagonal(scores), atol=1e-5)
    assert [found.row for found in client.nearest("a", ["b", "a", "c", "a"], k=2)] == [1, 3]
    assert len(client.nearest("a", ["b", "a"], min_score=0.9)) == 1
    assert np.allclose(client.similarity(texts).values, one.vectors @ one.vectors.T, atol=1e-6)


def test_long_texts_are_truncated_or_refused(server: FakeServer, client: Client) -> None:
    """A text of more words than max_tokens is truncated at the requested side, or refused."""
    server.max_tokens = 2
    found = client.embed(["a b c", "a b", "a"])
    assert (found.truncated_rows, found.token_counts, found.total_tokens) == ((0,), (2, 2, 1), 5)
    assert np.array_equal(found.vectors[0], found.vectors[1])
    assert np.array_equal(client.embed(["a b c"], truncation="end").vectors, found.vectors[:1])
    ending = client.embed(["a b c"], truncation="start").vectors
    assert np.array_equal(ending, client.embed(["b c"]).vectors)
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "a b c"], truncation="error")
    assert (raised.value.reason, raised.value.violations[0].field) == ("TEXT_TOO_LONG", "texts[1]")


def test_partial_responses_have_row_errors(client: Client) -> None:
    """With allow_partial an invalid text has a zero row and a row error."""
    found = client.embed(["a", " ", "b"], allow_partial=True)
    assert [(error.row, error.code, error.reason) for error in found.row_errors] == [
        (1, "INVALID_ARGUMENT", "EMPTY_TEXT")
    ]
    assert not found.vectors[1].any()
    assert found.vectors[2].any()


def test_calls_are_split_by_the_limits(server: FakeServer, client: Client) -> None:
    """Changed limits apply to the next call, and the recorded requests show how the client splits it."""
    server.max_texts, server.max_pairs = 2, 4
    found = client.embed(["a", "b", "c"])
    assert len(found) == 3
    assert [received.texts for received in server.requests if received.method == "Embed"] == [("a", "b"), ("c",)]
    whole = found.vectors @ found.vectors.T
    assert np.allclose(client.similarity(found).values, whole, atol=1e-6)
    assert len([received for received in server.requests if received.method == "Similarity"]) > 1
    server.max_request_bytes = 3
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["abcd"])
    assert (raised.value.reason, raised.value.metadata) == ("REQUEST_TOO_LARGE", {"actual": "4", "limit": "3"})
    server.max_response_bytes = 10
    with pytest.raises(InvalidArgumentError, match="RESPONSE_TOO_LARGE"):
        client.embed(["a"])


def test_another_space_has_other_vectors(server: FakeServer, client: Client) -> None:
    """After a change of the space, stored vectors are refused, and texts have other vectors."""
    stored = client.embed(["Good night"])
    server.space_id = "another-space"
    with pytest.raises(SpaceMismatchError):
        client.nearest_many(["Good night"], stored)
    moved = client.embed(["Good night"])
    assert moved.space_id == "another-space"
    assert abs(float(moved.vectors[0] @ stored.vectors[0])) < 0.4


def test_health_and_models_report_the_settings(server: FakeServer, client: Client) -> None:
    """The server reports its status, the number of embedded texts, and its limits."""
    client.embed(["a", "b"])
    assert client.health().status is ServingStatus.SERVING
    assert client.health().models[0].embedded_texts == 2
    server.status = ServingStatus.DEGRADED
    assert client.health("fake").status is ServingStatus.DEGRADED
    [model] = client.models()
    assert (model.name, model.space_id, model.dimensions) == ("fake", "fake-space", (256, 64, 8))
    assert (model.max_texts, model.max_pairs) == (server.max_texts, server.max_pairs)


def test_requests_are_recorded(server: FakeServer) -> None:
    """A request is recorded with its method, texts, metadata and timeout."""
    from isogloss import ClientOptions

    options = ClientOptions(target=server.target, api_key="secret", timeout_s=20)
    with Client(options=options) as client:
        client.similarity(["a"], ["b"])
    received = server.requests[-1]
    assert (received.method, received.texts) == ("Similarity", ("a", "b"))
    assert received.metadata["authorization"] == "Bearer secret"
    assert received.timeout_s is not None
    assert 0 < received.timeout_s < 21  # gRPC rounds timeouts up on the wire
    server.requests.clear()
    assert server.requests == []


def test_an_address_only_once_started() -> None:
    """A server that was never started has no target, and says what to do."""
    server = FakeServer()
    with pytest.raises(RuntimeError, match="before its start"):
        _ = server.target
    server.stop()


async def test_asyncio(server: FakeServer) -> None:
    """The asyncio client works on it too."""
    from isogloss import AsyncClient

    async with AsyncClient(server.target) as client:
        [best] = await client.nearest("Good night", ["Guten Morgen", "おやすみ"], k=1)
    assert best.text == "おやすみ"


def test_vectors_can_be_computed_without_a_client(server: FakeServer, client: Client) -> None:
    """`vectors` returns those of a response, for the settings of the moment."""
    texts = ["Good night", "a"]
    assert np.array_equal(server.vectors(texts), client.embed(texts).vectors)
    server.space_id = "another-space"
    assert np.array_equal(server.vectors(texts), client.embed(texts).vectors)


def test_a_score_does_not_depend_on_the_other_rows(server: FakeServer, client: Client) -> None:
    """Every score of a comparison equals, bit for bit, that of its pair alone."""
    texts = [f"text {number}" for number in range(9)]
    for metric in Metric:
        whole = client.similarity(texts, metric=metric).values
        alone = [[client.similarity([a], [b], metric=metric).values[0, 0] for b in texts] for a in texts]
        assert np.array_equal(whole, alone)
