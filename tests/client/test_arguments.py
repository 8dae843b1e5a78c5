"""Arguments that are wrong whatever a server says: refused before anything is sent, each named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isogloss import Client, ClientOptions, InputType, InvalidArgumentError, Vectors

from tests.support.scripted_server import Script

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
def test_a_wrong_argument_is_named(
    client: Client, script: Script, call: Callable[[Client], Any], field: str, reason: str
) -> None:
    """The error has the argument's name and a reason, and nothing is sent."""
    with pytest.raises(InvalidArgumentError) as raised:
        call(client)
    assert [violation.field for violation in raised.value.violations] == [field]
    assert raised.value.reason == reason
    assert raised.value.message.startswith(f"{field} ")
    assert script.calls == []


def test_an_unknown_word_lists_the_known(client: Client) -> None:
    """The message says what is allowed."""
    with pytest.raises(InvalidArgumentError, match="cosine, dot, euclidean, manhattan, not 'l2'"):
        client.similarity(["a"], metric="l2")


def test_a_text_is_never_quoted(client: Client) -> None:
    """Errors end in logs, where callers' texts have no business."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["private \ud83d"])
    assert "private" not in repr(raised.value)


def test_members_and_numpy_numbers_are_welcome(client: Client, script: Script) -> None:
    """An enum's member does as well as its word, a numpy number as well as an int, any iterable as well as a list."""
    client.embed((text for text in ("a",)), input_type=InputType.QUERY, dimensions=np.int64(8))
    client.nearest("a", np.array(["b"]), k=np.int32(2), min_score=np.float32(-9))
    assert script.methods() == ["Embed", "Similarity"]


@pytest.mark.parametrize("array", [[1.0, 2.0], np.zeros((1, 2, 3)), [["a"]], [[1.0], [1.0, 2.0]], None])
def test_vectors_have_two_dimensions_of_numbers(array: Any) -> None:
    """Anything else is refused where it is made."""
    with pytest.raises(InvalidArgumentError) as raised:
        Vectors(array, "space")
    assert raised.value.reason == "BAD_MATRIX"


def test_vectors_do_not_change_under_the_caller() -> None:
    """What a caller writes into an array afterwards does not reach the Vectors made of it."""
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
def test_nothing_but_our_errors_leaves(client: Client, script: Script, call: Any) -> None:
    """Strings that UTF-8 cannot write, numbers beyond floats, and None for a side are errors of this package."""
    with pytest.raises(InvalidArgumentError) as raised:
        call(client)
    assert raised.value.violations
    assert script.methods() == []


@pytest.mark.parametrize("timeout_s", [1e10, 1e300, np.float32(30)])
def test_a_long_timeout_is_long(client: Client, timeout_s: float) -> None:
    """However far the deadline, the call has the time to be answered."""
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
def test_options_of_another_kind_are_refused(fields: dict[str, Any]) -> None:
    """An option of a wrong kind is named where it is given, not where gRPC trips over it."""
    with pytest.raises(ValueError, match=next(reversed(fields))):
        ClientOptions(**fields)
