"""similarity, pairwise, nearest: requests, splitting and merging."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isogloss import (
    Client,
    Embeddings,
    FieldViolation,
    InvalidArgumentError,
    IsoglossError,
    Metric,
    Neighbor,
    SpaceMismatchError,
    Vectors,
    _arguments,
    _compare,
)
from isogloss._embed import KnownLimits
from isogloss.testing import FakeServer, Received
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake import DIMENSIONS, SPACE, messages, methods, score, set_limits, vectors

QUERIES = [f"query {number}" for number in range(5)]
CANDIDATES = [f"candidate {number}" for number in range(37)]
LIMITS = {
    "max_texts": st.sampled_from([0, 2, 7]),
    "max_request_bytes": st.sampled_from([0, 150, 600]),
    "max_response_bytes": st.sampled_from([0, 200, 1000]),
    "max_pairs": st.sampled_from([0, 1, 6, 40]),
}
NO_LIMITS = dict.fromkeys(LIMITS, 0)
ARGUMENTS = _arguments.compare_arguments(
    model="", metric="cosine", dimensions=0, truncation=None, priority="interactive"
)
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def sides(draw: st.DrawFn, texts: list[str]) -> Any:
    """Draws a side, as texts or vectors, with repeated rows so that scores tie."""
    chosen = draw(st.lists(st.sampled_from(texts), min_size=1, max_size=30))
    return chosen if draw(st.booleans()) else Vectors(vectors(chosen), SPACE)


def rows_of(side: Any) -> np.ndarray:
    """Returns the vectors of a side of texts or vectors."""
    return side.array if isinstance(side, Vectors) else vectors(side)


def test_similarity_scores_all_pairs(client: Client, server: FakeServer) -> None:
    """values[i, j] is the score of query i with candidate j; a small comparison takes one request."""
    found = client.similarity(QUERIES, CANDIDATES, metric="dot")
    np.testing.assert_allclose(found.values, score(vectors(QUERIES), vectors(CANDIDATES), Metric.DOT), atol=1e-6)
    assert methods(server) == ["ListModels", "Similarity"]
    assert (found.model, found.space_id) == ("default", SPACE)


def test_requests_carry_every_argument(client: Client, server: FakeServer) -> None:
    """The request has all arguments of the caller."""
    server.model = "m"
    client.pairwise(
        ["a"],
        ["b"],
        model="m",
        metric="manhattan",
        dimensions=8,
        query_type="query",
        truncation="error",
        priority="bulk",
    )
    [request] = messages(server, "Similarity")
    assert request == pb.SimilarityRequest(
        queries=pb.Items(texts=pb.TextList(texts=["a"], input_type=pb.INPUT_TYPE_QUERY)),
        candidates=pb.Items(texts=pb.TextList(texts=["b"], input_type=pb.INPUT_TYPE_SIMILARITY)),
        model="m",
        metric=pb.METRIC_MANHATTAN,
        dimensions=8,
        truncation=pb.TRUNCATION_ERROR,
        priority=pb.PRIORITY_BULK,
        pairwise=pb.Pairwise(),
    )


def test_nearest_requests_carry_k_and_min_score(client: Client, server: FakeServer) -> None:
    """Queries and candidates are embedded with their input types, and an absent min_score stays absent."""
    client.nearest("a", ["b"], k=3, min_score=-0.5)
    client.nearest("a", ["b"])
    first, second = messages(server, "Similarity")
    assert (first.nearest.k, first.nearest.min_score) == (3, -0.5)
    assert not second.nearest.HasField("min_score")
    types = (first.queries.texts.input_type, first.candidates.texts.input_type)
    assert types == (pb.INPUT_TYPE_QUERY, pb.INPUT_TYPE_DOCUMENT)


@relaxed
@given(data=st.data(), limits=st.fixed_dictionaries(LIMITS), metric=st.sampled_from(["cosine", "dot", "euclidean"]))
def test_split_similarity_equals_a_single_request(
    server: FakeServer, data: st.DataObject, limits: dict[str, int], metric: str
) -> None:
    """For all limits and forms of the sides, the scores equal those of a single request."""
    queries, candidates = data.draw(sides(QUERIES)), data.draw(sides(CANDIDATES))
    set_limits(server, **NO_LIMITS)
    with Client(server.target) as client:
        whole = client.similarity(queries, candidates, metric=metric)
    set_limits(server, **limits)
    with Client(server.target) as client:
        found = client.similarity(queries, candidates, metric=metric)
    assert np.array_equal(found.values, whole.values)
    np.testing.assert_allclose(found.values, score(rows_of(queries), rows_of(candidates), Metric(metric)), atol=1e-6)


@relaxed
@given(
    data=st.data(),
    limits=st.fixed_dictionaries(LIMITS),
    k=st.integers(1, 40),
    min_score=st.none() | st.sampled_from([-0.5, 0.0, 0.25, 1.0]),
)
def test_split_nearest_equals_a_single_request(
    server: FakeServer, data: st.DataObject, limits: dict[str, int], k: int, min_score: float | None
) -> None:
    """Neighbours merged from blocks equal those of one request: by score, ties by row, with k and min_score."""
    queries, candidates = data.draw(sides(QUERIES)), data.draw(sides(CANDIDATES))
    set_limits(server, **NO_LIMITS)
    with Client(server.target) as client:
        scores = client.similarity(queries, candidates, metric="dot").values
    set_limits(server, **limits)
    with Client(server.target) as client:
        found = client.nearest_many(queries, candidates, k=k, min_score=min_score, metric="dot")
    for one, row in zip(found, scores, strict=True):
        ranked = sorted(range(len(row)), key=lambda candidate: (-row[candidate], candidate))
        kept = [candidate for candidate in ranked if min_score is None or row[candidate] >= min_score][:k]
        texts = candidates if isinstance(candidates, list) else [None] * len(row)
        assert one == [Neighbor(candidate, texts[candidate], row[candidate]) for candidate in kept]


@relaxed
@given(limits=st.fixed_dictionaries(LIMITS), size=st.integers(1, 30), as_vectors=st.booleans())
def test_split_pairwise_equals_a_single_request(
    server: FakeServer, limits: dict[str, int], size: int, as_vectors: bool
) -> None:
    """Scores of pairs are in order for all limits."""
    queries, candidates = CANDIDATES[:size], CANDIDATES[-size:]
    side = Vectors(vectors(candidates), SPACE) if as_vectors else candidates
    set_limits(server, **NO_LIMITS)
    with Client(server.target) as client:
        whole = client.pairwise(queries, side, metric="dot")
    set_limits(server, **limits)
    with Client(server.target) as client:
        found = client.pairwise(queries, side, metric="dot")
    assert np.array_equal(found.values, whole.values)
    np.testing.assert_allclose(found.values, (vectors(queries) * vectors(candidates)).sum(axis=1), atol=1e-6)


def test_a_split_comparison_without_candidates_embeds_its_texts_once(client: Client, server: FakeServer) -> None:
    """Without candidates the queries are compared with each other, and embedded once if split."""
    whole = client.similarity(CANDIDATES).values
    server.requests.clear()
    server.max_pairs = 100
    with Client(server.target) as other:
        assert np.array_equal(other.similarity(CANDIDATES).values, whole)
    assert methods(server)[:3] == ["ListModels", "Embed", "Similarity"]
    assert methods(server).count("Embed") == 1


def test_blocks_keep_the_limits(client: Client, server: FakeServer) -> None:
    """The server refuses no request of a split comparison; vectors count as bytes."""
    set_limits(server, max_request_bytes=640, max_pairs=16, max_response_bytes=2000)
    client.similarity(Vectors(vectors(QUERIES), SPACE), Vectors(vectors(CANDIDATES), SPACE))
    assert methods(server).count("ListModels") == 1
    assert len(messages(server, "Similarity")) > 1


def test_texts_beside_vectors_are_embedded_in_their_space_and_dimensions(client: Client, server: FakeServer) -> None:
    """Texts beside vectors get the vectors' space and dimensions, and keep their input type."""
    server.max_pairs = 5
    client.nearest("query", Vectors(vectors(CANDIDATES)[:, :8], SPACE))
    [request] = messages(server, "Embed")
    assert (request.space_id, request.dimensions, request.input_type) == (SPACE, 8, pb.INPUT_TYPE_QUERY)


def test_vectors_of_two_spaces_are_refused_before_a_request_is_sent(client: Client, server: FakeServer) -> None:
    """Vectors of different spaces are not comparable."""
    with pytest.raises(SpaceMismatchError) as raised:
        client.similarity(Vectors(vectors(QUERIES), "one"), Vectors(vectors(CANDIDATES), "two"))
    assert raised.value.reason == "SPACE_MISMATCH"
    assert server.requests == []


def test_the_result_of_embed_is_a_side(client: Client) -> None:
    """The result of embed is accepted as a side of a comparison."""
    stored: Embeddings = client.embed(CANDIDATES)
    found = client.nearest("candidate 7", stored, k=1)
    assert found == [Neighbor(7, None, 1.0)]


def test_a_model_change_between_the_sides_is_refused(client: Client, server: FakeServer) -> None:
    """If the model changes between the embeds of the two sides, SpaceMismatchError is raised."""
    server.max_pairs = 5

    def change_model(_received: Received) -> None:
        """Changes the space before the second side is answered."""
        if len(messages(server, "Embed")) == 2:
            server.space_id = "new"

    server.on_request = change_model
    with pytest.raises(SpaceMismatchError):
        client.similarity(QUERIES, CANDIDATES)


@pytest.mark.parametrize("side", ["queries", "candidates"])
def test_an_error_of_a_split_comparison_names_the_argument_and_row(
    client: Client, server: FakeServer, side: str
) -> None:
    """An invalid text of a split comparison is named by its side and its row in it."""
    server.max_texts = 2
    texts = {"queries": QUERIES, "candidates": CANDIDATES, side: ["a", "b", " "]}
    with pytest.raises(InvalidArgumentError) as raised:
        client.similarity(texts["queries"], texts["candidates"])
    assert [violation.field for violation in raised.value.violations] == [f"{side}[2]"]


def failed(plan: Any, field: str) -> IsoglossError:
    """Returns the error of a plan whose first request the server refuses for `field`."""
    next(plan)
    error = InvalidArgumentError(f"{field} is wrong", violations=(FieldViolation(field, f"see {field}"),))
    with pytest.raises(IsoglossError) as raised:
        plan.throw(error)
    return raised.value


@pytest.mark.parametrize(
    ("field", "argument"),
    [
        ("queries.texts.texts", "queries"),
        ("candidates.texts.texts[1]", "candidates[1]"),
        ("queries.texts.input_type", "query_type"),
        ("candidates.texts.input_type", "candidate_type"),
        ("candidates.vectors", "candidates"),
        ("candidates.vectors[2]", "candidates[2]"),
        ("queries.vectors.vectors", "queries"),
        ("candidates.vectors.space_id", "candidates.space_id"),
        ("nearest.k", "k"),
        ("nearest.min_score", "min_score"),
        ("model", "model"),
    ],
)
def test_errors_name_arguments_rather_than_fields_of_messages(field: str, argument: str) -> None:
    """Violations and message have the name of the method's argument."""
    sides = _arguments.sides(["a"], ["b"], "query", "document")
    error = failed(_compare.similarity(KnownLimits(), ARGUMENTS, sides), field)
    assert error.violations == (FieldViolation(argument, f"see {argument}"),)
    assert error.message == f"{argument} is wrong"


@pytest.mark.parametrize(
    ("field", "argument"),
    [("queries.texts.texts", "query"), ("queries.texts.texts[0]", "query"), ("candidates.texts.texts", "candidates")],
)
def test_errors_of_nearest_name_the_query(field: str, argument: str) -> None:
    """The single query of `nearest` has no row."""
    sides = _arguments.sides(["a"], ["b"], "query", "document")
    plan = _compare.nearest_to_one(KnownLimits(), ARGUMENTS, _arguments.nearest_shape(1, None), sides)
    assert [violation.field for violation in failed(plan, field).violations] == [argument]


def test_an_error_that_concerns_no_text_keeps_its_field(client: Client, server: FakeServer) -> None:
    """An error of a part that is not about a text does not name a text."""
    server.max_pairs = 5
    server.space_id = "other"
    with pytest.raises(SpaceMismatchError) as raised:
        client.similarity(QUERIES, Vectors(vectors(CANDIDATES), SPACE))
    assert [violation.field for violation in raised.value.violations] == ["space_id"]


def test_truncated_rows_are_equal_split_or_not(client: Client, server: FakeServer) -> None:
    """Split and single comparisons report the same truncated rows."""
    server.max_tokens = 2
    queries, candidates = ["a", "x " * 30], ["y " * 30, "b", "z " * 30]
    whole = client.similarity(queries, candidates)
    server.max_pairs = 2
    with Client(server.target) as other:
        split = other.similarity(queries, candidates)
        [_, second] = other.nearest_many(queries, candidates)
    assert (whole.truncated_queries, whole.truncated_candidates) == ((1,), (0, 2))
    assert (split.truncated_queries, split.truncated_candidates) == ((1,), (0, 2))
    assert (second.query_truncated, second.truncated_candidates) == (True, (0, 2))


def test_truncated_rows_of_texts_with_each_other_are_those_of_both_sides(client: Client, server: FakeServer) -> None:
    """Without candidates, the truncated queries are the truncated candidates, split or not."""
    server.max_tokens = 2
    texts = ["a", "x " * 30, "b"]
    whole = client.similarity(texts)
    server.max_pairs = 2
    with Client(server.target) as other:
        split = other.similarity(texts)
    for found in (whole, split):
        assert (found.truncated_queries, found.truncated_candidates) == ((1,), (1,))


def test_pairs_of_unequal_length_are_refused_before_a_request_is_sent(client: Client, server: FakeServer) -> None:
    """Pairwise requires as many candidates as queries."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.pairwise(["a"], ["b", "c"])
    assert (raised.value.reason, server.requests) == ("UNEQUAL_SIDES", [])


def test_vectors_of_unequal_dimensions_are_refused_before_a_request_is_sent(client: Client, server: FakeServer) -> None:
    """Vectors of different lengths are not comparable."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.similarity(Vectors(np.ones((1, 4)), SPACE), Vectors(np.ones((1, DIMENSIONS)), SPACE))
    assert (raised.value.reason, server.requests) == ("DIMENSION_MISMATCH", [])


def test_an_empty_side_is_sent_for_the_server_to_refuse(client: Client, server: FakeServer) -> None:
    """The client sends an empty list; the server's error describes it."""
    server.max_pairs = 1
    with pytest.raises(InvalidArgumentError) as raised:
        client.similarity(Vectors(np.ones((0, DIMENSIONS)), SPACE), Vectors(np.ones((3, DIMENSIONS)), SPACE))
    assert raised.value.reason == "BAD_MATRIX"
    assert messages(server, "Similarity")[0].queries.vectors.vectors.rows == 0


def test_changed_limits_of_a_comparison_are_fetched_again(client: Client, server: FakeServer) -> None:
    """A comparison that exceeds limits lowered in the meantime is split."""
    whole = client.similarity(QUERIES, CANDIDATES).values
    server.max_pairs = 10
    assert np.array_equal(client.similarity(QUERIES, CANDIDATES).values, whole)
