"""Admission to a model's queue: the requests that it admits, those that it refuses, and the time to retry."""

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.admission import (
    LONGEST_RETRY_S,
    UNKNOWN_RETRY_S,
    Admission,
    AdmissionLimits,
    Slot,
)
from isogloss_server.engine.request import RequestSize
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.models.interfaces import Embedded, ModelCard

from tests.support.own_time import OwnTime

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
DIMENSIONS = 1
CARD = ModelCard(backend="test", space_id="s-test", dimensions=(DIMENSIONS,), max_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request of one text that is estimated at `tokens` tokens and holds `held_bytes` bytes."""

    tokens: int
    held_bytes: int = 10
    priority: Priority = INTERACTIVE
    deadline_s: float = math.inf
    from_stream: bool = False

    @property
    def size(self) -> RequestSize:
        return RequestSize(1, self.tokens, self.held_bytes - self.tokens - 4 * DIMENSIONS)


def admission_of(max_tokens: int = 100, max_bytes: int = 1000, *, bulk_slots: int = 100) -> Admission:
    """Returns an empty queue that estimates one token for each byte, at the time 0."""
    clock = OwnTime()
    clock.now_s = 0.0
    limits = AdmissionLimits(max_tokens=max_tokens, max_bytes=max_bytes, bulk_slots=bulk_slots)
    admission = Admission("test", CARD, limits, clock)
    admission._tokens_per_byte = 1.0
    return admission


async def enter(admission: Admission, tokens: int, **options: Any) -> AsyncExitStack:
    """Admits a request; closing what is returned ends it."""
    stack = AsyncExitStack()
    request: Any = Request(tokens=tokens, **options)
    await stack.enter_async_context(admission.admit(request))
    return stack


async def measured(rate: int) -> Admission:
    """Returns an empty queue of 100,000 tokens that has done `rate` tokens a second under load."""
    admission = admission_of(100_000, 1 << 30)
    loads = [await enter(admission, 10_000) for _ in range(2)]
    for second in range(60):
        admission._learn_rate(rate if second else 0, float(second))
    for load in loads:
        await load.aclose()
    return admission


async def test_a_full_queue_refuses_until_requests_leave() -> None:
    """A full queue refuses with its figures; a request that ends makes room."""
    admission = admission_of()
    first = await enter(admission, 60)
    with pytest.raises(OverloadedError, match="full") as refused:
        await enter(admission, 41)
    assert (refused.value.figures["waiting_tokens"], refused.value.figures["limit"]) == ("60", "100")
    assert refused.value.retry_after_s == UNKNOWN_RETRY_S
    await first.aclose()
    await enter(admission, 41)
    assert admission.tokens == 41


async def test_an_empty_queue_admits_any_request() -> None:
    """An empty queue admits a request larger than its room; otherwise one needs at most half the room."""
    admission = admission_of()
    await (await enter(admission, 5_000)).aclose()
    await enter(admission, 50)
    await enter(admission, 5_000)
    assert admission.tokens == 5_050


async def test_bulk_is_refused_before_interactive() -> None:
    """BULK finds no room while INTERACTIVE still does."""
    admission = admission_of()
    await enter(admission, 40, priority=BULK)
    with pytest.raises(OverloadedError):
        await enter(admission, 20, priority=BULK)
    await enter(admission, 40)
    with pytest.raises(OverloadedError):
        await enter(admission, 40)


async def test_memory_is_bounded_for_calls_and_streams() -> None:
    """Beyond the bytes, calls and streams alike are refused."""
    admission = admission_of()
    await enter(admission, 1, held_bytes=600)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=500)
    assert refused.value.figures["limit"] == "1000"
    with pytest.raises(OverloadedError, match="memory"):
        await enter(admission, 1, held_bytes=500, from_stream=True)


async def test_bulk_leaves_half_of_the_memory_to_interactive() -> None:
    """However much BULK asks for, by calls or streams, INTERACTIVE finds memory."""
    admission = admission_of(10_000)
    await enter(admission, 1, held_bytes=300, priority=BULK, from_stream=True)
    await enter(admission, 1, held_bytes=200, priority=BULK)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=100, priority=BULK, from_stream=True)
    assert refused.value.figures["limit"] == "500"
    await enter(admission, 1, held_bytes=400)


async def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once() -> None:
    """A request whose deadline is before the estimated end of the queued work is refused, with the estimate."""
    admission = await measured(10_000)
    await enter(admission, 30_000)
    clock: Any = admission._clock
    clock.now_s = 94.0
    await (await enter(admission, 10, deadline_s=100.0)).aclose()
    clock.now_s = 97.0
    with pytest.raises(OverloadedError, match=r"estimated wait 5\.1 s exceeds the remaining 3\.0 s") as refused:
        await enter(admission, 10, deadline_s=100.0)
    assert refused.value.retry_after_s == pytest.approx(1.5, rel=0.05)


async def test_a_small_backlog_never_refuses_by_time() -> None:
    """With little queued, a request is admitted however near its deadline is."""
    admission = await measured(10_000)
    await enter(admission, 4_000)
    await enter(admission, 90_000, deadline_s=0.001)


async def test_interactive_requests_wait_for_interactive_ones_alone() -> None:
    """BULK in the queue does not make an INTERACTIVE deadline impossible; INTERACTIVE does that to BULK."""
    admission = await measured(10_000)
    await enter(admission, 40_000, priority=BULK)
    await enter(admission, 10, deadline_s=1.0)
    with pytest.raises(OverloadedError):
        await enter(admission, 10, priority=BULK, deadline_s=1.0)


async def test_the_time_to_retry_is_that_until_the_queue_is_half_empty() -> None:
    """RetryInfo follows from the measured rate, within bounds."""
    admission = await measured(10_000)
    await enter(admission, 100_000)
    with pytest.raises(OverloadedError) as refused:
        await enter(admission, 10_000)
    assert refused.value.retry_after_s == pytest.approx(6.0, rel=0.05)
    slow = await measured(1)
    await enter(slow, 100_000)
    with pytest.raises(OverloadedError) as refused:
        await enter(slow, 10_000)
    assert refused.value.retry_after_s == LONGEST_RETRY_S


async def test_slow_callers_do_not_lower_the_measured_rate() -> None:
    """With a small backlog no rate is learnt: a caller of one short text a second does not make the model slow."""
    admission = admission_of(100_000, 1 << 30)
    for second in range(100):
        load = await enter(admission, 10)
        admission._learn_rate(10, float(second))
        await load.aclose()
    await enter(admission, 50_000)
    await enter(admission, 10, deadline_s=1.0)


async def test_idle_time_does_not_lower_the_measured_rate() -> None:
    """A large request now and then, with idle time between, does not make the model slow."""
    admission = admission_of(100_000, 1 << 30)
    for minute in range(20):
        load = await enter(admission, 5_000)
        admission._learn_rate(5_000, 60.0 * minute)
        await load.aclose()
    await enter(admission, 10_000)
    await enter(admission, 5_000, deadline_s=1.0)


def test_estimates_follow_the_texts() -> None:
    """The estimate starts at a usual ratio, follows the model's tokenizer, and is bounded by the length limit."""
    card = ModelCard(backend="test", space_id="s-test", dimensions=(1,), max_tokens=0)
    admission = Admission("test", card, AdmissionLimits(), OwnTime())
    before = admission.estimate_tokens(1000, 1)
    for _ in range(50):
        admission._learn_ratio(100_000, 80_000)
    assert before < 400 < admission.estimate_tokens(1000, 1) == pytest.approx(800, abs=2)
    short = Admission("test", ModelCard(backend="test", space_id="s-test", dimensions=(1,), max_tokens=128),
                      AdmissionLimits(), OwnTime())  # fmt: skip
    assert short.estimate_tokens(1000, 2) == 256


def test_only_texts_that_were_computed_whole_teach_the_ratio() -> None:
    """Truncated, failed and cached rows are not typical; computed ones count."""
    import numpy as np

    rows = np.zeros((4, 1), np.float32)
    slot = Slot(10, 10, INTERACTIVE, from_stream=False)
    slot.record(Embedded(rows=rows, token_counts=None, total_tokens=7, cached_rows=1))
    assert (slot.computed_rows, slot.actual_tokens, slot.is_typical) == (3, 7, False)
    whole = Slot(10, 10, INTERACTIVE, from_stream=False)
    whole.record(Embedded(rows=rows, token_counts=None, total_tokens=7))
    assert (whole.computed_rows, whole.is_typical) == (4, True)


async def test_streams_wait_for_room_in_order() -> None:
    """A stream's request waits until those before it have left; calls have room of their own meanwhile."""
    admission = admission_of(400)  # of which streams have 100
    first = await enter(admission, 80, priority=BULK, from_stream=True)
    entered: list[str] = []

    async def wait(name: str, tokens: int) -> None:
        await enter(admission, tokens, priority=BULK, from_stream=True)
        entered.append(name)

    waiting = [asyncio.create_task(wait("large", 90)), asyncio.create_task(wait("small", 10))]
    await asyncio.sleep(0)
    await enter(admission, 100, priority=BULK)
    assert entered == []
    await first.aclose()
    await asyncio.gather(*waiting)
    assert entered == ["large", "small"]


async def test_a_cancelled_stream_request_leaves_the_queue_as_it_was() -> None:
    """Cancelled while it waits or at the moment of its admission, a request leaves nothing in the queue."""
    admission = admission_of(400)
    first = await enter(admission, 100, priority=BULK, from_stream=True)
    waits = asyncio.create_task(enter(admission, 50, priority=BULK, from_stream=True))
    admitted = asyncio.create_task(enter(admission, 60, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    await first.aclose()
    admitted.cancel()
    await asyncio.gather(admitted, return_exceptions=True)
    held = [admission.tokens, admission.texts, *admission._bytes.values(), *admission._stream_tokens.values()]
    assert not any(held)
    await enter(admission, 100, priority=BULK, from_stream=True)


async def test_interactive_streams_do_not_wait_for_bulk_streams() -> None:
    """While requests of BULK streams wait for room, one of an INTERACTIVE stream is admitted."""
    admission = admission_of(400, 1 << 20)
    await enter(admission, 100, priority=BULK, from_stream=True)
    waiting = asyncio.create_task(enter(admission, 100, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    await enter(admission, 90, from_stream=True)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_request_that_expires_while_it_waits_for_a_bulk_slot_is_not_run() -> None:
    """A BULK request whose deadline passes before a slot is free fails, and frees its place in the queue."""
    admission = admission_of(bulk_slots=1)
    first = await enter(admission, 10, priority=BULK)
    second = asyncio.create_task(enter(admission, 10, priority=BULK, deadline_s=5.0))
    await asyncio.sleep(0)
    clock: Any = admission._clock
    clock.now_s = 6.0
    await first.aclose()
    with pytest.raises(DeadlineExceededError):
        await second
    assert (admission.tokens, admission.texts) == (0, 0)
