"""The plan of embed_many by itself, on a clock and a server of the test's."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from isogloss import ResourceExhaustedError, UnavailableError, _bulk
from isogloss._arguments import bulk_arguments, embed_arguments
from isogloss._bulk import BulkEmbed, BulkTiming
from isogloss._embed import Call, KnownLimits
from isogloss.v1 import embedding_pb2 as pb

from tests.support.bulk import numbered
from tests.support.scripted_server import vector


class World:
    """Takes the steps of a plan; time passes only where the plan waits. `answers` says what a wait brings, or None."""

    def __init__(self, answers: Callable[["World"], Any] = lambda world: None, **timing: Any) -> None:
        self.now_s = 0.0
        self.answers = answers
        self.taken: list[tuple[float, _bulk.Step]] = []
        self.unanswered: list[Any] = []
        self.timing = BulkTiming(clock=lambda: self.now_s, jitter=lambda: 1.0, **timing)

    def run(self, texts: list[str], **arguments: Any) -> list[Any]:
        """Returns the chunks that the plan gives."""
        bulk = bulk_arguments(**{"chunk_texts": 2, "window_chunks": 4, "patience_s": 60.0, **arguments})
        words = {"model": "", "input_type": "query", "element_type": "float32", "truncation": "end", "space_id": ""}
        about = embed_arguments(**words, dimensions=0, normalize=True, priority="bulk", allow_partial=False)
        plan, source, given = BulkEmbed(KnownLimits(), about, bulk, self.timing).steps(), iter(texts), []
        step = next(plan)
        while step is not None:
            self.taken.append((self.now_s, step))
            if isinstance(step, _bulk.Emit):
                given.append(step.chunk)
            reply = self._reply(step, source)
            try:
                step = plan.throw(reply) if isinstance(reply, Exception) else plan.send(reply)
            except StopIteration:
                break
        return given

    def moments(self, kind: type) -> list[float]:
        """When the plan took steps of one kind."""
        return [moment for moment, step in self.taken if isinstance(step, kind)]

    def _reply(self, step: _bulk.Step, source: Any) -> Any:
        match step:
            case Call():
                return pb.ListModelsResponse(models=[pb.ModelInfo(name="default")])
            case _bulk.Read(chunker):
                return any(chunker.add(text) for text in source)
            case _bulk.Send(request):
                self.unanswered.append(request)
            case _bulk.Open():
                self.unanswered = []
            case _bulk.Sleep(seconds):
                self.now_s += seconds
            case _bulk.Receive(timeout_s):
                found = self.answers(self) if timeout_s > 0 else None
                self.now_s += 0 if found is not None else timeout_s
                return found
        return None


def answer(world: World) -> Any:
    """The answer to the oldest request."""
    if not world.unanswered:
        return _bulk.END_OF_STREAM
    message = world.unanswered.pop(0)
    rows = [vector(text) for text in message.request.texts]
    matrix = pb.Matrix(data=b"".join(row.tobytes() for row in rows), rows=len(rows), columns=16)
    return pb.EmbedStreamResponse(id=message.id, response=pb.EmbedResponse(embeddings=matrix, space_id="s"))


def put_off(world: World, delay_s: int) -> Any:
    """A refusal of the oldest request, to be sent again after a delay."""
    error = status_pb2.Status(code=8, message="busy")
    error.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=delay_s)))
    return pb.EmbedStreamResponse(id=world.unanswered.pop(0).id, error=error)


def test_a_silent_stream_is_dropped_and_another_tried() -> None:
    """After half of the patience another stream is tried; when all of it is gone, UnavailableError says so."""
    world = World()
    with pytest.raises(UnavailableError, match="60 s"):
        world.run(numbered(20))
    assert world.moments(_bulk.Cancel) == [30.0]
    assert world.moments(_bulk.Open) == [0.0, 30.1]
    assert world.now_s == 60.0


def test_the_time_of_the_caller_is_no_silence() -> None:
    """A caller that takes hours over a chunk, or over its texts, loses nothing."""
    world = World(answer, max_stream_age_s=1e9)
    given = world.run(numbered(20))
    assert len(given) == 10
    slow = World(lambda world: _later(world, 29.0), max_stream_age_s=1e9)
    assert len(slow.run(numbered(20))) == 10
    assert len(slow.moments(_bulk.Open)) == 1


def _later(world: World, seconds: float) -> Any:
    world.now_s += seconds
    return answer(world)


def test_a_delay_of_the_server_is_kept() -> None:
    """A request that is put off for seven seconds is sent again after seven, while the others go on."""
    refused = iter([True])

    def busy(world: World) -> Any:
        """Puts the first request off, and answers the others."""
        if next(refused, False):
            return put_off(world, 7)
        return answer(world) if world.unanswered else None

    world = World(busy)
    given = world.run(numbered(8))
    assert [chunk.start for chunk in given] == [0, 2, 4, 6]
    assert world.moments(_bulk.Send) == [0.0] * 4 + [7.0]
    numbers = [step.request.id for _, step in world.taken if isinstance(step, _bulk.Send)]
    assert len(set(numbers)) == 5


def test_a_delay_beyond_patience_is_not_waited_for() -> None:
    """Where the server asks for more time than the caller has, the error comes at once."""
    world = World(lambda world: put_off(world, 61))
    with pytest.raises(ResourceExhaustedError) as raised:
        world.run(numbered(2))
    assert (world.now_s, raised.value.retry_after_s) == (0.0, 61.0)


def test_lost_streams_are_opened_again_ever_more_slowly() -> None:
    """Delays double up to the longest; jitter makes them up to half as long."""

    def lost(world: World) -> Any:
        """Ends the stream."""
        return UnavailableError("gone")

    world = World(lost)
    with pytest.raises(UnavailableError, match="gone"):
        world.run(["a"])
    opened = world.moments(_bulk.Open)
    delays = [round(later - earlier, 3) for earlier, later in pairwise(opened)]
    assert delays[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert BulkTiming(jitter=lambda: 0.0).backoff_s(1) == 0.05


def test_an_old_stream_is_half_closed_before_the_next_is_opened() -> None:
    """After stream_s nothing more is sent on a stream; what it owes comes, and the next begins."""
    world = World(lambda world: _later(world, 10.0))
    assert len(world.run(numbered(40))) == 20
    half_closed, opened = world.moments(_bulk.HalfClose), world.moments(_bulk.Open)
    assert len(opened) > 2
    ages = [end - begin for begin, end in zip(opened, half_closed, strict=True)]
    assert all(age >= 30 for age in ages[:-1])  # the last one ends with the work


def test_the_last_stream_ends_as_one_that_went_well() -> None:
    """At the end the stream is half-closed, and given a moment to end with OK."""
    world = World(answer)
    world.run(numbered(4))
    assert [type(step) for _, step in world.taken[-2:]] == [_bulk.HalfClose, _bulk.Receive]
