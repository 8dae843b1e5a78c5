"""Invalid arguments raise errors that name them, before a request is sent."""

import io
from collections import Counter, deque
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from isogloss import Client, ClientOptions, InputType, InvalidArgumentError, Metric, Vectors, _arguments
from isogloss._bulk import Chunk
from isogloss.testing import FakeServer

from tests.support.bulk import Many
from tests.support.fake import methods


class Table:
    """Iterates over the names of its columns, as the data frames of pandas do; those of polars have no `keys`."""

    shape = (2, 1)

    def __iter__(self) -> Iterator[str]:
        return iter(["title"])


class Store:
    """Iterates over its keys without being a Mapping, as the databases of dbm do."""

    def keys(self) -> list[str]:
        """Returns the keys."""
        return ["key"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


class Series:
    """Iterates over its values although it has `keys`, as the series of pandas do."""

    shape = (2,)

    def keys(self) -> list[int]:
        """Returns the index."""
        return [0, 1]

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])


# Iterables whose items are not texts in an order.
UNORDERED: list[Any] = [
    {"a": 1},
    Counter("a"),
    MappingProxyType({"a": 1}),
    {"a": 1}.items(),
    {"a", "b"},
    frozenset("a"),
    Table(),
    Store(),
    np.array([["a", "b"]]),
    np.array("a"),
]
ORDERED: list[Any] = [
    ["a", "b"],
    ("a", "b"),
    {"a": 1, "b": 2}.keys(),
    {1: "a", 2: "b"}.values(),
    deque("ab"),
    np.array(["a", "b"]),
    Series(),
    io.StringIO("a\nb"),
    map(str.lower, "AB"),
]
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


@pytest.mark.parametrize("texts", UNORDERED, ids=lambda value: type(value).__name__)
def test_mappings_sets_and_tables_are_not_lists_of_texts(
    client: Client, many: Many, server: FakeServer, texts: Any
) -> None:
    """Iterables over keys, over columns, or in no order are refused by every method, and named."""
    calls = [lambda: client.embed(texts), lambda: client.similarity(texts), lambda: client.nearest("a", texts)]
    errors = [many(texts)[1]]
    for call in calls:
        with pytest.raises(InvalidArgumentError) as raised:
            call()
        errors.append(raised.value)
    assert [getattr(error, "reason", "") for error in errors] == ["NOT_A_LIST"] * 4
    assert [error.violations[0].field for error in errors] == ["texts", "texts", "queries", "candidates"]
    assert all(type(texts).__name__ in error.message for error in errors)
    assert methods(server) == []


@pytest.mark.parametrize("texts", ORDERED, ids=lambda value: type(value).__name__)
def test_ordered_iterables_are_lists_of_texts(client: Client, texts: Any) -> None:
    """Sequences, views, arrays and columns of one dimension, files and iterators are accepted."""
    assert len(client.embed(texts)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_type": Metric.DOT}, "'dot'"),
        ({"truncation": "x" * 1000}, "a str of 1000 characters"),
        ({"priority": ["bulk"]}, "not list"),
        ({"dimensions": 10**5000}, "a number of more than 40 digits"),
        ({"timeout_s": np.float64(-1)}, "not -1.0"),
        ({"timeout_s": -(10**5000)}, "a number of more than 40 digits"),
        ({"timeout_s": {"s": 1}}, "not dict"),
    ],
)
def test_errors_show_values_as_a_person_writes_them(client: Client, arguments: dict[str, Any], words: str) -> None:
    """Short words and numbers are shown as they are; long and other values by their size or type."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a"], **arguments)
    assert raised.value.message.endswith(words)


def test_whole_numbers_of_any_length_are_timeouts(client: Client) -> None:
    """A timeout that no float can hold is the longest timeout."""
    assert len(client.embed(["a"], timeout_s=10**5000)) == 1


def test_the_repr_of_arguments_does_not_contain_texts() -> None:
    """Debuggers and reports of errors print the arguments of functions."""
    side = _arguments.texts("texts", ["a secret"], InputType.QUERY)
    assert "secret" not in repr(_arguments.Sides(side, None)) + repr(Chunk(0, side.texts))
