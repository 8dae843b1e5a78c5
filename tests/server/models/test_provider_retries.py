"""Retries of calls to a provider: the pauses, their end, and the error that callers receive."""

import asyncio
import email.utils
import itertools

import pytest
from isogloss import AsyncClient, ResourceExhaustedError
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.manual_clock import ManualClock
from tests.support.provider import LIGHT, SMALL, failure, queued, remote

ONE = pb.EmbedRequest(texts=["one"])
DATE_S = 1_800_000_000.0
BACKOFFS_S = [0.1875, 0.375, 0.75, 1.5, 3.0]


def date(after_s: float) -> str:
    return email.utils.formatdate(DATE_S + after_s, usegmt=True)


async def pause_s(fake: FakeProvider, clock: ManualClock, source: str, **headers: str) -> float:
    """Returns the pause in seconds between a 429 with these headers and the retry."""
    fake.script.append(Scripted(status=429, headers={name.replace("_", "-"): value for name, value in headers.items()}))
    async with remote(fake, source, clock) as m:
        await clock.run_until_done(m.stub.Embed(ONE))
    first, second = fake.requests
    return second.moment_s - first.moment_s


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": date(9), "Date": date(0)}, 9.0),
        ({"retry_after_ms": "1250"}, 1.25),
        ({"retry_after_ms": "1250", "Retry_After": "2"}, 1.25),
        ({"Retry_After": "0"}, BACKOFFS_S[0]),
        ({"Retry_After": "soon"}, BACKOFFS_S[0]),
        ({"Retry_After": "-5"}, BACKOFFS_S[0]),
        ({"Retry_After": "nan"}, BACKOFFS_S[0]),
        ({"Retry_After": date(-9), "Date": date(0)}, BACKOFFS_S[0]),
        ({"Retry_After": "Mon, 99999999999999999999 Jan 2026 00:00:00 GMT", "Date": date(0)}, BACKOFFS_S[0]),
        ({}, BACKOFFS_S[0]),
    ],
)
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_retry_after_sets_the_pause(
    fake: FakeProvider, clock: ManualClock, source: str, headers: dict[str, str], expected_s: float
) -> None:
    """Retry-After sets the pause in seconds, as a date, or in milliseconds; without a valid one there is a backoff."""
    assert await pause_s(fake, clock, source, **headers) == pytest.approx(expected_s)


@pytest.mark.parametrize("status", [500, 503])
async def test_retry_after_of_a_server_error_sets_the_pause(
    fake: FakeProvider, clock: ManualClock, status: int
) -> None:
    """A 5xx with Retry-After is retried after that time."""
    fake.script.append(Scripted(status=status, headers={"Retry-After": "5"}))
    async with remote(fake, LIGHT, clock) as m:
        await clock.run_until_done(m.stub.Embed(ONE))
    assert fake.requests[1].moment_s - fake.requests[0].moment_s == pytest.approx(5)


async def test_pauses_double_and_end_after_six_attempts(fake: FakeProvider, clock: ManualClock) -> None:
    """Without Retry-After each pause is twice the one before, shortened by jitter, and there are six attempts."""
    fake.always = Scripted(status=429)
    async with remote(fake, LIGHT, clock) as m:
        told = await clock.run_until_done(failure(m.stub.Embed(ONE)))
    moments_s = [request.moment_s for request in fake.requests]
    waits_s = [later - earlier for earlier, later in itertools.pairwise(moments_s)]
    assert waits_s == pytest.approx(BACKOFFS_S)
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT")


@pytest.mark.parametrize("chunks", [2, 4, 6, 20])
@pytest.mark.parametrize("status", [429, 400])
async def test_a_request_has_one_retry_budget_over_its_chunks(
    fake: FakeProvider, clock: ManualClock, chunks: int, status: int
) -> None:
    """A request of any number of chunks makes at most six calls to a provider that rejects all of them."""
    fake.always = Scripted(status=status)
    texts = [f"{row}" for row in range(chunks)]
    async with remote(fake, LIGHT, clock, max_texts=1) as m:
        told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=texts), timeout=60)))
    assert len(fake.requests) == 6 if status == 429 else len(fake.requests) <= 6
    assert told.pushback_ms == -1


async def test_calls_that_succeed_widen_the_budgets_concurrency(fake: FakeProvider, clock: ManualClock) -> None:
    """A long request soon uses all calls that the provider permits at a time, and later failures have the budget."""
    texts = [f"{row}" for row in range(40)]
    fake.script.extend([Scripted()] * 20 + [Scripted(status=500)] * 4)
    async with remote(fake, LIGHT, clock, max_texts=1, calls=8) as m:
        answer = await clock.run_until_done(m.stub.Embed(pb.EmbedRequest(texts=texts), timeout=60))
    assert (answer.embeddings.rows, len(fake.requests)) == (40, 44)


async def test_a_client_does_not_multiply_the_servers_retries(fake: FakeProvider, clock: ManualClock) -> None:
    """The client's own retries end with the server's, and the caller receives the time to wait."""
    fake.always = Scripted(status=429)
    async with remote(fake, LIGHT, clock) as m, AsyncClient(m.stub.address) as client:
        with pytest.raises(ResourceExhaustedError) as raised:
            await clock.run_until_done(client.embed(["one"]))
    assert len(fake.requests) == 6
    assert (raised.value.is_final, raised.value.retryable) == (True, True)
    assert raised.value.retry_after_s == pytest.approx(2 * BACKOFFS_S[-1])


@pytest.mark.parametrize(("jitter", "expected_s"), [(0.0, 0.25), (0.999, 0.125)])
async def test_jitter_spreads_the_first_pause(
    fake: FakeProvider, clock: ManualClock, jitter: float, expected_s: float
) -> None:
    """Callers that failed together retry at different times: the first pause is between 0.125 s and 0.25 s."""
    fake.script.append(Scripted(status=500))
    async with remote(fake, LIGHT, clock) as m:
        m.embedder._jitter = lambda: jitter
        await clock.run_until_done(m.stub.Embed(ONE))
    assert clock.requested_sleeps_s == pytest.approx([expected_s], abs=1e-3)


@pytest.mark.parametrize("source", [LIGHT, SMALL])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_retry_after_the_deadline_is_an_error_at_once(
    fake: FakeProvider, clock: ManualClock, source: str, status: int
) -> None:
    """If the retry would be after the deadline, the error is immediate, and has the time to wait."""
    fake.always = Scripted(status=status, headers={"Retry-After": "100"})
    async with remote(fake, source, clock) as m:
        told = await failure(m.stub.Embed(ONE, timeout=30))
    assert told.code == ("RESOURCE_EXHAUSTED" if status == 429 else "UNAVAILABLE")
    assert (told.retry_s, told.pushback_ms) == (100.0, -1)
    assert (len(fake.requests), clock.requested_sleeps_s) == (1, [])


async def test_a_caller_without_a_deadline_receives_the_time_to_wait(fake: FakeProvider, clock: ManualClock) -> None:
    """For a caller without a deadline, the trailer that gRPC clients obey has the time to wait."""
    fake.always = Scripted(status=429, headers={"Retry-After": "100"})
    async with remote(fake, LIGHT, clock, timeout_s=60.0) as m:
        told = await failure(m.stub.Embed(ONE))
    assert (told.retry_s, told.pushback_ms) == (100.0, 100_000)


async def test_a_callers_deadline_overrides_the_default(fake: FakeProvider, clock: ManualClock) -> None:
    """A caller's deadline of ten minutes overrides the limit for callers without a deadline."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "100"}))
    async with remote(fake, LIGHT, clock, timeout_s=60.0) as m:
        answer = await clock.run_until_done(m.stub.Embed(ONE, timeout=600))
    assert answer.embeddings.rows == 1
    assert len(fake.requests) == 2


async def test_retries_stop_at_the_deadline(fake: FakeProvider, clock: ManualClock) -> None:
    """Attempts continue while the next one can start before the deadline."""
    fake.always = Scripted(status=429)
    async with remote(fake, LIGHT, clock) as m:
        began_s = clock.now_s
        told = await clock.run_until_done(failure(m.stub.Embed(ONE, timeout=2)))
    assert [request.moment_s - began_s for request in fake.requests] == pytest.approx([0, 0.1875, 0.5625, 1.3125])
    assert (told.code, told.pushback_ms) == ("RESOURCE_EXHAUSTED", -1)


async def test_a_rate_limit_pauses_all_callers(fake: FakeProvider, clock: ManualClock) -> None:
    """While one caller waits for a rate limit, no other call to the model is sent; afterwards all are."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "10"}))
    async with remote(fake, LIGHT, clock) as m:
        began_s = clock.now_s
        first = asyncio.ensure_future(m.stub.Embed(ONE, timeout=60))
        await clock.wait_for_sleeps(1)
        others = [asyncio.ensure_future(m.stub.Embed(pb.EmbedRequest(texts=[text]), timeout=60)) for text in "ab"]
        await queued(m, 2)
        clock.advance(9.9)
        assert len(fake.requests) == 1
        await clock.run_until_done(asyncio.gather(first, *others))
    assert len(fake.requests) == 4
    assert min(request.moment_s for request in fake.requests[1:]) >= began_s + 10


async def test_a_rate_limit_beyond_the_deadline_is_an_error_at_once(fake: FakeProvider, clock: ManualClock) -> None:
    """If another caller's rate limit lasts beyond the deadline, the error is immediate, and nothing is sent."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "40"}))
    async with remote(fake, LIGHT, clock) as m:
        first = asyncio.ensure_future(m.stub.Embed(ONE, timeout=60))
        await clock.wait_for_sleeps(1)
        told = await failure(m.stub.Embed(ONE, timeout=30))
        await clock.run_until_done(first)
    assert (told.code, told.reason, told.pushback_ms) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT", -1)
    assert told.retry_s == pytest.approx(40)
    assert len(fake.requests) == 2
