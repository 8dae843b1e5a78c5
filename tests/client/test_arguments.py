"""Invalid arguments raise errors that name them, before a request is sent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isogloss import Client, ClientOptions, InputType, InvalidArgumentError, Vectors
from isogloss.testing import FakeServer

from tests.support.fake import methods

WRONG: list[tuple[Callable[[Client], Any], str, str]] = [
    (lambda c: c.embed("Good morning"), "texts", "NOT_A_LIST"),
    (lambda c: c.embed(b"Good morning"), "texts", "NOT_A_LIST"),
    (lambda c: c.embed(None), "texts", "NOT_A_LIST"),
    (lambda c: c.embed(["a", None]), "texts[1]", "BAD_TEXT"),
    (lambda c: c.embed(["a", b"b"]), "texts[1]", "BAD_TEXT"),
    (lambda c: c.embed(["a", "b", "half \ud83d"]), "texts[2]", "BAD_TEXT"),
    (lambda c: c.similarity("a"), "queries", "NOT_A_LIST"),
    (lambda c: c.similarity(["a"], "b"), "candidates", "NOT_A_LIST"),
    (lambda c: c.pairwise(["a"], [1]), "candidates[0]", "BAD_TEXT"),
    (lambda c: c.nearest(["a"], ["b"]), "query", "BAD_TYPE"),
    (lambda c: c.nearest("a", ["b"], k=0), "k", "BAD_K"),
    (lambda c: c.nearest("a", ["b"], k=2**32), "k", "BAD_K"),
    (lambda c: c.nearest("a", ["b"], k="3"), "k", "BAD_K"),
    (lambda c: c.nearest("a", ["b"], min_score="high"), "min_score", "BAD_TYPE"),
    (lambda c: c.embed(["a"], dimensions=-1), "dimensions", "UNSUPPORTED_DIMENSIONS"),
    (lambda c: c.embed(["a"], dimensions=1.5), "dimensions", "UNSUPPORTED_DIMENSIONS"),
    (lambda c: c.embed(["a"], model=None), "model", "BAD_TYPE"),
    (lambda c: c.health(None), "model", "BAD_TYPE"),
    (lambda c: c.embed(["a"], timeout_s=0), "timeout_s", "BAD_TIMEOUT"),
    (lambda c: c.embed(["a"], timeout_s=float("inf")), "timeout_s", "BAD_TIMEOUT"),
    (lambda c: c.embed(["a"], timeout_s="1"), "timeout_s", "BAD_TIMEOUT"),
    (lambda c: c.embed(["a"], input_type="QUERY"), "input_type", "UNKNOWN_ENUM"),
    (lambda c: c.embed(["a"], element_type="float64"), "element_type", "UNKNOWN_ENUM"),
    (lambda c: c.embed(["a"], truncation="none"), "truncation", "UNKNOWN_ENUM"),
    (lambda c: c.embed(["a"], priority="high"), "priority", "UNKNOWN_ENUM"),
    (lambda c: c.similarity(["a"], metric="l2"), "metric", "UNKNOWN_ENUM"),
    (lambda c: c.similarity(["a"], query_type="q"), "query_type", "UNKNOWN_ENUM"),
    (lambda c: c.similarity(["a"], candidate_type="q"), "candidate_type", "UNKNOWN_ENUM"),
]


@pytest.mark.parametrize(("call", "field", "reason"), WRONG)
def test_an_invalid_argument_is_named_before_a_request_is_sent(
    client: Client, server: FakeServer, call: Callable[[Client], Any], field: str, reason: str
) -> None:
    """The error has the argument's name and a reason, and no request is sent."""
    with pytest.raises(InvalidArgumentError) as raised:
        call(client)
    assert [violation.field for violation in raised.value.violations] == [field]
    assert raised.value.reason == reason
    assert raised.value.message.startswith(f"{field} ")
    assert server.requests == []


def test_an_unknown_value_of_an_enum_lists_the_known_values(client: Client) -> None:
    """The message lists the accepted values."""
    with pytest.raises(InvalidArgumentError, match="cosine, dot, euclidean, manhattan, not 'l2'"):
        client.similarity(["a"], metric="l2")


def test_errors_do_not_quote_texts(client: Client) -> None:
    """Errors are logged, and logs must not contain texts."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["private \ud83d"])
    assert "private" not in repr(raised.value)


def test_enum_members_numpy_numbers_and_any_iterable_are_accepted(client: Client, server: FakeServer) -> None:
    """An enum member equals its value, a numpy number an int, and any iterable a list."""
    client.embed((text for text in ("a",)), input_type=InputType.QUERY, dimensions=np.int64(8))
    client.nearest("a", np.array(["b"]), k=np.int32(2), min_score=np.float32(-9))
    assert methods(server) == ["Embed", "Similarity"]


@pytest.mark.parametrize("array", [[1.0, 2.0], np.zeros((1, 2, 3)), [["a"]], [[1.0], [1.0, 2.0]], None])
def test_vectors_require_two_dimensions_of_numbers(array: Any) -> None:
    """Vectors of other shapes or types raise when they are created."""
    with pytest.raises(InvalidArgumentError) as raised:
        Vectors(array, "space")
    assert raised.value.reason == "BAD_MATRIX"


def test_vectors_copy_writable_arrays() -> None:
    """Later writes into the caller's array do not change the Vectors."""
    array = np.ones((2, 3), np.float32)
    vectors = Vectors(array, "space")
    array[:] = 5
    assert (vectors.array == 1).all()
    assert not vectors.array.flags.writeable
    assert array.flags.writeable


HALF = "\udcff"


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.embed(["a"], model=HALF),
        lambda c: c.embed(["a"], space_id=HALF),
        lambda c: c.health(HALF),
        lambda c: c.similarity(Vectors([[1.0]], HALF)),
        lambda c: c.similarity(Vectors([[1.0]], 5)),  # type: ignore[arg-type]
        lambda c: c.embed(np.array("a")),
        lambda c: c.nearest("a", ["b"], min_score=10**400),
        lambda c: c.nearest("a", None),
        lambda c: c.nearest_many(["a"], None),
        lambda c: c.pairwise(["a"], None),
    ],
)
def test_unusual_invalid_values_raise_invalid_argument_error(client: Client, server: FakeServer, call: Any) -> None:
    """Unpaired surrogates, numbers beyond floats, and None as a side raise InvalidArgumentError."""
    with pytest.raises(InvalidArgumentError) as raised:
        call(client)
    assert raised.value.violations
    assert methods(server) == []


@pytest.mark.parametrize("timeout_s", [1e10, 1e300, np.float32(30)])
def test_very_long_timeouts_do_not_expire_at_once(client: Client, timeout_s: float) -> None:
    """A timeout beyond the range of gRPC's clock still allows the call to succeed."""
    assert len(client.embed(["a"], timeout_s=timeout_s)) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"target": 5},
        {"target": HALF},
        {"target": "https://localhost"},
        {"timeout_s": "5"},
        {"api_key": 5},
        {"tls": True, "root_certificates": "x"},
    ],
)
def test_options_of_the_wrong_type_are_refused(fields: dict[str, Any]) -> None:
    """An option of the wrong type raises ValueError, which names it, when the options are created."""
    with pytest.raises(ValueError, match=next(reversed(fields))):
        ClientOptions(**fields)
