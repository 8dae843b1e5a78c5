"""A response that breaks the contract, or contradicts its request, is refused by both clients before it is used."""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
from isogloss import AsyncClient, Client, InternalError, IsoglossError, SpaceMismatchError, Vectors
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import asynchronous, blocking
from tests.support.fake import DIMENSIONS, SPACE, vectors
from tests.support.lying_server import altered, lying_server

TEXTS = ["one", "two", "three"]
Change = Callable[[Any], Any]


def numbers(array: Any, dtype: str, **fields: Any) -> Change:
    """Returns a change that replaces the vectors of an embed."""

    def change(response: Any) -> None:
        """Puts the array into the response."""
        data = np.asarray(array, dtype)
        matrix = pb.Matrix(data=data.tobytes(), rows=len(data), columns=data.shape[1], **fields)
        response.embeddings.CopyFrom(matrix)

    return change


def row(first: float, rest: float = 0.0) -> list[list[float]]:
    """Returns three rows; the second begins with `first`, followed by `rest`, the others are of unit length."""
    unit = [1.0] + [0.0] * (DIMENSIONS - 1)
    return [unit, [first] + [rest] * (DIMENSIONS - 1), unit]


def setting(path: str, value: Any) -> Change:
    """Returns a change that sets a field; a list replaces all values of a repeated field."""

    def change(response: Any) -> None:
        """Sets the field at `path`."""
        *parents, name = path.split(".")
        for parent in parents:
            response = response[int(parent)] if parent.isdecimal() else getattr(response, parent)
        if isinstance(value, list):
            del getattr(response, name)[:]
            getattr(response, name).extend(value)
        else:
            setattr(response, name, value)

    return change


def row_error(**fields: Any) -> Change:
    """Returns a change that adds an error of a text."""
    return lambda response: response.row_errors.add(**{"row": 1, "status": {"code": 3}, **fields})


EMBED: list[tuple[str, dict[str, Any], Change]] = [
    ("no model", {}, setting("model", "")),
    ("another model", {"model": "default"}, setting("model", "other")),
    ("no space", {}, setting("space_id", "")),
    ("no vectors", {}, lambda response: response.ClearField("embeddings")),
    ("too few rows", {}, numbers([[1, 0]], "f4")),
    ("too many rows", {}, numbers([[1, 0]] * 4, "f4")),
    ("no dimensions", {}, numbers(np.zeros((3, 0)), "f4")),
    ("other dimensions", {"dimensions": 8}, numbers(row(1.0), "f4")),
    ("too few bytes", {}, setting("embeddings.data", b"\0" * 4)),
    ("another element type", {}, numbers(row(1), "i1", element_type=pb.ELEMENT_TYPE_INT8, row_scales=[1, 1, 1])),
    ("float32 for float16", {"element_type": "float16"}, numbers(row(1), "f4")),
    ("an unknown element type", {}, setting("embeddings.element_type", 99)),
    ("NaN", {}, numbers(row(np.nan), "f4")),
    ("infinite", {"normalize": False}, numbers(row(np.inf), "f4")),
    ("NaN without normalize", {"normalize": False}, numbers(row(0.0, np.nan), "f4")),
    ("long rows", {}, numbers(row(1.0, 1.0), "f4")),
    ("short rows", {}, numbers(row(0.5), "f4")),
    ("infinite squares", {}, numbers(row(3e38, 3e38), "f4")),
    (
        "NaN as float16",
        {"element_type": "float16", "normalize": False},
        numbers(row(np.nan), "f2", element_type=pb.ELEMENT_TYPE_FLOAT16),
    ),
    (
        "infinite as float16",
        {"element_type": "float16"},
        numbers(row(np.inf), "f2", element_type=pb.ELEMENT_TYPE_FLOAT16),
    ),
    ("no scales", {"element_type": "int8"}, setting("embeddings.row_scales", [])),
    ("a scale that is NaN", {"element_type": "int8"}, setting("embeddings.row_scales", [1.0, np.nan, 1.0])),
    ("an infinite scale", {"element_type": "uint8"}, setting("embeddings.row_scales", [1.0, np.inf, 1.0])),
    ("a scale beyond the range", {"element_type": "uint8"}, setting("embeddings.row_scales", [1.0, 3e38, 1.0])),
    ("a negative scale", {"element_type": "int8"}, setting("embeddings.row_scales", [1.0, -1.0, 1.0])),
    ("scales of numbers without", {}, setting("embeddings.row_scales", [1.0, 1.0, 1.0])),
    (
        "bits beyond the last",
        {"element_type": "ubinary"},
        lambda response: response.embeddings.MergeFrom(pb.Matrix(data=b"\x01" * 6, columns=12)),
    ),
    (
        "signed bits beyond the last",
        {"element_type": "binary"},
        lambda response: response.embeddings.MergeFrom(pb.Matrix(data=b"\x01" * 6, columns=12)),
    ),
    ("too few token counts", {}, setting("token_counts", [1, 1])),
    ("token counts that are denied", {}, setting("per_text_counts", False)),
    ("another total of tokens", {}, setting("total_tokens", 4)),
    ("a truncated row out of range", {}, setting("truncated_rows", [3])),
    ("truncated rows twice", {}, setting("truncated_rows", [1, 1])),
    ("truncated rows in disorder", {}, setting("truncated_rows", [2, 0])),
    ("errors that were not requested", {}, row_error()),
    ("an error of a text out of range", {"allow_partial": True}, row_error(row=3)),
    ("an error of a text that is OK", {"allow_partial": True}, row_error(status={"code": 0})),
    ("a vector of a failed text", {"allow_partial": True}, row_error()),
    ("a negative time", {}, setting("timings.queue.seconds", -1)),
    ("an invalid time", {}, setting("timings.total.nanos", 2_000_000_000)),
    ("too many cached rows", {}, setting("timings.cached_rows", 4)),
]


def calls(target: str, method: str, *arguments: Any, **keywords: Any) -> list[BaseException | None]:
    """Returns the error, or None, of a call of the blocking and of the asyncio client."""

    async def call() -> None:
        """Calls the method of AsyncClient."""
        async with AsyncClient(target) as client:
            await getattr(client, method)(*arguments, **keywords)

    found: list[BaseException | None] = []
    with Client(target) as client:
        for run in (lambda: getattr(client, method)(*arguments, **keywords), lambda: asyncio.run(call())):
            try:
                run()
            except IsoglossError as error:
                found.append(error)
            else:
                found.append(None)
    return found


def check_refused(errors: list[BaseException | None]) -> None:
    """Asserts that all errors are those of an invalid response."""
    assert [(type(error), getattr(error, "reason", "")) for error in errors] == [(InternalError, "BAD_ANSWER")] * 2


@pytest.mark.parametrize(("arguments", "change"), [pytest.param(*case[1:], id=case[0]) for case in EMBED])
def test_an_invalid_response_to_embed_is_refused(arguments: dict[str, Any], change: Change) -> None:
    """Each field of the response is checked against the contract and the request."""
    with lying_server(**altered("Embed", change)) as target:
        check_refused(calls(target, "embed", TEXTS, **arguments))


@pytest.mark.parametrize(("arguments", "change"), [pytest.param(*case[1:], id=case[0]) for case in EMBED])
def test_an_invalid_response_to_embed_many_is_refused(arguments: dict[str, Any], change: Change) -> None:
    """The responses of embed_many are checked like those of embed."""
    with lying_server(**altered("Embed", change)) as target:
        found = [many(target, TEXTS, **arguments) for many in (blocking, asynchronous)]
    check_refused([error for _, error in found])
    assert [chunks for chunks, _ in found] == [[], []]


@pytest.mark.parametrize("element_type", ["float32", "float16", "int8", "uint8", "ubinary", "binary"])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_honest_response_is_accepted(element_type: str, normalize: bool) -> None:
    """Honest responses of every element type pass the checks, with rows of zeros for texts that failed."""
    with lying_server(**altered("Embed", id)) as target, Client(target) as client:
        found = client.embed([*TEXTS, " "], element_type=element_type, normalize=normalize, allow_partial=True)
    assert len(found) == 4
    assert [error.row for error in found.row_errors] == [3]


def test_numbers_beyond_float16_are_infinite_without_normalization() -> None:
    """The contract allows infinite numbers of FLOAT16 if rows keep the scale of the model."""
    change = numbers(row(np.inf), "f2", element_type=pb.ELEMENT_TYPE_FLOAT16)
    with lying_server(**altered("Embed", change)) as target, Client(target) as client:
        assert np.isinf(client.embed(TEXTS, element_type="float16", normalize=False).vectors[1, 0])


@pytest.mark.parametrize("method", ["embed", "embed_many"])
def test_vectors_of_another_space_than_requested_are_refused(method: str) -> None:
    """A server that ignores space_id raises SpaceMismatchError, which names both spaces."""
    change = setting("space_id", "other")
    with lying_server(**altered("Embed", change)) as t:
        if method == "embed":
            errors = calls(t, "embed", TEXTS, space_id=SPACE)
        else:
            errors = [many(t, TEXTS, space_id=SPACE)[1] for many in (blocking, asynchronous)]
    for error in errors:
        assert isinstance(error, SpaceMismatchError)
        assert error.reason == "SPACE_MISMATCH"
        assert "'other'" in error.message
        assert repr(SPACE) in error.message


def uncounted(response: Any) -> None:
    """Removes the token counts."""
    response.ClearField("token_counts")
    response.per_text_counts = False


@pytest.mark.parametrize("change", [numbers([[1.0, 0.0]], "f4"), uncounted], ids=["dimensions", "token counts"])
def test_parts_of_one_call_that_differ_are_not_joined(change: Change) -> None:
    """Parts with other dimensions, or with token counts for some texts only, are refused."""
    received = count(1)
    embed = altered("Embed", lambda response: change(response) if next(received) % 2 == 0 else None)["Embed"]
    with lying_server(max_texts=1, Embed=embed) as target:
        check_refused(calls(target, "embed", ["a", "b"]))


def test_chunks_of_one_call_have_the_same_dimensions() -> None:
    """embed_many refuses a chunk with other dimensions than the first."""
    received = count(1)
    changed = altered("Embed", lambda r: numbers([[1.0, 0.0]], "f4")(r) if next(received) % 2 == 0 else None)
    with lying_server(**changed) as target:
        found = [many(target, ["a", "b"], chunk_texts=1, window_chunks=1) for many in (blocking, asynchronous)]
    check_refused([error for _, error in found])
    assert [len(chunks) for chunks, _ in found] == [1, 1]


def scores(array: Any, **fields: Any) -> Change:
    """Returns a change that replaces the scores."""

    def change(response: Any) -> None:
        """Puts the array into the response."""
        data = np.asarray(array, "f4")
        response.scores.CopyFrom(pb.Matrix(data=data.tobytes(), rows=len(data), columns=data.shape[1], **fields))

    return change


def neighbors(*lists: tuple[list[int], list[float]]) -> Change:
    """Returns a change that replaces the neighbours of all queries."""
    entries = [pb.NeighborList(rows=rows, scores=values) for rows, values in lists]
    return lambda response: response.nearest.CopyFrom(pb.NeighborLists(queries=entries))


STORED = Vectors(vectors(["c", "d"]), SPACE)
ALL = (["a", "b"], ["c", "d", "e"])
PAIRS = (["a", "b"], ["c", "d"])
COMPARISONS: list[tuple[str, str, tuple[Any, ...], dict[str, Any], Change]] = [
    ("no model", "similarity", ALL, {}, setting("model", "")),
    ("another model", "similarity", ALL, {"model": "default"}, setting("model", "other")),
    ("no space", "similarity", ALL, {}, setting("space_id", "")),
    ("no result", "similarity", ALL, {}, lambda response: response.ClearField("scores")),
    ("neighbours", "similarity", ALL, {}, neighbors(([0], [1.0]), ([0], [1.0]))),
    ("too few scores", "similarity", ALL, {}, scores([[1, 1, 1]])),
    ("too few columns", "similarity", ALL, {}, scores([[1, 1], [1, 1]])),
    ("transposed scores", "similarity", ALL, {}, scores([[1, 1], [1, 1], [1, 1]])),
    ("no columns", "similarity", ALL, {}, scores(np.zeros((2, 0)))),
    ("another element type", "similarity", ALL, {}, setting("scores.element_type", pb.ELEMENT_TYPE_INT8)),
    ("float16", "similarity", ALL, {}, setting("scores.element_type", pb.ELEMENT_TYPE_FLOAT16)),
    ("NaN", "similarity", ALL, {"metric": "dot"}, scores([[1, 1, 1], [1, np.nan, 1]])),
    ("a cosine above 1", "similarity", ALL, {}, scores([[1, 1, 1], [1, 1.5, 1]])),
    ("an infinite cosine", "similarity", ALL, {}, scores([[1, 1, 1], [1, -np.inf, 1]])),
    ("a distance that is positive", "similarity", ALL, {"metric": "euclidean"}, scores([[-1, 0, -1], [0, 0.1, 0]])),
    ("truncated queries out of range", "similarity", ALL, {}, setting("truncated_queries", [2])),
    ("truncated candidates in disorder", "similarity", ALL, {}, setting("truncated_candidates", [1, 0])),
    ("other truncated candidates than queries", "similarity", (["a", "b"],), {}, setting("truncated_candidates", [1])),
    ("truncated vectors", "similarity", (["a"], STORED), {}, setting("truncated_candidates", [0])),
    ("too many cached rows", "similarity", ALL, {}, setting("timings.cached_rows", 6)),
    ("a negative time", "similarity", ALL, {}, setting("timings.inference.nanos", -5)),
    ("scores in a column", "pairwise", PAIRS, {}, scores([[1], [1]])),
    ("too many pairs", "pairwise", PAIRS, {}, scores([[1, 1, 1]])),
    ("pairs that are NaN", "pairwise", PAIRS, {"metric": "manhattan"}, scores([[np.nan, -1]])),
    ("scores", "nearest", ("a", ["b"]), {}, scores([[1]])),
    ("another model of neighbours", "nearest", ("a", ["b"]), {"model": "default"}, setting("model", "other")),
    ("no queries", "nearest_many", ALL, {}, neighbors()),
    ("too few queries", "nearest_many", ALL, {"k": 1}, neighbors(([0], [1.0]))),
    ("a row out of range", "nearest", ("a", ["b"]), {}, neighbors(([1], [1.0]))),
    ("a neighbour twice", "nearest", ("a", ["b", "c"]), {}, neighbors(([0, 0], [1.0, 1.0]))),
    ("fewer scores than rows", "nearest", ("a", ["b", "c"]), {}, neighbors(([0, 1], [1.0]))),
    ("more than k", "nearest", ("a", ["b", "c"]), {"k": 1}, neighbors(([0, 1], [1.0, 0.5]))),
    ("fewer than k", "nearest", ("a", ["b", "c"]), {"k": 2}, neighbors(([0], [1.0]))),
    ("the best last", "nearest", ("a", ["b", "c"]), {}, neighbors(([0, 1], [0.5, 1.0]))),
    ("scores that are NaN", "nearest", ("a", ["b"]), {"metric": "dot"}, neighbors(([0], [np.nan]))),
    ("below min_score", "nearest", ("a", ["b"]), {"min_score": 0.5}, neighbors(([0], [0.25]))),
    ("a wrong second query", "nearest_many", ALL, {"k": 1}, neighbors(([0], [1.0]), ([3], [1.0]))),
]


@pytest.mark.parametrize(
    ("method", "sides", "arguments", "change"),
    [pytest.param(*case[1:], id=f"{case[1]}-{case[0]}") for case in COMPARISONS],
)
def test_an_invalid_response_to_a_comparison_is_refused(
    method: str, sides: tuple[Any, ...], arguments: dict[str, Any], change: Change
) -> None:
    """Scores and neighbours of every shape are checked against the contract and the request."""
    with lying_server(**altered("Similarity", change)) as target:
        check_refused(calls(target, method, *sides, **arguments))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean", "manhattan"])
def test_honest_comparisons_are_accepted(metric: str) -> None:
    """Scores of equal, opposite and zero vectors pass the checks of each metric."""
    side = Vectors([[1, 0], [-1, 0], [0, 0], [3e38, 3e38]], SPACE)
    with lying_server(**altered("Similarity", id)) as target, Client(target) as client:
        assert client.similarity(side, side, metric=metric).values.shape == (4, 4)
        assert [len(found) for found in client.nearest_many(side, side, k=9, metric=metric)] == [4] * 4


def test_scores_in_another_space_than_the_vectors_are_refused() -> None:
    """A server that ignores the space of the vectors raises SpaceMismatchError."""
    with lying_server(**altered("Similarity", setting("space_id", "other"))) as target:
        errors = calls(target, "nearest", "a", STORED)
    assert [type(error) for error in errors] == [SpaceMismatchError] * 2


HEALTH: list[tuple[str, str, Change]] = [
    ("no models", "", setting("models", [])),
    ("a model without a name", "", setting("models.0.model", "")),
    ("a model twice", "", lambda response: response.models.append(response.models[0])),
    ("another model", "default", setting("models.0.model", "other")),
    ("a better status than that of a model", "", setting("models.0.status", pb.SERVING_STATUS_NOT_SERVING)),
    ("a worse status than that of all models", "", setting("status", pb.SERVING_STATUS_DEGRADED)),
    ("a negative time", "", setting("uptime.seconds", -1)),
]
MODELS: list[tuple[str, Change]] = [
    ("no models", setting("models", [])),
    ("a model without a name", setting("models.0.name", "")),
    ("a model twice", lambda response: response.models.append(response.models[0])),
    ("a model without a space", setting("models.0.space_id", "")),
    ("a model without dimensions", setting("models.0.dimensions", [])),
    ("a model of 0 dimensions", setting("models.0.dimensions", [0])),
]


@pytest.mark.parametrize(("model", "change"), [pytest.param(*case[1:], id=case[0]) for case in HEALTH])
def test_an_invalid_response_to_health_is_refused(model: str, change: Change) -> None:
    """The report has the requested models, and the worst of their statuses."""
    with lying_server(**altered("Health", change)) as target:
        check_refused(calls(target, "health", model))


@pytest.mark.parametrize("change", [pytest.param(case[1], id=case[0]) for case in MODELS])
def test_an_invalid_list_of_models_is_refused(change: Change) -> None:
    """Each model has a name, a space and dimensions; a call that needs the limits fails as well."""
    with lying_server(**altered("ListModels", change)) as target:
        check_refused(calls(target, "models"))
        check_refused(calls(target, "embed", ["a", "b"]))
