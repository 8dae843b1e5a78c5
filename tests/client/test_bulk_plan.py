"""The plan of embed_many with a clock and a server that the test controls."""

import contextlib
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isogloss import (
    CallCancelledError,
    FieldViolation,
    InternalError,
    IsoglossError,
    ResourceExhaustedError,
    UnavailableError,
    _bulk,
)
from isogloss._arguments import bulk_arguments, embed_arguments
from isogloss._bulk import BulkEmbed, BulkTiming, Chunk, Window
from isogloss._embed import Call, KnownLimits
from isogloss.errors import error_class
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import numbered
from tests.support.fake import vector

LEAST_WAIT_S = 1e-6  # a shorter wait would not advance a clock of floating-point numbers


class Simulation:
    """Executes the steps of a plan on a clock that advances only while the plan waits.

    `answers` returns the chunk and the response that a wait receives, or None.
    """

    def __init__(self, answers: Callable[["Simulation"], Any] = lambda simulation: None, **timing: Any) -> None:
        self.now_s = 0.0
        self.answers = answers
        self.steps: list[tuple[float, _bulk.Step]] = []
        self.unanswered: list[_bulk.Send] = []
        self.most_in_flight = 0
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
            case _bulk.Send():
                self.unanswered.append(step)
                self.most_in_flight = max(self.most_in_flight, len(self.unanswered))
            case _bulk.Cancel():
                self.unanswered = []
            case _bulk.Receive(timeout_s):
                found = self.answers(self) if timeout_s > 0 and self.unanswered else None
                self.now_s += 0 if found is not None or timeout_s <= 0 else max(timeout_s, LEAST_WAIT_S)
                return found
        return None


def answer(simulation: Simulation) -> Any:
    """Returns the response to the oldest request."""
    send = simulation.unanswered.pop(0)
    rows = [vector(text) for text in send.request.texts]
    matrix = pb.Matrix(data=b"".join(row.tobytes() for row in rows), rows=len(rows), columns=16)
    return send.chunk, pb.EmbedResponse(embeddings=matrix, model="default", space_id="s")


def refused(simulation: Simulation, delay_s: float, **attributes: Any) -> Any:
    """Returns a refusal of the oldest request that asks to repeat it after a delay."""
    error = ResourceExhaustedError("busy", reason="OVERLOADED", retry_after_s=delay_s, **attributes)
    return simulation.unanswered.pop(0).chunk, error


def test_calls_without_a_response_are_cancelled_and_repeated() -> None:
    """Half of patience_s without a response cancels the calls; all of it raises UnavailableError."""
    simulation = Simulation()
    with pytest.raises(UnavailableError, match="60 s"):
        simulation.run(numbered(20))
    assert simulation.moments(_bulk.Cancel) == [30.0]
    assert simulation.moments(_bulk.Send) == [0.0, 0.0, 30.1]
    assert simulation.now_s == 60.0


def test_a_lost_call_does_not_end_embed_many() -> None:
    """A call that the server never answers is repeated once the others have been answered."""

    def silent(simulation: Simulation) -> Any:
        """Answers all calls except the first."""
        if simulation.now_s < 30 and simulation.unanswered[0].chunk.start == 0:
            simulation.unanswered.append(simulation.unanswered.pop(0))
            return None if len(simulation.unanswered) == 1 else answer(simulation)
        return answer(simulation)

    simulation = Simulation(silent)
    assert [chunk.start for chunk in simulation.run(numbered(20))] == list(range(0, 20, 2))
    assert simulation.now_s < 60


def test_time_spent_in_the_callers_code_is_not_counted() -> None:
    """A caller that is slow to read chunks, or to provide texts, does not use up the retry budget."""
    simulation = Simulation(answer)
    assert len(simulation.run(numbered(20))) == 10
    slow = Simulation(lambda simulation: _later(simulation, 29.0))
    assert len(slow.run(numbered(20))) == 10
    assert not slow.moments(_bulk.Cancel)


def _later(simulation: Simulation, seconds: float) -> Any:
    simulation.now_s += seconds
    return answer(simulation)


def test_a_requested_delay_is_kept_while_other_requests_continue() -> None:
    """A request refused for seven seconds is repeated after seven seconds; the others are not delayed."""
    first = iter([True])
    simulation = Simulation(lambda simulation: refused(simulation, 7) if next(first, False) else answer(simulation))
    chunks = simulation.run(numbered(8))
    assert [chunk.start for chunk in chunks] == [0, 2, 4, 6]
    assert simulation.moments(_bulk.Send) == [0.0] * 4 + [7.0]


@pytest.mark.parametrize("is_final", [True, False])
def test_refusals_of_minutes_are_waited_for_within_the_retry_budget(is_final: bool) -> None:
    """embed_many waits as long as the server asks, also if it asks clients not to repeat calls by themselves."""

    def overloaded(simulation: Simulation) -> Any:
        """Refuses everything for five minutes."""
        if simulation.now_s < 300:
            return refused(simulation, 50, is_final=is_final)
        return answer(simulation)

    simulation = Simulation(overloaded)
    assert len(simulation.run(numbered(20), patience_s=600.0)) == 10
    assert 300 <= simulation.now_s < 400
    with pytest.raises(ResourceExhaustedError, match="busy"):
        Simulation(overloaded).run(numbered(20), patience_s=60.0)


def test_a_requested_delay_beyond_the_retry_budget_raises_at_once() -> None:
    """A delay longer than patience_s raises the error without waiting."""
    simulation = Simulation(lambda simulation: refused(simulation, 61))
    with pytest.raises(ResourceExhaustedError) as raised:
        simulation.run(numbered(2))
    assert (simulation.now_s, raised.value.retry_after_s) == (0.0, 61.0)


def test_a_call_that_must_not_be_repeated_raises_at_once() -> None:
    """An error without a delay, which the server asks not to repeat, is final, such as that of a stalled batch."""
    stuck = UnavailableError("stalled", reason="MODEL_STUCK", is_final=True, retryable=False)
    simulation = Simulation(lambda simulation: (simulation.unanswered.pop(0).chunk, stuck))
    with pytest.raises(UnavailableError, match="stalled"):
        simulation.run(numbered(2))
    assert simulation.now_s == 0.0


def test_lost_calls_are_repeated_with_exponential_backoff() -> None:
    """Delays double up to the maximum; jitter shortens them by up to one half."""
    simulation = Simulation(lambda simulation: (simulation.unanswered.pop(0).chunk, UnavailableError("gone")))
    with pytest.raises(UnavailableError, match="gone"):
        simulation.run(["a"])
    sent = simulation.moments(_bulk.Send)
    delays = [round(later - earlier, 3) for earlier, later in pairwise(sent)]
    assert delays[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert BulkTiming(jitter=lambda: 0.0).backoff_s(1) == 0.05


def test_a_new_server_gets_few_calls_until_it_responds() -> None:
    """Two calls are in flight before the first response; each response allows another one, up to the window."""
    in_flight: list[int] = []

    def counting(simulation: Simulation) -> Any:
        """Counts the calls in flight and answers one."""
        in_flight.append(len(simulation.unanswered))
        return answer(simulation)

    Simulation(counting).run(numbered(100))
    assert in_flight[:3] == [2, 3, 4]
    assert max(in_flight) == 4


def test_an_overloaded_server_gets_no_more_calls_than_it_has_room_for() -> None:
    """After a refusal, only as many calls are in flight as the server has admitted, and one more with each response."""

    def busy(simulation: Simulation) -> Any:
        """Refuses the third call at a time and those after it."""
        if len(simulation.unanswered) > 2:
            simulation.unanswered.insert(0, simulation.unanswered.pop())
            return refused(simulation, 1)
        return _later(simulation, 1.0)

    simulation = Simulation(busy)
    assert len(simulation.run(numbered(100))) == 50
    assert simulation.most_in_flight == 3


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
ENDS = [UnavailableError("gone"), InternalError("failed"), CallCancelledError("cancelled")]


def random_error(random: Random) -> IsoglossError:
    """Returns an error whose parts are unrelated to each other and to the request."""
    row = random.choice(ROWS)
    code = random.choice(["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"])
    reason = random.choice(REASONS)
    return error_class(code, reason)(
        "texts[1] is wrong",
        code=code,
        reason=reason,
        metadata={"index": row},
        violations=(FieldViolation(f"texts[{row}]", f"texts[{row}]"),),
        retry_after_s=random.choice([None, 0.0, 1.0, 1e11]),
        is_final=random.choice([True, False]),
    )


def arbitrary(random: Random) -> Callable[[Simulation], Any]:
    """Returns a server that answers at random: in any order, in other spaces, with errors, or not at all."""

    def answers(simulation: Simulation) -> Any:
        """Returns the next response, or None."""
        simulation.unanswered.insert(0, simulation.unanswered.pop(random.randrange(len(simulation.unanswered))))
        if random.random() < 0.1:
            return None
        chunk, response = answer(simulation)
        match random.randrange(8):
            case 0:
                response.space_id = random.choice(["s", "t", ""])
            case 1:
                response.embeddings.rows = random.choice([0, 1, 2**32 - 1])
            case 2:
                response = random.choice(ENDS)
            case 3 | 4:
                response = random_error(random)
        return chunk, response

    return answers


@settings(max_examples=100, deadline=None)
@given(random=st.randoms(use_true_random=False), texts=st.integers(1, 20), window=st.integers(1, 4))
def test_no_responses_end_in_an_exception_that_is_not_of_the_client(random: Random, texts: int, window: int) -> None:
    """Whatever a server sends, embed_many yields all texts in order or raises an IsoglossError."""
    simulation = Simulation(arbitrary(random))
    with contextlib.suppress(IsoglossError):
        chunks = simulation.run(numbered(texts), window_chunks=window)
        assert [text for chunk in chunks for text in chunk.texts] == numbered(texts)
