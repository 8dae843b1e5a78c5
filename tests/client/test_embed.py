"""embed: requests, splitting and joining."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isogloss import Client, InvalidArgumentError, RowError, SpaceMismatchError
from isogloss.v1 import embedding_pb2 as pb

from tests.support.scripted_server import DIMENSIONS, SPACE, Running, Script, refusal, vector

SAID = [
    ({}, pb.TRUNCATION_UNSPECIFIED),
    ({"truncation": None}, pb.TRUNCATION_UNSPECIFIED),
    ({"truncation": "end"}, pb.TRUNCATION_END),
]
WORDS = [f"text {number} {'long ' * (number % 5)}" for number in range(23)]


def test_each_text_gets_its_vector(client: Client) -> None:
    """Row i of the vectors belongs to text i, and all that the server tells is in the result."""
    found = client.embed(["Good morning", "おはよう"])
    assert np.array_equal(found.vectors, [vector("Good morning"), vector("おはよう")])
    assert (found.model, found.space_id, found.dimensions, len(found)) == ("default", SPACE, DIMENSIONS, 2)
    assert (found.token_counts, found.total_tokens) == ((12, 4), 16)
    assert (found.timings.total_s, found.timings.cached_rows) == (0.5, 1)


def test_every_argument_arrives(client: Client, script: Script) -> None:
    """What the caller asks for is what the server reads."""
    client.embed(
        ["a"],
        model="m",
        input_type="query",
        dimensions=8,
        element_type="float16",
        truncation="start",
        normalize=False,
        priority="bulk",
        allow_partial=True,
        space_id="any",
    )
    assert script.requests("Embed") == [
        pb.EmbedRequest(
            texts=["a"],
            model="m",
            input_type=pb.INPUT_TYPE_QUERY,
            dimensions=8,
            element_type=pb.ELEMENT_TYPE_FLOAT16,
            truncation=pb.TRUNCATION_START,
            normalize=False,
            priority=pb.PRIORITY_BULK,
            allow_partial=True,
            space_id="any",
        )
    ]


@pytest.mark.parametrize(("said", "sent"), SAID)
def test_a_truncation_left_unsaid_is_left_to_the_server(
    client: Client, script: Script, said: dict[str, str | None], sent: int
) -> None:
    """The server, which knows what the model offers, can tell an END that was asked for from nothing said."""
    client.embed(["a"], **said)
    client.similarity(["a"], ["b"], **said)
    client.pairwise(["a"], ["b"], **said)
    client.nearest("a", ["b"], **said)
    client.nearest_many(["a"], ["b"], **said)
    requests = [*script.requests("Embed"), *script.requests("Similarity")]
    assert [request.truncation for request in requests] == [sent] * 5


@pytest.mark.parametrize(("said", "sent"), SAID)
def test_a_split_comparison_says_no_more_than_its_caller(
    client: Client, script: Script, said: dict[str, str | None], sent: int
) -> None:
    """Where the sides of a comparison are embedded first, that is asked for with the caller's truncation."""
    script.limits["max_pairs"] = 1
    client.similarity(["a", "b"], ["c", "d"], **said)
    assert [request.truncation for request in script.requests("Embed")] == [sent] * 2


def test_a_single_text_asks_for_no_limits(client: Client, script: Script) -> None:
    """A call that cannot be split costs one message."""
    client.embed(["a"])
    assert script.methods() == ["Embed"]


def test_limits_are_learned_once(client: Client, script: Script) -> None:
    """Later calls of a client use the limits that the first one learned."""
    for _ in range(3):
        client.embed(["a", "b"])
    assert script.methods() == ["ListModels", "Embed", "Embed", "Embed"]


@pytest.mark.parametrize(
    ("limit", "value", "parts"),
    [("max_texts", 10, [10, 10, 3]), ("max_request_bytes", 200, None), ("max_response_bytes", 1000, [11, 11, 1])],
)
def test_a_call_over_a_limit_is_split(
    client: Client, script: Script, limit: str, value: int, parts: list[int] | None
) -> None:
    """The parts keep the limits, and joined they are what one request would have answered."""
    whole = client.embed(WORDS)
    script.calls.clear()
    script.limits[limit] = value
    with Client(client._options.target) as other:
        split = other.embed(WORDS)
    sizes = [len(request.texts) for request in script.requests("Embed")]
    assert len(sizes) > 1
    assert sizes == (parts or sizes)
    assert np.array_equal(split.vectors, whole.vectors)
    assert (split.token_counts, split.truncated_rows) == (whole.token_counts, whole.truncated_rows)
    assert split.total_tokens == whole.total_tokens
    assert split.timings.total_s == 0.5 * len(sizes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=30),
    max_texts=st.integers(0, 7),
    max_bytes=st.integers(48, 200),
)
def test_any_split_equals_no_split(scripted: Running, texts: list[str], max_texts: int, max_bytes: int) -> None:
    """Whatever the limits, a call returns what it would without them."""
    scripted.script.limits.update(max_texts=max_texts, max_request_bytes=max_bytes)
    with Client(scripted.address) as client:
        found = client.embed(texts)
    assert np.array_equal(found.vectors, [vector(text) for text in texts])
    assert found.token_counts == tuple(map(len, texts))
    assert found.truncated_rows == tuple(row for row, text in enumerate(texts) if len(text) > 20)


def test_rows_of_parts_are_shifted_back(client: Client, script: Script) -> None:
    """truncated_rows and row_errors count in the caller's list."""
    script.limits["max_texts"] = 2
    script.bad_texts = {"bad"}
    found = client.embed(["a", "b", "c", "x" * 30, "bad"], allow_partial=True)
    assert found.truncated_rows == (3,)
    assert found.row_errors == (RowError(4, "INVALID_ARGUMENT", "EMPTY_TEXT", "empty"),)
    assert not found.vectors[4].any()


def test_an_error_of_a_part_names_the_callers_row(client: Client, script: Script) -> None:
    """Violations, message and the figure "index" count in the caller's list."""
    script.limits["max_texts"] = 3
    script.bad_texts = {"bad"}
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "b", "c", "d", "bad"])
    assert [violation.field for violation in raised.value.violations] == ["texts[4]"]
    assert raised.value.violations[0].description == "texts[4] is wrong"
    assert raised.value.message == "texts[4] is wrong"
    assert raised.value.metadata == {"index": "4"}


def test_later_parts_are_held_to_the_first_ones_space(client: Client, script: Script) -> None:
    """A model that changes during a call is an error, not a mixture."""
    script.limits["max_texts"] = 2
    script.spaces = ["old", "new"]
    with pytest.raises(SpaceMismatchError):
        client.embed(["a", "b", "c"])
    assert [request.space_id for request in script.requests("Embed")] == ["", "old"]


def test_parts_of_two_spaces_are_refused(client: Client, script: Script) -> None:
    """Even where the server does not keep the promise of space_id, vectors of two spaces are never joined."""
    script.limits["max_texts"] = 1
    script.spaces = ["any", "new"]
    with pytest.raises(SpaceMismatchError) as raised:
        client.embed(["a", "b"])
    assert raised.value.reason == "SPACE_MISMATCH"


def test_changed_limits_are_learned_again(client: Client, script: Script) -> None:
    """A server that was restarted with smaller limits is asked for them, and the call goes on."""
    client.embed(WORDS)
    script.limits["max_texts"] = 10
    script.calls.clear()
    assert np.array_equal(client.embed(WORDS).vectors, [vector(text) for text in WORDS])
    assert script.methods() == ["Embed", "ListModels", "Embed", "Embed", "Embed"]


def test_a_part_done_is_not_done_again(client: Client, script: Script) -> None:
    """Where limits change in the middle of a call, its first parts are kept."""
    script.limits["max_texts"] = 10

    def shrink(context: object) -> None:
        script.limits["max_texts"] = 10 if len(script.requests("Embed")) == 1 else 5

    script.on_embed = shrink
    client.embed(WORDS)
    sizes = [len(request.texts) for request in script.requests("Embed")]
    assert sizes == [10, 10, 5, 5, 3]


def test_a_refusal_that_stays_is_raised(client: Client, script: Script) -> None:
    """Limits are learned again once; after that the refusal is the caller's."""
    script.faults = [refusal("REQUEST_TOO_LARGE"), refusal("REQUEST_TOO_LARGE")]
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "b"])
    assert raised.value.reason == "REQUEST_TOO_LARGE"
    assert script.methods() == ["ListModels", "Embed", "ListModels", "Embed"]


def test_a_text_too_large_by_itself_is_refused_unsent(client: Client, script: Script) -> None:
    """The error names the text in the caller's list and the limit, which is asked for once more before."""
    script.limits["max_request_bytes"] = 10
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["short", "much too long"])
    assert raised.value.reason == "REQUEST_TOO_LARGE"
    assert raised.value.metadata == {"actual": "13", "limit": "10"}
    assert raised.value.violations[0].field == "texts[1]"
    assert script.methods() == ["ListModels", "Embed", "ListModels"]


def test_one_text_larger_than_grpc_takes_is_refused_with_the_limit(client: Client, script: Script) -> None:
    """A single text of many bytes is held against the limits too, for gRPC's own refusal would name none."""
    script.limits["max_request_bytes"] = 1000
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["x" * 2_000_000])
    assert raised.value.metadata["limit"] == "1000"
    with pytest.raises(InvalidArgumentError) as raised:
        client.nearest("x" * 2_000_000, ["a"])
    assert raised.value.violations[0].field == "query"
    assert set(script.methods()) == {"ListModels"}


def test_no_texts_are_the_servers_to_refuse(client: Client, script: Script) -> None:
    """An empty list is sent as it is."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed([])
    assert raised.value.reason == "EMPTY_TEXTS"
    assert script.methods() == ["Embed"]


def test_an_unlisted_model_is_the_servers_to_refuse(client: Client, script: Script) -> None:
    """The client does not guess about names that it has not seen."""
    script.limits["max_texts"] = 2
    script.faults = [refusal("UNKNOWN_MODEL", "model")]
    with pytest.raises(InvalidArgumentError, match="model is wrong"):
        client.embed(["a", "b", "c"], model="other")
