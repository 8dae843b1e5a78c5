"""Every field of Embed and Similarity, over a real socket, on the bundled model."""

import unicodedata
from typing import Any

import grpc
import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.server_process import ServerProcess
from tests.support.wire import array_of, error_of, matrix_of, texts, vectors

TEXTS = ["Good morning", "Buenos días", "おはようございます", "The stock market fell", "Guten Morgen"]


def embed(stub: Any, *lines: str, **fields: Any) -> pb.EmbedResponse:
    return stub.Embed(pb.EmbedRequest(texts=lines, **fields))


def test_rows_belong_to_texts_and_have_unit_length(stub: Any) -> None:
    """Row i is that of texts[i], with unit length, and every figure of the response agrees with it."""
    response = embed(stub, *TEXTS)
    rows = array_of(response.embeddings)
    model = stub.ListModels(pb.ListModelsRequest()).models[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    for row, text in enumerate(TEXTS):
        np.testing.assert_array_equal(array_of(embed(stub, text).embeddings)[0], rows[row])
    assert rows.shape == (5, model.dimensions[0])
    assert (response.model, response.space_id) == (model.name, model.space_id)
    assert response.per_text_counts
    assert sum(response.token_counts) == response.total_tokens > 0
    assert not response.truncated_rows
    assert response.timings.total.nanos > 0


def test_dimensions_truncate_and_rescale(stub: Any) -> None:
    """Each offered number of dimensions keeps the leading columns, rescaled unless normalize is off."""
    raw = array_of(embed(stub, *TEXTS, normalize=False).embeddings)
    for dimensions in stub.ListModels(pb.ListModelsRequest()).models[0].dimensions:
        short = array_of(embed(stub, *TEXTS, dimensions=dimensions).embeddings)
        unscaled = array_of(embed(stub, *TEXTS, dimensions=dimensions, normalize=False).embeddings)
        expected = raw[:, :dimensions]
        np.testing.assert_array_equal(unscaled, expected)
        np.testing.assert_allclose(short, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_element_types_are_converted_from_the_same_rows(stub: Any) -> None:
    """Every element type is converted from the rows of FLOAT32."""
    rows = array_of(embed(stub, *TEXTS).embeddings)
    half = embed(stub, *TEXTS, element_type=pb.ELEMENT_TYPE_FLOAT16).embeddings
    np.testing.assert_array_equal(array_of(half), rows.astype(np.float16))
    for element_type, zero in ((pb.ELEMENT_TYPE_INT8, 0), (pb.ELEMENT_TYPE_UINT8, 128)):
        matrix = embed(stub, *TEXTS, element_type=element_type).embeddings
        scales = np.array(matrix.row_scales, np.float32)[:, None]
        assert (np.abs((array_of(matrix).astype(np.float32) - zero) * scales - rows) <= 0.501 * scales).all()
    bits = embed(stub, *TEXTS, element_type=pb.ELEMENT_TYPE_UBINARY).embeddings
    np.testing.assert_array_equal(array_of(bits), np.packbits(rows > 0, axis=1))
    signed = embed(stub, *TEXTS, element_type=pb.ELEMENT_TYPE_BINARY).embeddings
    np.testing.assert_array_equal(array_of(signed), np.packbits(rows > 0, axis=1).astype(int) - 128)
    assert bits.columns == rows.shape[1]


def test_truncation_reports_rows_and_counts(stub: Any) -> None:
    """A text over the limit is truncated at the requested end; its row is reported, and the kept tokens are counted."""
    limit = stub.ListModels(pb.ListModelsRequest()).models[0].max_tokens
    long = "1 " * limit + "2 " * limit
    ending = embed(stub, "a", long, truncation=pb.TRUNCATION_START)
    beginning = embed(stub, "a", long, truncation=pb.TRUNCATION_END)
    for response in (ending, beginning):
        assert list(response.truncated_rows) == [1]
        assert response.token_counts[1] == limit
    assert not np.array_equal(array_of(ending.embeddings)[1], array_of(beginning.embeddings)[1])


def test_partial_responses(stub: Any) -> None:
    """With allow_partial, an empty text is a row of zeros with a RowError that has the reason."""
    response = embed(stub, "fine", " ", allow_partial=True, element_type=pb.ELEMENT_TYPE_INT8)
    assert [error.row for error in response.row_errors] == [1]
    assert response.row_errors[0].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert b"EMPTY_TEXT" in response.row_errors[0].status.SerializeToString()
    assert not array_of(response.embeddings)[1].any()
    assert response.embeddings.row_scales[1] == 0


def test_an_expected_space_is_checked(stub: Any) -> None:
    """A request that expects the model's space succeeds; one that expects another fails."""
    space = embed(stub, "a").space_id
    assert embed(stub, "a", space_id=space).space_id == space
    assert error_of(lambda: embed(stub, "a", space_id="other")).reason == "SPACE_MISMATCH"


def test_input_types_and_priorities_do_not_change_the_bundled_models_vectors(stub: Any) -> None:
    """The bundled model has no prompts: every input type and priority has the same row."""
    expected = array_of(embed(stub, "a").embeddings)
    for number in pb.InputType.values():
        for priority in pb.Priority.values():
            response = embed(stub, "a", input_type=number, priority=priority)
            np.testing.assert_array_equal(array_of(response.embeddings), expected)


@pytest.mark.parametrize("metric", [1, 2, 3, 4])
def test_similarity_of_texts_is_that_of_their_vectors(stub: Any, metric: int) -> None:
    """Texts and their vectors from Embed have the same scores, on either side and in every shape."""
    embedded = embed(stub, *TEXTS)
    given = vectors(embedded.embeddings, embedded.space_id)
    expected = array_of(stub.Similarity(pb.SimilarityRequest(queries=given, metric=metric)).scores)
    assert expected.shape == (5, 5)
    for queries in (texts(*TEXTS), given):
        for candidates in (texts(*TEXTS), given):
            sides = {"queries": queries, "candidates": candidates, "metric": metric}
            everything = stub.Similarity(pb.SimilarityRequest(**sides))
            pairs = stub.Similarity(pb.SimilarityRequest(**sides, pairwise=pb.Pairwise()))
            nearest = stub.Similarity(pb.SimilarityRequest(**sides, nearest=pb.Nearest(k=2))).nearest.queries
            np.testing.assert_allclose(array_of(everything.scores), expected, atol=1e-6)
            np.testing.assert_allclose(array_of(pairs.scores)[0], np.diag(expected), atol=1e-6)
            assert [list(found.rows) for found in nearest] == np.argsort(-expected, axis=1)[:, :2].tolist()
            assert everything.space_id == embedded.space_id


def test_nearest_with_min_score_and_k_beyond_the_candidates(stub: Any) -> None:
    """With k beyond the candidates all are returned, best first; min_score omits the lower ones."""
    sides = {"queries": texts("Good morning"), "candidates": texts(*TEXTS)}
    everything = stub.Similarity(pb.SimilarityRequest(**sides, nearest=pb.Nearest(k=100))).nearest.queries[0]
    assert sorted(everything.rows) == [0, 1, 2, 3, 4]
    assert list(everything.scores) == sorted(everything.scores, reverse=True)
    lowest = everything.scores[2]
    some = stub.Similarity(pb.SimilarityRequest(**sides, nearest=pb.Nearest(k=100, min_score=lowest))).nearest.queries[
        0
    ]
    assert list(some.rows) == list(everything.rows)[:3]


def test_dimensions_of_texts_follow_the_vectors(stub: Any) -> None:
    """Texts compared with truncated vectors are embedded with the same dimensions; so are two sides of texts."""
    short = embed(stub, *TEXTS, dimensions=64)
    given = vectors(short.embeddings, short.space_id)
    mixed = stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS), candidates=given))
    asked = stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS), dimensions=64))
    np.testing.assert_allclose(array_of(mixed.scores), array_of(asked.scores), atol=1e-6)


def test_quantised_vectors_are_compared_by_value(stub: Any) -> None:
    """INT8, UINT8 and FLOAT16 vectors are scored by the numbers that they represent."""
    exact = array_of(stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS))).scores)
    for element_type in (pb.ELEMENT_TYPE_FLOAT16, pb.ELEMENT_TYPE_INT8, pb.ELEMENT_TYPE_UINT8):
        embedded = embed(stub, *TEXTS, element_type=element_type)
        scores = stub.Similarity(pb.SimilarityRequest(queries=vectors(embedded.embeddings, embedded.space_id))).scores
        np.testing.assert_allclose(array_of(scores), exact, atol=0.01)


def test_vectors_are_not_normalized(stub: Any) -> None:
    """Dot products are those of the given numbers, also without unit length; zeros have cosine 0."""
    space = embed(stub, "a").space_id
    rows = matrix_of([[3.0, 4.0], [0.0, 0.0]])
    request = {"queries": vectors(rows, space), "candidates": vectors(rows, space)}
    dots = stub.Similarity(pb.SimilarityRequest(**request, metric=pb.METRIC_DOT))
    cosines = stub.Similarity(pb.SimilarityRequest(**request))
    np.testing.assert_array_equal(array_of(dots.scores), [[25, 0], [0, 0]])
    np.testing.assert_array_equal(array_of(cosines.scores), [[1, 0], [0, 0]])


UNUSUAL = {
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🇺🇳",
    "right to left": "שלום \u202eעולם\u202c مرحبا",
    "combining marks": "e" + "\u0301" * 5000,
    "NUL": "a\0b\0",
    "NUL alone": "\0",
    "zero width": "\u200b\u200c\u200d\ufeff\u2060",
    "unassigned": "\u0378\u0379\U000e0080\U0001ffff",
    "private use and noncharacters": "\ue000\ufdd0\uffff\U0010ffff",
    "a million-character word": "a" * 1_000_000,
    "thirty scripts": "a я α א ع अ ক ਕ ક ଓ க క ಕ ക ක ก ກ ཀ က ა አ ᎠᎡ ᠮ ឧ ហ あ 漢 한 ꀀ ՙա ⵣ ߊ",
    "controls": "\x01\x02\x7f\x80\x9f",
    "lone marks": "\u0301\u0902\u3099",
    "every kind of space around": "\u2003x\u3000",
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_text_is_embedded_or_an_error(stub: Any, kind: str) -> None:
    """Every text has a finite vector of unit length, or an error with a reason."""
    text = UNUSUAL[kind]
    try:
        response = embed(stub, text, "and a plain one")
    except grpc.RpcError:
        assert error_of(lambda: embed(stub, text, "and a plain one")).reason == "TEXT_WITHOUT_TOKENS"
        return
    rows = array_of(response.embeddings)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_every_script_of_unicode_has_finite_vectors(stub: Any) -> None:
    """A character of each block of Unicode, assigned or not, is embedded or a row error."""
    characters = [chr(point) for point in range(0x21, 0x2FFFF, 89) if unicodedata.category(chr(point)) != "Cs"]
    letters = [character for character in characters if not character.isspace()]
    response = embed(stub, *letters, allow_partial=True)
    assert np.isfinite(array_of(response.embeddings)).all()
    assert len(response.row_errors) < len(letters)


def test_a_text_without_tokens_is_an_error(static_folder: Any) -> None:
    """A text without tokens is INVALID_ARGUMENT with reason TEXT_WITHOUT_TOKENS."""
    from isogloss.v1 import embedding_pb2_grpc

    with (
        ServerProcess("--model", f"small={static_folder}") as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        error = error_of(lambda: embed(stub, "one", "!!!"))
        assert (error.code, error.reason, error.fields) == ("INVALID_ARGUMENT", "TEXT_WITHOUT_TOKENS", ["texts[1]"])
        assert array_of(embed(stub, "one").embeddings).shape == (1, 3)


def test_a_request_of_the_maximum_size(stub: Any, server: ServerProcess) -> None:
    """Requests with max_texts texts, and with max_request_bytes of text, fit what a plain gRPC client receives."""
    model = stub.ListModels(pb.ListModelsRequest()).models[0]
    assert embed(stub, *["word"] * model.max_texts).embeddings.rows == model.max_texts
    line = "é" * 2000 + " "
    lines = [line] * (model.max_request_bytes // len(line.encode()))
    assert embed(stub, *lines).embeddings.rows == len(lines)
    assert error_of(lambda: embed(stub, *lines, *lines[: len(lines) // 2])).reason == "REQUEST_TOO_LARGE"
