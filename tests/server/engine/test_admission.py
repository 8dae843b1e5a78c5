"""Admission: the requests that it admits, those that it refuses, and the retry delay."""

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.admission import (
    LONGEST_RETRY_S,
    SMALL_BYTES,
    UNKNOWN_RETRY_S,
    Admission,
    AdmissionLimits,
    Slot,
)
from isogloss_server.engine.backlog import Backlog
from isogloss_server.engine.request import RequestSize
from isogloss_server.errors import DeadlineExceededError, OverloadedError
from isogloss_server.models.interfaces import Embedded, ModelCard

from tests.support.in_process import new_throughput
from tests.support.manual_clock import ManualClock

BULK, INTERACTIVE = Priority.BULK, Priority.INTERACTIVE
DIMENSIONS = 1
RATE = 1000  # tokens a second of the only lane
CARD = ModelCard(backend="test", space_id="s-test", dimensions=(DIMENSIONS,), max_tokens=0)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request of one text with an estimate of `tokens` tokens, which holds `held_bytes` bytes."""

    tokens: int
    held_bytes: int = 10
    priority: Priority = INTERACTIVE
    deadline_s: float = math.inf
    from_stream: bool = False
    products: int = 0
    caller: str = ""

    def size(self, _card: ModelCard) -> RequestSize:
        vector_bytes = self.held_bytes - self.tokens - 4 * DIMENSIONS
        return RequestSize(1, self.tokens, vector_bytes, products=self.products)


def admission_of(
    max_wait_s: float = 30.0, max_bytes: int = 1 << 30, *, rate: float = RATE, bulk_slots: int = 100, **options: Any
) -> Admission:
    """Returns an admission without requests, with an estimate of one token per byte, at the time 0."""
    clock = ManualClock()
    clock.now_s = 0.0
    throughput = new_throughput()
    throughput.record(rate, 1.0)
    limits = AdmissionLimits(max_wait_s=max_wait_s, max_bytes=max_bytes, bulk_slots=bulk_slots)
    backlog = Backlog(throughput, lanes=1, turn=100, bulk_share=1 / 8)
    admission = Admission("test", CARD, limits, clock, backlog, **options)
    admission._tokens_per_byte = 1.0
    return admission


async def enter(admission: Admission, tokens: int, **options: Any) -> AsyncExitStack:
    """Admits a request; closing the returned stack ends it."""
    stack = AsyncExitStack()
    request: Any = Request(tokens=tokens, **options)
    await stack.enter_async_context(admission.admit(request))
    return stack


def age(admission: Admission) -> float:
    """Advances the time until the recent arrivals no longer count; returns the new time."""
    clock: Any = admission._clock
    clock.now_s += 1000.0
    return float(clock.now_s)


async def slot_of(admission: Admission, tokens: int, **options: Any) -> Slot:
    """Admits a request and returns its slot."""
    request: Any = Request(tokens=tokens, **options)
    return await admission.admit(request).__aenter__()


async def test_a_request_waits_for_at_most_its_own_size_of_each_other() -> None:
    """A large request does not delay a short one, however large it is; many short ones delay it."""
    admission = admission_of()
    await enter(admission, 1_000_000)
    for _ in range(90):
        await enter(admission, 10)
    now_s = age(admission)
    with pytest.raises(OverloadedError, match=r"estimated time 1\.3 s exceeds the remaining 1\.2 s") as refused:
        await enter(admission, 10, deadline_s=now_s + 1.2)
    assert refused.value.retry_after_s == pytest.approx(0.075, abs=0.01)
    await enter(admission, 10, deadline_s=now_s + 1.4)


async def test_a_caller_is_delayed_by_at_most_as_much_work_of_each_other_caller() -> None:
    """Many requests of a greedy caller delay one of a quiet caller by its own size; those of the greedy one by all."""
    admission = admission_of()
    for _ in range(29):
        await enter(admission, 1000, caller="greedy")
    now_s = age(admission)
    await enter(admission, 1000, caller="quiet", deadline_s=now_s + 3.0)  # 1 s, 1 s of greedy, a batch, and the margin
    with pytest.raises(OverloadedError, match=r"estimated wait 30\.1 s"):
        await enter(admission, 1000, caller="greedy")
    with pytest.raises(OverloadedError, match=r"estimated time 3\.9 s exceeds"):
        await enter(admission, 1000, caller="third", deadline_s=now_s + 3.0)


async def test_a_caller_is_delayed_by_its_own_requests() -> None:
    """The other callers have their share until the requests of the caller itself are computed."""
    admission = admission_of()
    for caller in ("greedy", "quiet"):
        for _ in range(10):
            await enter(admission, 1000, caller=caller)
    now_s = age(admission)
    with pytest.raises(OverloadedError, match=r"estimated time 26\.4 s"):
        await enter(admission, 1000, caller="quiet", deadline_s=now_s + 25.0)


async def test_many_arrivals_of_another_caller_prolong_a_request_by_no_more_than_its_share() -> None:
    """Short requests that keep arriving from a greedy caller do not count beyond its share."""
    admission = admission_of()
    for _ in range(900):
        await enter(admission, 10, caller="greedy")
    now_s = admission._clock.monotonic_s()
    await enter(admission, 1000, caller="quiet", deadline_s=now_s + 3.0)
    with pytest.raises(OverloadedError, match="estimated time"):
        await enter(admission, 1000, caller="greedy", deadline_s=now_s + 3.0)


async def test_a_caller_leaves_as_much_memory_free_as_it_holds() -> None:
    """One caller fills half of the memory for queued requests, and another one is admitted beside it."""
    admission = admission_of(max_bytes=1000)
    first = await enter(admission, 1, held_bytes=300, caller="greedy")
    await enter(admission, 1, held_bytes=200, caller="greedy")
    with pytest.raises(OverloadedError, match="memory"):
        await enter(admission, 1, held_bytes=100, caller="greedy")
    await enter(admission, 1, held_bytes=400, caller="quiet")
    await first.aclose()
    await enter(admission, 1, held_bytes=100, caller="greedy")
    assert admission._caller_bytes == {"greedy": 300, "quiet": 400}


@pytest.mark.parametrize("from_stream", [False, True])
async def test_callers_take_turns_in_waiting_for_a_bulk_slot_and_for_room(*, from_stream: bool) -> None:
    """A BULK request of a quiet caller is the second to enter, though many of a greedy one have waited for longer."""
    admission = admission_of(bulk_slots=1)
    entered: asyncio.Queue[tuple[str, AsyncExitStack]] = asyncio.Queue()

    async def call(caller: str) -> None:
        running = await enter(admission, 1500, caller=caller, priority=BULK, from_stream=from_stream)
        entered.put_nowait((caller, running))

    calls = [asyncio.create_task(call(caller)) for caller in [*["greedy"] * 6, "quiet"]]
    order = []
    async with asyncio.timeout(60):
        for _ in calls:
            caller, running = await entered.get()
            order.append(caller)
            await running.aclose()
    await asyncio.gather(*calls)
    assert order == ["greedy", "greedy", "quiet", *["greedy"] * 4]


async def test_a_request_that_others_delay_beyond_the_limit_is_refused() -> None:
    """The error has the estimate, the limit and the tokens; requests that end free their work."""
    admission = admission_of(10.0)
    first = await enter(admission, 8_000)
    await enter(admission, 8_000)
    with pytest.raises(
        OverloadedError, match=r"the queue is full: estimated wait 16\.1 s, the limit is 10 s"
    ) as refused:
        await enter(admission, 10_000)
    assert (refused.value.figures["waiting_tokens"], refused.value.figures["limit"]) == ("16000", "10.0")
    assert refused.value.retry_after_s == LONGEST_RETRY_S
    await first.aclose()
    await enter(admission, 10_000)
    assert admission.tokens == 18_000


@pytest.mark.parametrize("options", [{"deadline_s": 0.001}, {}], ids=["deadline", "limit"])
async def test_an_idle_model_admits_any_request(options: dict[str, Any]) -> None:
    """Without other work a request is admitted whatever its size, its deadline and the limit."""
    await enter(admission_of(1.0), 1_000_000, **options)


async def test_nothing_is_refused_for_time_before_the_speed_is_known() -> None:
    """Until a batch has been measured, requests are admitted regardless of their deadlines."""
    admission = admission_of(rate=1)  # too small a piece of work to measure the speed
    for _ in range(100):
        await enter(admission, 10_000, deadline_s=0.01)


async def test_bulk_is_refused_before_interactive() -> None:
    """INTERACTIVE is admitted with work in the queue with which BULK is refused."""
    admission = admission_of(10.0)
    await enter(admission, 6_000, priority=BULK)
    with pytest.raises(OverloadedError, match="the limit is 5 s"):
        await enter(admission, 6_000, priority=BULK)
    await enter(admission, 6_000)


async def test_bulk_does_not_count_in_the_wait_of_interactive() -> None:
    """INTERACTIVE waits for BULK only by BULK's share; BULK waits for INTERACTIVE."""
    admission = admission_of()
    await enter(admission, 7_000, priority=BULK)
    await enter(admission, 7_000)
    now_s = age(admission)
    with pytest.raises(OverloadedError):
        await enter(admission, 7_000, priority=BULK, deadline_s=now_s + 21)
    await enter(admission, 7_000, deadline_s=now_s + 21)


async def test_arriving_requests_count_in_the_wait_of_larger_ones() -> None:
    """While small requests arrive, a large one is expected to share the model with those to come."""
    admission = admission_of()
    load = [await enter(admission, 250) for _ in range(10)]
    for each in load:
        await each.aclose()
    await enter(admission, 500)
    with pytest.raises(OverloadedError):
        await enter(admission, 1_000, deadline_s=2.5)
    await enter(admission, 1_000, deadline_s=age(admission) + 2.5)


async def test_computed_tokens_leave_the_backlog_before_their_request_ends() -> None:
    """The wait is estimated from the tokens that are left, batch by batch."""
    admission = admission_of(10.0)
    slot = await slot_of(admission, 12_000)
    with pytest.raises(OverloadedError):
        await enter(admission, 12_000)
    slot.computed(3_000)
    await enter(admission, 12_000)


async def test_an_estimate_is_corrected_when_the_tokens_are_known() -> None:
    """After tokenization the backlog has the real number of tokens, while blocks are missing at least those so far."""
    admission = admission_of()
    slot = await slot_of(admission, 10_000)
    slot.tokenized(2_000, is_last=False)
    assert admission.tokens == 10_000
    slot.tokenized(90_000, is_last=False)
    assert admission.tokens == 92_000
    slot.tokenized(1_000, is_last=True)
    assert admission.tokens == admission._backlog.total() == 93_000
    short = await slot_of(admission, 10_000)
    short.tokenized(1, is_last=True)
    assert admission.tokens == 93_001


async def test_one_odd_text_does_not_poison_the_estimate() -> None:
    """A text of 4 MB that becomes one token, or as many as bytes, changes the estimate by a fiftieth at most."""
    admission = admission_of()
    for tokens in (1, 4_000_000):
        admission._tokens_per_byte = 0.25
        slot = await slot_of(admission, 4_000_000)
        slot.record(Embedded(rows=np.zeros((1, 1), np.float32), token_counts=None, total_tokens=tokens))
        admission.leave(slot)
        assert 0.24 < admission._tokens_per_byte <= 0.27
    for _ in range(1000):
        admission._learn_ratio(4_000_000, 1)
    assert admission._tokens_per_byte == pytest.approx(0.1)


async def test_comparisons_count_in_the_wait() -> None:
    """A comparison is refused if those of all models would delay it beyond its deadline; texts alone are not."""
    throughput = new_throughput()
    throughput.record(1_000_000, 1.0)
    comparisons = Backlog(throughput, lanes=1, turn=1000)
    admission, other = admission_of(comparisons=comparisons), admission_of(comparisons=comparisons)
    await enter(other, 1, products=3_000_000)
    now_s = age(admission)
    with pytest.raises(OverloadedError, match=r"estimated time 7\.5 s"):
        await enter(admission, 1, products=3_000_000, deadline_s=now_s + 7.0)
    await enter(admission, 1, deadline_s=now_s + 7.0)


async def test_the_retry_delay_is_well_before_the_deadline() -> None:
    """The delay is at most a quarter of the remaining time, and bounded for requests without a deadline."""
    admission = admission_of()
    for _ in range(3):
        await enter(admission, 14_000)
    for deadline_s, most_s in ((8.0, 2.0), (50.0, LONGEST_RETRY_S), (math.inf, LONGEST_RETRY_S)):
        with pytest.raises(OverloadedError) as refused:
            await enter(admission, 14_000, deadline_s=deadline_s)
        assert 0.05 <= refused.value.retry_after_s <= most_s


async def test_memory_refusals_have_a_retry_delay_before_the_speed_is_known() -> None:
    """Without a measured speed the delay after a refusal for memory is a constant."""
    admission = admission_of(max_bytes=1000, rate=1)
    await enter(admission, 1, held_bytes=600)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=600)
    assert refused.value.retry_after_s == UNKNOWN_RETRY_S


async def test_held_bytes_are_bounded_for_calls_and_streams() -> None:
    """Requests of calls and of streams are rejected beyond the limit of bytes."""
    admission = admission_of(max_bytes=1000)
    await enter(admission, 1, held_bytes=600)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=500)
    assert refused.value.figures["limit"] == "1000"
    with pytest.raises(OverloadedError, match="memory"):
        await enter(admission, 1, held_bytes=500, from_stream=True)


async def test_bulk_leaves_half_of_the_bytes_to_interactive() -> None:
    """BULK calls and streams together may hold half of the bytes; the rest is for INTERACTIVE."""
    admission = admission_of(max_bytes=1000)
    await enter(admission, 1, held_bytes=300, priority=BULK, from_stream=True)
    await enter(admission, 1, held_bytes=200, priority=BULK)
    with pytest.raises(OverloadedError, match="memory") as refused:
        await enter(admission, 1, held_bytes=100, priority=BULK, from_stream=True)
    assert refused.value.figures["limit"] == "500"
    await enter(admission, 1, held_bytes=400)


async def test_large_requests_leave_a_tenth_of_the_bytes_to_small_ones() -> None:
    """Large requests fill nine tenths of the memory for queued requests, and a query is admitted beside them."""
    admission = admission_of(max_bytes=10 * SMALL_BYTES)
    await enter(admission, 1, held_bytes=8 * SMALL_BYTES)
    with pytest.raises(OverloadedError, match="memory"):
        await enter(admission, 1, held_bytes=SMALL_BYTES + 1)
    await enter(admission, 1, held_bytes=SMALL_BYTES)
    await enter(admission, 1, held_bytes=SMALL_BYTES)


def test_estimates_follow_the_measured_tokens() -> None:
    """The estimate follows the measured ratio, and is bounded by the limit of tokens of each text."""
    admission = admission_of()
    for _ in range(500):
        admission._learn_ratio(100_000, 80_000)
    assert admission.estimate_tokens(1000, 1) == pytest.approx(800, abs=2)
    short = admission_of()
    short.card = ModelCard(backend="test", space_id="s-test", dimensions=(1,), max_tokens=128)
    assert short.estimate_tokens(1000, 2) == 256


async def test_the_ratio_is_learned_only_from_untruncated_computed_texts() -> None:
    """A request with truncated, failed or cached rows is not typical."""
    rows = np.zeros((4, 1), np.float32)
    admission = admission_of()
    slot, complete = await slot_of(admission, 10), await slot_of(admission, 10)
    slot.record(Embedded(rows=rows, token_counts=None, total_tokens=7, cached_rows=1))
    complete.record(Embedded(rows=rows, token_counts=None, total_tokens=7))
    assert (slot.total_tokens, slot.is_typical, complete.is_typical) == (7, False, True)


async def test_stream_requests_wait_for_room_in_order() -> None:
    """A request of a stream waits until earlier ones have ended; calls have a share of their own."""
    admission = admission_of(rate=50)  # not measured: streams have 8 turns of 100 tokens
    first = await enter(admission, 640, priority=BULK, from_stream=True)
    admitted_names: list[str] = []

    async def wait(name: str, tokens: int) -> None:
        await enter(admission, tokens, priority=BULK, from_stream=True)
        admitted_names.append(name)

    waiting = [asyncio.create_task(wait("large", 720)), asyncio.create_task(wait("small", 80))]
    await asyncio.sleep(0)
    await enter(admission, 800, priority=BULK)
    assert admitted_names == []
    await first.aclose()
    await asyncio.gather(*waiting)
    assert admitted_names == ["large", "small"]


async def test_a_cancelled_stream_request_frees_all_that_it_holds() -> None:
    """A request that is cancelled while it waits, or at its admission, holds no tokens and no bytes."""
    admission = admission_of(rate=50)
    first = await enter(admission, 800, priority=BULK, from_stream=True)
    waiting = asyncio.create_task(enter(admission, 400, priority=BULK, from_stream=True))
    admitted = asyncio.create_task(enter(admission, 480, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await first.aclose()
    admitted.cancel()
    await asyncio.gather(admitted, return_exceptions=True)
    held = [admission.tokens, admission.texts, *admission._bytes.values(), *admission._stream_units.values()]
    assert not any(held)
    await enter(admission, 800, priority=BULK, from_stream=True)


async def test_interactive_streams_do_not_wait_for_bulk_streams() -> None:
    """A request of an INTERACTIVE stream is admitted while requests of BULK streams wait."""
    admission = admission_of(rate=50)
    await enter(admission, 800, priority=BULK, from_stream=True)
    waiting = asyncio.create_task(enter(admission, 800, priority=BULK, from_stream=True))
    await asyncio.sleep(0)
    await enter(admission, 720, from_stream=True)
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
