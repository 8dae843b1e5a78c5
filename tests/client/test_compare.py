"""similarity, pairwise, nearest: requests, splitting and merging."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isogloss import Client, Embeddings, InvalidArgumentError, Neighbor, SpaceMismatchError, Vectors
from isogloss.v1 import embedding_pb2 as pb

from tests.support.scripted_server import DIMENSIONS, SPACE, Running, Script, score, vector

QUERIES = [f"query {number}" for number in range(5)]
CANDIDATES = [f"candidate {number}" for number in range(37)]
LIMITS = {
    "max_texts": st.sampled_from([0, 2, 7]),
    "max_request_bytes": st.sampled_from([0, 150, 600]),
    "max_response_bytes": st.sampled_from([0, 200, 1000]),
    "max_pairs": st.sampled_from([0, 1, 6, 40]),
}
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vectors(texts: list[str]) -> np.ndarray:
    """Float32 [n, d]."""
    return np.array([vector(text) for text in texts])


@st.composite
def sides(draw: st.DrawFn, texts: list[str]) -> Any:
    """A side in one of its forms, with rows that repeat so that scores tie."""
    chosen = draw(st.lists(st.sampled_from(texts), min_size=1, max_size=30))
    return chosen if draw(st.booleans()) else Vectors(vectors(chosen), SPACE)


def rows_of(side: Any) -> np.ndarray:
    """The numbers of a side, whatever its form."""
    return side.array if isinstance(side, Vectors) else vectors(side)


def test_similarity_scores_all_pairs(client: Client, script: Script) -> None:
    """values[i, j] is query i's score with candidate j, in one request where it fits."""
    found = client.similarity(QUERIES, CANDIDATES, metric="dot")
    assert np.array_equal(found.values, score(vectors(QUERIES), vectors(CANDIDATES), pb.METRIC_DOT))
    assert script.methods() == ["ListModels", "Similarity"]
    assert (found.model, found.space_id) == ("default", SPACE)


def test_every_argument_arrives(client: Client, script: Script) -> None:
    """What the caller asks for is what the server reads."""
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
    [request] = script.requests("Similarity")
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


def test_nearest_asks_for_k_and_min_score(client: Client, script: Script) -> None:
    """Queries and candidates are embedded with their input types, and absent min_score stays absent."""
    client.nearest("a", ["b"], k=3, min_score=-0.5)
    client.nearest("a", ["b"])
    first, second = script.requests("Similarity")
    assert (first.nearest.k, first.nearest.min_score) == (3, -0.5)
    assert not second.nearest.HasField("min_score")
    types = (first.queries.texts.input_type, first.candidates.texts.input_type)
    assert types == (pb.INPUT_TYPE_QUERY, pb.INPUT_TYPE_DOCUMENT)


@relaxed
@given(data=st.data(), limits=st.fixed_dictionaries(LIMITS), metric=st.sampled_from(["cosine", "dot", "euclidean"]))
def test_any_split_of_similarity_equals_none(
    scripted: Running, data: st.DataObject, limits: dict[str, int], metric: str
) -> None:
    """Whatever the limits and the forms of the sides, every score is the one that a single request would answer."""
    queries, candidates = data.draw(sides(QUERIES)), data.draw(sides(CANDIDATES))
    scripted.script.limits.update(limits)
    with Client(scripted.address) as client:
        found = client.similarity(queries, candidates, metric=metric)
    expected = score(rows_of(queries), rows_of(candidates), pb.Metric.Value(f"METRIC_{metric.upper()}"))
    assert np.array_equal(found.values, expected)


@relaxed
@given(
    data=st.data(),
    limits=st.fixed_dictionaries(LIMITS),
    k=st.integers(1, 40),
    min_score=st.none() | st.integers(-5, 20),
)
def test_any_split_of_nearest_equals_none(
    scripted: Running, data: st.DataObject, limits: dict[str, int], k: int, min_score: float | None
) -> None:
    """Neighbours merged from blocks are those of one request: by score, ties by lower row, k and min_score kept."""
    queries, candidates = data.draw(sides(QUERIES)), data.draw(sides(CANDIDATES))
    scripted.script.limits.update(limits)
    with Client(scripted.address) as client:
        found = client.nearest_many(queries, candidates, k=k, min_score=min_score, metric="dot")
    scores = score(rows_of(queries), rows_of(candidates), pb.METRIC_DOT)
    for one, row in zip(found, scores, strict=True):
        ranked = sorted(range(len(row)), key=lambda candidate: (-row[candidate], candidate))
        kept = [candidate for candidate in ranked if min_score is None or row[candidate] >= min_score][:k]
        texts = candidates if isinstance(candidates, list) else [None] * len(row)
        assert one == [Neighbor(candidate, texts[candidate], row[candidate]) for candidate in kept]


@relaxed
@given(limits=st.fixed_dictionaries(LIMITS), size=st.integers(1, 30), as_vectors=st.booleans())
def test_any_split_of_pairwise_equals_none(
    scripted: Running, limits: dict[str, int], size: int, as_vectors: bool
) -> None:
    """Scores of pairs come back in order, however they were cut."""
    queries, candidates = CANDIDATES[:size], CANDIDATES[-size:]
    scripted.script.limits.update(limits)
    given_side = Vectors(vectors(candidates), SPACE) if as_vectors else candidates
    with Client(scripted.address) as client:
        found = client.pairwise(queries, given_side, metric="dot")
    assert np.array_equal(found.values, (vectors(queries) * vectors(candidates)).sum(axis=1))


def test_without_candidates_the_queries_meet_themselves(client: Client, script: Script) -> None:
    """A split comparison with itself embeds its texts once."""
    whole = client.similarity(CANDIDATES).values
    script.calls.clear()
    script.limits["max_pairs"] = 100
    with Client(client._options.target) as other:
        assert np.array_equal(other.similarity(CANDIDATES).values, whole)
    assert script.methods()[:3] == ["ListModels", "Embed", "Similarity"]
    assert script.methods().count("Embed") == 1


def test_blocks_keep_the_limits(client: Client, script: Script) -> None:
    """No request of a split comparison is refused, vectors counting as bytes."""
    script.limits.update(max_request_bytes=640, max_pairs=16, max_response_bytes=2000)
    client.similarity(Vectors(vectors(QUERIES), SPACE), Vectors(vectors(CANDIDATES), SPACE))
    assert script.methods().count("ListModels") == 1
    assert len(script.requests("Similarity")) > 1


def test_stored_vectors_pin_what_texts_are_embedded_to(client: Client, script: Script) -> None:
    """Texts beside vectors are embedded in the vectors' space and dimensions, and to their input type."""
    script.limits["max_pairs"] = 5
    client.nearest("query", Vectors(vectors(CANDIDATES)[:, :8], SPACE))
    [request] = script.requests("Embed")
    assert (request.space_id, request.dimensions, request.input_type) == (SPACE, 8, pb.INPUT_TYPE_QUERY)


def test_results_of_two_spaces_are_refused_before_anything_is_sent(client: Client, script: Script) -> None:
    """Comparing vectors of two spaces means nothing."""
    with pytest.raises(SpaceMismatchError) as raised:
        client.similarity(Vectors(vectors(QUERIES), "one"), Vectors(vectors(CANDIDATES), "two"))
    assert raised.value.reason == "SPACE_MISMATCH"
    assert script.calls == []


def test_embeddings_are_a_side(client: Client) -> None:
    """The result of embed goes straight into a comparison."""
    stored: Embeddings = client.embed(CANDIDATES)
    found = client.nearest("candidate 7", stored, k=1)
    assert found == [Neighbor(7, None, 1.0)]


def test_texts_embedded_in_two_spaces_are_refused(client: Client, script: Script) -> None:
    """A model that changes between the two sides of a split comparison is an error."""
    script.limits["max_pairs"] = 5
    script.spaces = ["any", "new"]
    with pytest.raises(SpaceMismatchError):
        client.similarity(QUERIES, CANDIDATES)


@pytest.mark.parametrize("side", ["queries", "candidates"])
def test_an_error_of_a_part_names_the_callers_field(client: Client, script: Script, side: str) -> None:
    """A bad text of a split comparison is named as in a single request."""
    script.limits["max_texts"] = 2
    script.bad_texts = {"bad"}
    texts = {"queries": QUERIES, "candidates": CANDIDATES, side: ["a", "b", "bad"]}
    with pytest.raises(InvalidArgumentError) as raised:
        client.similarity(texts["queries"], texts["candidates"])
    assert [violation.field for violation in raised.value.violations] == [f"{side}.texts.texts[2]"]


def test_a_fault_of_no_text_keeps_its_field(client: Client, script: Script) -> None:
    """What a part of a split comparison is refused for is not blamed on a text that it is not about."""
    script.limits["max_pairs"] = 5
    script.spaces = ["other"]
    with pytest.raises(SpaceMismatchError) as raised:
        client.similarity(QUERIES, Vectors(vectors(CANDIDATES), SPACE))
    assert [violation.field for violation in raised.value.violations] == ["space_id"]


def test_truncated_rows_are_told_either_way(client: Client, script: Script) -> None:
    """Rows whose text was cut are the same, split or not."""
    queries, candidates = ["a", "x" * 30], ["y" * 30, "b", "z" * 30]
    whole = client.similarity(queries, candidates)
    script.limits["max_pairs"] = 2
    with Client(client._options.target) as other:
        split = other.similarity(queries, candidates)
        [_, second] = other.nearest_many(queries, candidates)
    assert (whole.truncated_queries, whole.truncated_candidates) == ((1,), (0, 2))
    assert (split.truncated_queries, split.truncated_candidates) == ((1,), (0, 2))
    assert (second.query_truncated, second.truncated_candidates) == (True, (0, 2))


def test_unequal_sides_of_pairs_are_refused(client: Client, script: Script) -> None:
    """Pairs need as many queries as candidates, which is seen before anything is sent."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.pairwise(["a"], ["b", "c"])
    assert (raised.value.reason, script.calls) == ("UNEQUAL_SIDES", [])


def test_unequal_columns_are_refused(client: Client, script: Script) -> None:
    """Vectors of two lengths cannot be compared, which is seen before anything is sent."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.similarity(Vectors(np.ones((1, 4)), SPACE), Vectors(np.ones((1, DIMENSIONS)), SPACE))
    assert (raised.value.reason, script.calls) == ("DIMENSION_MISMATCH", [])


def test_an_empty_side_is_the_servers_to_refuse(client: Client, script: Script) -> None:
    """The server says in its own words that a list is empty."""
    script.limits["max_pairs"] = 1
    client.similarity(Vectors(np.ones((0, DIMENSIONS)), SPACE), Vectors(np.ones((3, DIMENSIONS)), SPACE))
    assert script.requests("Similarity")[0].queries.vectors.vectors.rows == 0


def test_changed_limits_of_a_comparison_are_learned_again(client: Client, script: Script) -> None:
    """A comparison that no longer fits is split after all."""
    whole = client.similarity(QUERIES, CANDIDATES).values
    script.limits["max_pairs"] = 10
    assert np.array_equal(client.similarity(QUERIES, CANDIDATES).values, whole)
