"""The plan of embed_many with a clock and a server that the test controls."""

import contextlib
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from isogloss import InternalError, IsoglossError, ResourceExhaustedError, UnavailableError, _bulk
from isogloss._arguments import bulk_arguments, embed_arguments
from isogloss._bulk import BulkEmbed, BulkTiming, Chunk, Window
from isogloss._embed import Call, KnownLimits
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import numbered
from tests.support.fake import vector

LEAST_WAIT_S = 1e-6  # a shorter wait would not advance a clock of floating-point numbers


class Simulation:
    """Executes the steps of a plan on a clock that advances only while the plan waits.

    `answers` returns the message that a wait receives, or None.
    """

    def __init__(self, answers: Callable[["Simulation"], Any] = lambda simulation: None, **timing: Any) -> None:
        self.now_s = 0.0
        self.answers = answers
        self.steps: list[tuple[float, _bulk.Step]] = []
        self.unanswered: list[Any] = []
        self.timing = BulkTiming(clock=lambda: self.now_s, jitter=lambda: 1.0, **timing)

    def run(self, texts: list[str], **arguments: Any) -> list[Any]:
        """Returns the chunks that the plan emits."""
        bulk = bulk_arguments(**{"chunk_texts": 2, "window_chunks": 4, "patience_s": 60.0, **arguments})
        defaults = {"model": "", "input_type": "query", "element_type": "float32", "truncation": "end", "space_id": ""}
        about = embed_arguments(**defaults, dimensions=0, normalize=True, priority="bulk", allow_partial=False)
        plan, source, emitted = BulkEmbed(KnownLimits(), about, bulk, self.timing).steps(), iter(texts), []
        step = next(plan)
        while step is not None:
            self.steps.append((self.now_s, step))
            if isinstance(step, _bulk.Emit):
                emitted.append(step.chunk)
            reply = self._reply(step, source)
            try:
                step = plan.throw(reply) if isinstance(reply, Exception) else plan.send(reply)
            except StopIteration:
                break
        return emitted

    def moments(self, kind: type) -> list[float]:
        """Returns the times of the steps of one kind."""
        return [moment for moment, step in self.steps if isinstance(step, kind)]

    def _reply(self, step: _bulk.Step, source: Any) -> Any:
        match step:
            case Call():
                return pb.ListModelsResponse(models=[pb.ModelInfo(name="default", space_id="s", dimensions=[16])])
            case _bulk.Read(chunker, _):
                return any(chunker.add(text) for text in source)
            case _bulk.Send(request):
                self.unanswered.append(request)
            case _bulk.Open():
                self.unanswered = []
            case _bulk.Sleep(seconds):
                self.now_s += max(seconds, LEAST_WAIT_S)
            case _bulk.Receive(timeout_s):
                found = self.answers(self) if timeout_s > 0 else None
                self.now_s += 0 if found is not None or timeout_s <= 0 else max(timeout_s, LEAST_WAIT_S)
                return found
        return None


def answer(simulation: Simulation) -> Any:
    """Returns the response to the oldest request."""
    if not simulation.unanswered:
        return _bulk.END_OF_STREAM
    message = simulation.unanswered.pop(0)
    rows = [vector(text) for text in message.request.texts]
    matrix = pb.Matrix(data=b"".join(row.tobytes() for row in rows), rows=len(rows), columns=16)
    return pb.EmbedStreamResponse(
        id=message.id, response=pb.EmbedResponse(embeddings=matrix, model="default", space_id="s")
    )


def refused(simulation: Simulation, delay_s: int) -> Any:
    """Returns a refusal of the oldest request that asks to repeat it after a delay."""
    error = status_pb2.Status(code=8, message="busy")
    error.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=delay_s)))
    return pb.EmbedStreamResponse(id=simulation.unanswered.pop(0).id, error=error)


def test_a_silent_stream_is_cancelled_and_replaced() -> None:
    """Half of patience_s without a message cancels the stream; all of it raises UnavailableError."""
    simulation = Simulation()
    with pytest.raises(UnavailableError, match="60 s"):
        simulation.run(numbered(20))
    assert simulation.moments(_bulk.Cancel) == [30.0]
    assert simulation.moments(_bulk.Open) == [0.0, 30.1]
    assert simulation.now_s == 60.0


def test_time_spent_in_the_callers_code_is_not_counted() -> None:
    """A caller that is slow to read chunks, or to provide texts, does not use up the retry budget."""
    simulation = Simulation(answer, max_stream_age_s=1e9)
    chunks = simulation.run(numbered(20))
    assert len(chunks) == 10
    slow = Simulation(lambda simulation: _later(simulation, 29.0), max_stream_age_s=1e9)
    assert len(slow.run(numbered(20))) == 10
    assert len(slow.moments(_bulk.Open)) == 1


def _later(simulation: Simulation, seconds: float) -> Any:
    simulation.now_s += seconds
    return answer(simulation)


def test_a_requested_delay_is_kept_while_other_requests_continue() -> None:
    """A request refused for seven seconds is repeated after seven seconds; the others are not delayed."""
    first = iter([True])

    def busy(simulation: Simulation) -> Any:
        """Refuses the first request for seven seconds, and answers the others."""
        if next(first, False):
            return refused(simulation, 7)
        return answer(simulation) if simulation.unanswered else None

    simulation = Simulation(busy)
    chunks = simulation.run(numbered(8))
    assert [chunk.start for chunk in chunks] == [0, 2, 4, 6]
    assert simulation.moments(_bulk.Send) == [0.0] * 4 + [7.0]
    numbers = [step.request.id for _, step in simulation.steps if isinstance(step, _bulk.Send)]
    assert len(set(numbers)) == 5


def test_a_requested_delay_beyond_the_retry_budget_raises_at_once() -> None:
    """A delay longer than patience_s raises the error without waiting."""
    simulation = Simulation(lambda simulation: refused(simulation, 61))
    with pytest.raises(ResourceExhaustedError) as raised:
        simulation.run(numbered(2))
    assert (simulation.now_s, raised.value.retry_after_s) == (0.0, 61.0)


def test_streams_are_reopened_with_exponential_backoff() -> None:
    """Delays double up to the maximum; jitter shortens them by up to one half."""

    def lost(simulation: Simulation) -> Any:
        """Ends the stream."""
        return UnavailableError("gone")

    simulation = Simulation(lost)
    with pytest.raises(UnavailableError, match="gone"):
        simulation.run(["a"])
    opened = simulation.moments(_bulk.Open)
    delays = [round(later - earlier, 3) for earlier, later in pairwise(opened)]
    assert delays[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert BulkTiming(jitter=lambda: 0.0).backoff_s(1) == 0.05


def test_an_old_stream_is_half_closed_before_the_next_is_opened() -> None:
    """A stream older than max_stream_age_s gets no further requests; the next one opens after its last response."""
    simulation = Simulation(lambda simulation: _later(simulation, 10.0))
    assert len(simulation.run(numbered(40))) == 20
    half_closed, opened = simulation.moments(_bulk.HalfClose), simulation.moments(_bulk.Open)
    assert len(opened) > 2
    ages = [end - begin for begin, end in zip(opened, half_closed, strict=True)]
    assert all(age >= 30 for age in ages[:-1])  # the last one ends with the call


def test_the_last_stream_is_half_closed_rather_than_cancelled() -> None:
    """At the end the plan half-closes the stream and waits briefly for its status OK."""
    simulation = Simulation(answer)
    simulation.run(numbered(4))
    assert [type(step) for _, step in simulation.steps[-2:]] == [_bulk.HalfClose, _bulk.Receive]


def test_a_dropped_chunk_is_not_split() -> None:
    """A refusal as too large that arrives after an earlier chunk has failed changes nothing."""
    window = Window(4)
    first, second = Chunk(0, ("a", "b")), Chunk(2, ("c", "d"))
    window.append(first)
    window.append(second)
    window.fail(first, UnavailableError("gone"))
    assert window.halve(second) == 2
    assert len(window) == 1


ROWS = ["0", "1", "999", "9" * 5000, "\u0663"]
REASONS = ["TOO_MANY_TEXTS", "REQUEST_TOO_LARGE", "OVERLOADED", "SPACE_MISMATCH", "EMPTY_TEXT", ""]
ENDS = [_bulk.END_OF_STREAM, None, UnavailableError("gone"), InternalError("failed")]


def random_error(random: Random) -> Any:
    """Returns a status whose parts are unrelated to each other and to the request."""
    error = status_pb2.Status(code=random.choice([0, 1, 3, 4, 8, 9, 13, 14, 99, -5]), message="texts[1] is wrong")
    row = random.choice(ROWS)
    delay = duration_pb2.Duration(seconds=random.choice([0, 1, -5, 10**11]), nanos=random.choice([0, -5, 2**31 - 1]))
    violation = error_details_pb2.BadRequest.FieldViolation(field=f"texts[{row}]", description=f"texts[{row}]")
    for detail in (
        error_details_pb2.ErrorInfo(reason=random.choice(REASONS), metadata={"index": row}),
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.RetryInfo(retry_delay=delay),
    ):
        if random.random() < 0.7:
            error.details.add().Pack(detail)
    return error


def arbitrary(random: Random) -> Callable[[Simulation], Any]:
    """Returns a server that answers at random: in any order, twice, in other spaces, with errors, or not at all."""
    sent: list[Any] = []

    def answers(simulation: Simulation) -> Any:
        """Returns the next message, or the end of the stream."""
        if not simulation.unanswered or random.random() < 0.1:
            return random.choice(ENDS)
        if sent and random.random() < 0.1:
            return random.choice(sent)
        simulation.unanswered.insert(0, simulation.unanswered.pop(random.randrange(len(simulation.unanswered))))
        message = answer(simulation)
        match random.randrange(8):
            case 0:
                message.response.space_id = random.choice(["s", "t", ""])
            case 1:
                message.response.embeddings.rows = random.choice([0, 1, 2**32 - 1])
            case 2:
                message.id = random.choice([0, 2**64 - 1])
            case 3 | 4 | 5:
                message.error.CopyFrom(random_error(random))
        sent.append(message)
        return message

    return answers


@settings(max_examples=100, deadline=None)
@given(random=st.randoms(use_true_random=False), texts=st.integers(1, 20), window=st.integers(1, 4))
def test_no_responses_end_in_an_exception_that_is_not_of_the_client(random: Random, texts: int, window: int) -> None:
    """Whatever a server sends, embed_many yields all texts in order or raises an IsoglossError."""
    simulation = Simulation(arbitrary(random))
    with contextlib.suppress(IsoglossError):
        chunks = simulation.run(numbered(texts), window_chunks=window)
        assert [text for chunk in chunks for text in chunk.texts] == numbered(texts)
