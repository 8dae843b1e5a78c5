"""Every field of Embed and Similarity, over a real socket, on the bundled model."""

import unicodedata
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from isogloss.v1 import embedding_pb2 as pb

from tests.support.server_process import ServerProcess
from tests.support.wire import array_of, error_of, matrix_of, texts, vectors

TEXTS = ["Good morning", "Buenos días", "おはようございます", "The stock market fell", "Guten Morgen"]


def embed(stub: Any, *lines: str, **fields: Any) -> pb.EmbedResponse:
    return stub.Embed(pb.EmbedRequest(texts=lines, **fields))


def test_rows_belong_to_texts_and_have_unit_length(stub: Any) -> None:
    """Row i is texts[i]'s, of unit length, and every number about the answer agrees with it."""
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


def test_dimensions_shorten_and_rescale(stub: Any) -> None:
    """Each offered number of dimensions keeps the leading columns, rescaled unless normalize is off."""
    raw = array_of(embed(stub, *TEXTS, normalize=False).embeddings)
    for dimensions in stub.ListModels(pb.ListModelsRequest()).models[0].dimensions:
        short = array_of(embed(stub, *TEXTS, dimensions=dimensions).embeddings)
        unscaled = array_of(embed(stub, *TEXTS, dimensions=dimensions, normalize=False).embeddings)
        expected = raw[:, :dimensions]
        np.testing.assert_array_equal(unscaled, expected)
        np.testing.assert_allclose(short, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)


def test_element_types_are_of_the_same_rows(stub: Any) -> None:
    """Every element type is made from the rows that FLOAT32 gives."""
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
    """A text over the limit is cut at the asked end, its row reported and its tokens counted after the cut."""
    limit = stub.ListModels(pb.ListModelsRequest()).models[0].max_tokens
    long = "1 " * limit + "2 " * limit
    ending = embed(stub, "a", long, truncation=pb.TRUNCATION_START)
    beginning = embed(stub, "a", long, truncation=pb.TRUNCATION_END)
    for response in (ending, beginning):
        assert list(response.truncated_rows) == [1]
        assert response.token_counts[1] == limit
    assert not np.array_equal(array_of(ending.embeddings)[1], array_of(beginning.embeddings)[1])


def test_partial_answers(stub: Any) -> None:
    """With allow_partial an empty text is a zero row with a RowError that carries the reason."""
    response = embed(stub, "fine", " ", allow_partial=True, element_type=pb.ELEMENT_TYPE_INT8)
    assert [error.row for error in response.row_errors] == [1]
    assert response.row_errors[0].status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert b"EMPTY_TEXT" in response.row_errors[0].status.SerializeToString()
    assert not array_of(response.embeddings)[1].any()
    assert response.embeddings.row_scales[1] == 0


def test_an_expected_space_is_kept_or_refused(stub: Any) -> None:
    """A request that expects the model's space is answered, one that expects another is refused."""
    space = embed(stub, "a").space_id
    assert embed(stub, "a", space_id=space).space_id == space
    assert error_of(lambda: embed(stub, "a", space_id="other")).reason == "SPACE_MISMATCH"


def test_roles_lanes_and_defaults_are_accepted(stub: Any) -> None:
    """The bundled model has no roles: every input type and priority gives the same row."""
    expected = array_of(embed(stub, "a").embeddings)
    for number in pb.InputType.values():
        for lane in pb.Priority.values():
            got = embed(stub, "a", input_type=number, priority=lane)
            np.testing.assert_array_equal(array_of(got.embeddings), expected)


@pytest.mark.parametrize("metric", [1, 2, 3, 4])
def test_similarity_of_texts_is_that_of_their_vectors(stub: Any, metric: int) -> None:
    """Texts and the vectors that Embed gave for them score alike, on either side and in every shape."""
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


def test_nearest_with_min_score_and_more_k_than_candidates(stub: Any) -> None:
    """K beyond the candidates gives all of them, best first; min_score leaves the lower ones out."""
    sides = {"queries": texts("Good morning"), "candidates": texts(*TEXTS)}
    everything = stub.Similarity(pb.SimilarityRequest(**sides, nearest=pb.Nearest(k=100))).nearest.queries[0]
    assert sorted(everything.rows) == [0, 1, 2, 3, 4]
    assert list(everything.scores) == sorted(everything.scores, reverse=True)
    least = everything.scores[2]
    some = stub.Similarity(pb.SimilarityRequest(**sides, nearest=pb.Nearest(k=100, min_score=least))).nearest.queries[0]
    assert list(some.rows) == list(everything.rows)[:3]


def test_dimensions_of_texts_follow_the_vectors(stub: Any) -> None:
    """Texts compared with short vectors are embedded as short; both sides may be asked short."""
    short = embed(stub, *TEXTS, dimensions=64)
    given = vectors(short.embeddings, short.space_id)
    mixed = stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS), candidates=given))
    asked = stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS), dimensions=64))
    np.testing.assert_allclose(array_of(mixed.scores), array_of(asked.scores), atol=1e-6)


def test_quantised_vectors_are_compared_by_value(stub: Any) -> None:
    """INT8, UINT8 and FLOAT16 vectors score as the numbers that they stand for."""
    exact = array_of(stub.Similarity(pb.SimilarityRequest(queries=texts(*TEXTS))).scores)
    for element_type in (pb.ELEMENT_TYPE_FLOAT16, pb.ELEMENT_TYPE_INT8, pb.ELEMENT_TYPE_UINT8):
        embedded = embed(stub, *TEXTS, element_type=element_type)
        scores = stub.Similarity(pb.SimilarityRequest(queries=vectors(embedded.embeddings, embedded.space_id))).scores
        np.testing.assert_allclose(array_of(scores), exact, atol=0.01)


def test_vectors_are_taken_as_they_are(stub: Any) -> None:
    """Dot products of vectors that are not of unit length are those of the given numbers; zeros have cosine 0."""
    space = embed(stub, "a").space_id
    rows = matrix_of([[3.0, 4.0], [0.0, 0.0]])
    request = {"queries": vectors(rows, space), "candidates": vectors(rows, space)}
    dots = stub.Similarity(pb.SimilarityRequest(**request, metric=pb.METRIC_DOT))
    cosines = stub.Similarity(pb.SimilarityRequest(**request))
    np.testing.assert_array_equal(array_of(dots.scores), [[25, 0], [0, 0]])
    np.testing.assert_array_equal(array_of(cosines.scores), [[1, 0], [0, 0]])


STRANGE = {
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


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_text_is_embedded_or_clearly_refused(stub: Any, kind: str) -> None:
    """Whatever the text: finite numbers of unit length, or an error with a reason; never a crash, never NaN."""
    text = STRANGE[kind]
    try:
        response = embed(stub, text, "and a plain one")
    except grpc.RpcError:
        assert error_of(lambda: embed(stub, text, "and a plain one")).reason == "TEXT_WITHOUT_TOKENS"
        return
    rows = array_of(response.embeddings)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_every_script_of_unicode_gives_finite_vectors(stub: Any) -> None:
    """A letter of each block of the code space, assigned or not, is embedded or refused by its row alone."""
    points = [chr(point) for point in range(0x21, 0x2FFFF, 89) if unicodedata.category(chr(point)) != "Cs"]
    wanted = [point for point in points if not point.isspace()]
    response = embed(stub, *wanted, allow_partial=True)
    assert np.isfinite(array_of(response.embeddings)).all()
    assert len(response.row_errors) < len(wanted)


def test_a_text_without_tokens_is_refused(static_folder: Any) -> None:
    """A text that the tokenizer leaves nothing of is INVALID_ARGUMENT, reason TEXT_WITHOUT_TOKENS."""
    from isogloss.v1 import embedding_pb2_grpc

    with (
        ServerProcess("--model", f"small={static_folder}") as process,
        grpc.insecure_channel(process.address) as channel,
    ):
        stub: Any = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        error = error_of(lambda: embed(stub, "one", "!!!"))
        assert (error.code, error.reason, error.fields) == ("INVALID_ARGUMENT", "TEXT_WITHOUT_TOKENS", ["texts[1]"])
        assert array_of(embed(stub, "one").embeddings).shape == (1, 3)


def test_a_full_request_fits_the_announced_limits(stub: Any, server: ServerProcess) -> None:
    """max_texts texts, and max_request_bytes of text, are answered within what a plain gRPC client receives."""
    model = stub.ListModels(pb.ListModelsRequest()).models[0]
    assert embed(stub, *["word"] * model.max_texts).embeddings.rows == model.max_texts
    line = "é" * 2000 + " "
    lines = [line] * (model.max_request_bytes // len(line.encode()))
    assert embed(stub, *lines).embeddings.rows == len(lines)
    assert error_of(lambda: embed(stub, *lines, *lines[: len(lines) // 2])).reason == "REQUEST_TOO_LARGE"


def test_reflection_lists_the_services(server: ServerProcess) -> None:
    """Server reflection names the services, as grpcurl asks for them."""
    with grpc.insecure_channel(server.address) as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        services = {service.name for service in next(iter(answers)).list_services_response.service}
    assert {"isogloss.v1.EmbeddingService", "grpc.health.v1.Health"} <= services
