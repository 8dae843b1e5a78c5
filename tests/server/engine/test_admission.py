"""Admission: the requests that it admits, those that it rejects, and the retry delay."""

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

from tests.support.manual_clock import ManualClock

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
DIMENSIONS = 1
CARD = ModelCard(backend="test", space_id="s-test", dimensions=(DIMENSIONS,), max_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request of one text with an estimate of `tokens` tokens, which holds `held_bytes` bytes."""

    tokens: int
    held_bytes: int = 10
    priority: Priority = INTERACTIVE
    deadline_s: float = math.inf
    from_stream: bool = False

    @property
    def size(self) -> RequestSize:
        return RequestSize(1, self.tokens, self.held_bytes - self.tokens - 4 * DIMENSIONS)


def admission_of(max_tokens: int = 100, max_bytes: int = 1000, *, bulk_slots: int = 100) -> Admission:
    """Returns an admission without requests, with an estimate of one token per byte, at the time 0."""
    clock = ManualClock()
    clock.now_s = 0.0
    limits = AdmissionLimits(max_tokens=max_tokens, max_bytes=max_bytes, bulk_slots=bulk_slots)
    admission = Admission("test", CARD, limits, clock)
    admission._tokens_per_byte = 1.0
    return admission


async def enter(admission: Admission, tokens: int, **options: Any) -> AsyncExitStack:
    """Admits a request; closing the returned stack ends it."""
    stack = AsyncExitStack()
    request: Any = Request(tokens=tokens, **options)
    await stack.enter_async_context(admission.admit(request))
    return stack


async def measured(rate: int) -> Admission:
    """Returns an admission of up to 100,000 tokens that has measured `rate` tokens a second under load."""
    admission = admission_of(100_000, 1 << 30)
    loads = [await enter(admission, 10_000) for _ in range(2)]
    for second in range(60):
        admission._learn_rate(rate if second else 0, float(second))
    for load in loads:
        await load.aclose()
    return admission


async def test_a_full_queue_rejects_until_requests_end() -> None:
    """The error has the admitted tokens and the limit; a request that ends frees its tokens."""
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
    """An empty queue admits a request that exceeds its limit; so does a queue of at most half its limit."""
    admission = admission_of()
    await (await enter(admission, 5_000)).aclose()
    await enter(admission, 50)
    await enter(admission, 5_000)
    assert admission.tokens == 5_050


async def test_bulk_is_rejected_before_interactive() -> None:
    """INTERACTIVE is admitted at a load at which BULK is rejected."""
    admission = admission_of()
    await enter(admission, 40, priority=BULK)
    with pytest.raises(OverloadedError):
        await enter(admission, 20, priority=BULK)
    await enter(admission, 40)
    with pytest.raises(OverloadedError):
        await enter(admission, 40)


async def test_held_bytes_are_bounded_for_calls_and_streams() -> None:
    """Requests of calls and of streams are rejected beyond the limit of bytes."""
    admission = admission_of()
    await enter(admission, 1, held_bytes=600)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=500)
    assert refused.value.figures["limit"] == "1000"
    with pytest.raises(OverloadedError, match="memory"):
        await enter(admission, 1, held_bytes=500, from_stream=True)


async def test_bulk_leaves_half_of_the_bytes_to_interactive() -> None:
    """BULK calls and streams together may hold half of the bytes; the rest is for INTERACTIVE."""
    admission = admission_of(10_000)
    await enter(admission, 1, held_bytes=300, priority=BULK, from_stream=True)
    await enter(admission, 1, held_bytes=200, priority=BULK)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=100, priority=BULK, from_stream=True)
    assert refused.value.figures["limit"] == "500"
    await enter(admission, 1, held_bytes=400)


async def test_a_request_that_cannot_meet_its_deadline_is_rejected_at_once() -> None:
    """A request that expires before the estimated end of the queued work is rejected, with the estimate."""
    admission = await measured(10_000)
    await enter(admission, 30_000)
    clock: Any = admission._clock
    clock.now_s = 94.0
    await (await enter(admission, 10, deadline_s=100.0)).aclose()
    clock.now_s = 97.0
    with pytest.raises(OverloadedError, match=r"estimated wait 5\.1 s exceeds the remaining 3\.0 s") as refused:
        await enter(admission, 10, deadline_s=100.0)
    assert refused.value.retry_after_s == pytest.approx(1.5, rel=0.05)


async def test_a_small_backlog_does_not_reject_by_deadline() -> None:
    """With a small backlog a request is admitted regardless of its deadline."""
    admission = await measured(10_000)
    await enter(admission, 4_000)
    await enter(admission, 90_000, deadline_s=0.001)


async def test_bulk_does_not_count_in_the_wait_of_interactive() -> None:
    """The estimated wait of INTERACTIVE ignores queued BULK; that of BULK includes both."""
    admission = await measured(10_000)
    await enter(admission, 40_000, priority=BULK)
    await enter(admission, 10, deadline_s=1.0)
    with pytest.raises(OverloadedError):
        await enter(admission, 10, priority=BULK, deadline_s=1.0)


async def test_the_retry_delay_is_the_time_until_the_queue_is_half_empty() -> None:
    """The retry delay follows from the measured rate and has an upper bound."""
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
    """No rate is measured with a small backlog, where throughput is the demand and not the capacity."""
    admission = admission_of(100_000, 1 << 30)
    for second in range(100):
        load = await enter(admission, 10)
        admission._learn_rate(10, float(second))
        await load.aclose()
    await enter(admission, 50_000)
    await enter(admission, 10, deadline_s=1.0)


async def test_idle_time_does_not_lower_the_measured_rate() -> None:
    """The time between occasional large requests does not count as time of work."""
    admission = admission_of(100_000, 1 << 30)
    for minute in range(20):
        load = await enter(admission, 5_000)
        admission._learn_rate(5_000, 60.0 * minute)
        await load.aclose()
    await enter(admission, 10_000)
    await enter(admission, 5_000, deadline_s=1.0)


def test_estimates_follow_the_measured_tokens() -> None:
    """The estimate starts at a default ratio, follows the measured one, and is bounded by the limit of tokens."""
    card = ModelCard(backend="test", space_id="s-test", dimensions=(1,), max_tokens=0)
    admission = Admission("test", card, AdmissionLimits(), ManualClock())
    before = admission.estimate_tokens(1000, 1)
    for _ in range(50):
        admission._learn_ratio(100_000, 80_000)
    assert before < 400 < admission.estimate_tokens(1000, 1) == pytest.approx(800, abs=2)
    short = Admission("test", ModelCard(backend="test", space_id="s-test", dimensions=(1,), max_tokens=128),
                      AdmissionLimits(), ManualClock())  # fmt: skip
    assert short.estimate_tokens(1000, 2) == 256


def test_the_ratio_is_learned_only_from_untruncated_computed_texts() -> None:
    """A request with truncated, failed or cached rows is not typical; its computed rows are counted."""
    import numpy as np

    rows = np.zeros((4, 1), np.float32)
    slot = Slot(10, 10, INTERACTIVE, from_stream=False)
    slot.record(Embedded(rows=rows, token_counts=None, total_tokens=7, cached_rows=1))
    assert (slot.computed_rows, slot.actual_tokens, slot.is_typical) == (3, 7, False)
    complete = Slot(10, 10, INTERACTIVE, from_stream=False)
    complete.record(Embedded(rows=rows, token_counts=None, total_tokens=7))
    assert (complete.computed_rows, complete.is_typical) == (4, True)


async def test_stream_requests_wait_for_room_in_order() -> None:
    """A request of a stream waits until earlier ones have ended; calls have a share of their own."""
    admission = admission_of(400)  # streams have 100 of them
    first = await enter(admission, 80, priority=BULK, from_stream=True)
    admitted_names: list[str] = []

    async def wait(name: str, tokens: int) -> None:
        await enter(admission, tokens, priority=BULK, from_stream=True)
        admitted_names.append(name)

    waiting = [asyncio.create_task(wait("large", 90)), asyncio.create_task(wait("small", 10))]
    await asyncio.sleep(0)
    await enter(admission, 100, priority=BULK)
    assert admitted_names == []
    await first.aclose()
    await asyncio.gather(*waiting)
    assert admitted_names == ["large", "small"]


async def test_a_cancelled_stream_request_frees_all_that_it_holds() -> None:
    """A request that is cancelled while it waits, or at its admission, holds no tokens and no bytes."""
    admission = admission_of(400)
    first = await enter(admission, 100, priority=BULK, from_stream=True)
    waiting = asyncio.create_task(enter(admission, 50, priority=BULK, from_stream=True))
    admitted = asyncio.create_task(enter(admission, 60, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await first.aclose()
    admitted.cancel()
    await asyncio.gather(admitted, return_exceptions=True)
    held = [admission.tokens, admission.texts, *admission._bytes.values(), *admission._stream_tokens.values()]
    assert not any(held)
    await enter(admission, 100, priority=BULK, from_stream=True)


async def test_interactive_streams_do_not_wait_for_bulk_streams() -> None:
    """A request of an INTERACTIVE stream is admitted while requests of BULK streams wait."""
    admission = admission_of(400, 1 << 20)
    await enter(admission, 100, priority=BULK, from_stream=True)
    waiting = asyncio.create_task(enter(admission, 100, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    await enter(admission, 90, from_stream=True)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_request_that_expires_before_it_has_a_bulk_slot_fails() -> None:
    """A BULK request whose deadline passes before a slot is free fails and frees its tokens."""
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
