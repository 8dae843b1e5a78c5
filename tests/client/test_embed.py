"""embed: requests, splitting and joining."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isogloss import Client, InvalidArgumentError, NotFoundError, RowError, SpaceMismatchError
from isogloss.testing import FakeServer, Received
from isogloss.testing._engine import REPORTED_TOTAL_S
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake import DIMENSIONS, SPACE, messages, methods, set_limits, vector
from tests.support.lying_server import embed_response, lying_server

TRUNCATIONS = [
    ({}, pb.TRUNCATION_UNSPECIFIED),
    ({"truncation": None}, pb.TRUNCATION_UNSPECIFIED),
    ({"truncation": "end"}, pb.TRUNCATION_END),
]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEXTS = [f"text {number} {'long ' * (number % 5)}" for number in range(23)]


def test_each_text_gets_its_vector(client: Client) -> None:
    """Row i of the vectors belongs to text i, and the result has all values of the response."""
    found = client.embed(["Good morning", "おはよう"])
    assert np.array_equal(found.vectors, [vector("Good morning"), vector("おはよう")])
    assert (found.model, found.space_id, found.dimensions, len(found)) == ("default", SPACE, DIMENSIONS, 2)
    assert (found.token_counts, found.total_tokens) == ((2, 1), 3)
    assert (found.timings.total_s, found.timings.cached_rows) == (REPORTED_TOTAL_S, 0)


def test_requests_carry_every_argument(client: Client, server: FakeServer) -> None:
    """The request has all arguments of the caller."""
    server.model, server.space_id = "m", "any"
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
    assert messages(server, "Embed") == [
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


@pytest.mark.parametrize(("arguments", "sent"), TRUNCATIONS)
def test_an_absent_truncation_stays_absent_in_requests(
    client: Client, server: FakeServer, arguments: dict[str, str | None], sent: int
) -> None:
    """The server can distinguish an explicit END from an absent truncation."""
    client.embed(["a"], **arguments)
    client.similarity(["a"], ["b"], **arguments)
    client.pairwise(["a"], ["b"], **arguments)
    client.nearest("a", ["b"], **arguments)
    client.nearest_many(["a"], ["b"], **arguments)
    requests = [*messages(server, "Embed"), *messages(server, "Similarity")]
    assert [request.truncation for request in requests] == [sent] * 5


@pytest.mark.parametrize(("arguments", "sent"), TRUNCATIONS)
def test_split_comparisons_embed_with_the_callers_truncation(
    client: Client, server: FakeServer, arguments: dict[str, str | None], sent: int
) -> None:
    """The embeds of a split comparison have the truncation of the caller, or none."""
    server.max_pairs = 1
    client.similarity(["a", "b"], ["c", "d"], **arguments)
    assert [request.truncation for request in messages(server, "Embed")] == [sent] * 2


def test_a_single_text_takes_one_request(client: Client, server: FakeServer) -> None:
    """A call that cannot be split does not fetch the limits."""
    client.embed(["a"])
    assert methods(server) == ["Embed"]


def test_limits_are_fetched_once_per_client(client: Client, server: FakeServer) -> None:
    """Later calls of a client reuse the limits that the first one fetched."""
    for _ in range(3):
        client.embed(["a", "b"])
    assert methods(server) == ["ListModels", "Embed", "Embed", "Embed"]


@pytest.mark.parametrize(
    ("limit", "value", "parts"),
    [("max_texts", 10, [10, 10, 3]), ("max_request_bytes", 200, None), ("max_response_bytes", 1000, [11, 11, 1])],
)
def test_a_call_over_a_limit_is_split(
    client: Client, server: FakeServer, limit: str, value: int, parts: list[int] | None
) -> None:
    """The parts keep the limits, and joined they equal the response to one request."""
    whole = client.embed(TEXTS)
    server.requests.clear()
    set_limits(server, **{limit: value})
    with Client(server.target) as other:
        split = other.embed(TEXTS)
    sizes = [len(request.texts) for request in messages(server, "Embed")]
    assert len(sizes) > 1
    assert sizes == (parts or sizes)
    assert np.array_equal(split.vectors, whole.vectors)
    assert (split.token_counts, split.truncated_rows) == (whole.token_counts, whole.truncated_rows)
    assert split.total_tokens == whole.total_tokens
    assert split.timings.total_s == pytest.approx(REPORTED_TOTAL_S * len(sizes))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXT, min_size=1, max_size=30),
    max_texts=st.integers(0, 7),
    max_bytes=st.integers(48, 200),
)
def test_split_calls_equal_a_single_request(
    server: FakeServer, texts: list[str], max_texts: int, max_bytes: int
) -> None:
    """For all limits, a call returns the result of a single request."""
    server.max_tokens = 2
    set_limits(server, max_texts=0, max_request_bytes=0)
    with Client(server.target) as client:
        whole = client.embed(texts)
    set_limits(server, max_texts=max_texts, max_request_bytes=max_bytes)
    with Client(server.target) as client:
        found = client.embed(texts)
    assert np.array_equal(found.vectors, whole.vectors)
    assert found.token_counts == whole.token_counts == tuple(min(2, len(text.split())) for text in texts)
    assert found.truncated_rows == whole.truncated_rows
    assert found.truncated_rows == tuple(row for row, text in enumerate(texts) if len(text.split()) > 2)


def test_rows_of_parts_count_in_the_whole_call(client: Client, server: FakeServer) -> None:
    """truncated_rows and row_errors are rows of the caller's list."""
    server.max_texts, server.max_tokens = 2, 3
    found = client.embed(["a", "b", "c", "x " * 30, " "], allow_partial=True)
    assert found.truncated_rows == (3,)
    message = "the text is empty or white space only"
    assert found.row_errors == (RowError(4, "INVALID_ARGUMENT", "EMPTY_TEXT", message),)
    assert not found.vectors[4].any()


def test_an_error_of_a_part_names_the_callers_row(client: Client, server: FakeServer) -> None:
    """Violations, message and the value "index" refer to rows of the caller's list."""
    server.max_texts = 3
    wrong = {"message": "texts[1] is wrong", "fields": ["texts[1]"], "metadata": {"index": "1"}}
    server.fail_next("Embed", code="INVALID_ARGUMENT", reason="EMPTY_TEXT", after=1, **wrong)
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "b", "c", "d", " "])
    assert [violation.field for violation in raised.value.violations] == ["texts[4]"]
    assert raised.value.violations[0].description == "texts[4] is wrong"
    assert raised.value.message == "texts[4] is wrong"
    assert raised.value.metadata == {"index": "4"}


def test_later_parts_require_the_space_of_the_first(client: Client, server: FakeServer) -> None:
    """If the model changes during a call, SpaceMismatchError is raised."""
    server.max_texts = 2

    def change_model(_received: Received) -> None:
        """Changes the space before the second part is answered."""
        if len(messages(server, "Embed")) == 2:
            server.space_id = "new"

    server.on_request = change_model
    with pytest.raises(SpaceMismatchError):
        client.embed(["a", "b", "c"])
    assert [request.space_id for request in messages(server, "Embed")] == ["", SPACE]


def test_parts_of_two_spaces_are_not_joined() -> None:
    """The client also refuses parts of two spaces from a server that ignores space_id."""
    spaces = iter(["old", "new"])

    def embed(request: Any, _context: Any) -> Any:
        """Answers in another space each time."""
        return embed_response(request.texts, space_id=next(spaces))

    with (
        lying_server(max_texts=1, Embed=embed) as target,
        Client(target) as client,
        pytest.raises(SpaceMismatchError) as raised,
    ):
        client.embed(["a", "b"])
    assert raised.value.reason == "SPACE_MISMATCH"


def test_changed_limits_are_fetched_again(client: Client, server: FakeServer) -> None:
    """If a restarted server has smaller limits, the client fetches them and the call succeeds."""
    client.embed(TEXTS)
    server.max_texts = 10
    server.requests.clear()
    assert np.array_equal(client.embed(TEXTS).vectors, [vector(text) for text in TEXTS])
    assert methods(server) == ["Embed", "ListModels", "Embed", "Embed", "Embed"]


def test_complete_parts_are_kept_when_limits_change(client: Client, server: FakeServer) -> None:
    """If the limits change during a call, its first parts are not repeated."""
    server.max_texts = 10

    def shrink(_received: Received) -> None:
        """Lowers the limit at the second part."""
        server.max_texts = 10 if len(messages(server, "Embed")) <= 1 else 5

    server.on_request = shrink
    client.embed(TEXTS)
    sizes = [len(request.texts) for request in messages(server, "Embed")]
    assert sizes == [10, 10, 5, 5, 3]


def test_limits_are_fetched_again_only_once_per_call(client: Client, server: FakeServer) -> None:
    """A second refusal as too large is raised."""
    server.fail_next("Embed", code="INVALID_ARGUMENT", reason="REQUEST_TOO_LARGE", times=2)
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["a", "b"])
    assert raised.value.reason == "REQUEST_TOO_LARGE"
    assert methods(server) == ["ListModels", "Embed", "ListModels", "Embed"]


def test_a_text_above_the_limit_is_refused_before_it_is_sent(client: Client, server: FakeServer) -> None:
    """The error names the text and the limit, after the limit has been fetched again."""
    server.max_request_bytes = 10
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["short", "much too long"])
    assert raised.value.reason == "REQUEST_TOO_LARGE"
    assert raised.value.metadata == {"actual": "13", "limit": "10"}
    assert raised.value.violations[0].field == "texts[1]"
    assert methods(server) == ["ListModels", "Embed", "ListModels"]


def test_one_very_large_text_is_checked_against_the_limit(client: Client, server: FakeServer) -> None:
    """A single text of many bytes is checked too, because gRPC's own error has no limit."""
    server.max_request_bytes = 1000
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed(["x" * 2_000_000])
    assert raised.value.metadata["limit"] == "1000"
    with pytest.raises(InvalidArgumentError) as raised:
        client.nearest("x" * 2_000_000, ["a"])
    assert raised.value.violations[0].field == "query"
    assert set(methods(server)) == {"ListModels"}


def test_an_empty_list_is_sent_for_the_server_to_refuse(client: Client, server: FakeServer) -> None:
    """The client sends an empty list; the server's error describes it."""
    with pytest.raises(InvalidArgumentError) as raised:
        client.embed([])
    assert raised.value.reason == "EMPTY_TEXTS"
    assert methods(server) == ["Embed"]


def test_an_unlisted_model_is_sent_for_the_server_to_refuse(client: Client, server: FakeServer) -> None:
    """The client does not refuse models that it does not know."""
    server.max_texts = 2
    with pytest.raises(NotFoundError, match="unknown model"):
        client.embed(["a", "b", "c"], model="other")
