"""The limits of calls to a provider: texts a minute, priorities, and the circuit breaker."""

import asyncio

import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.models.interfaces import Urgency
from isogloss_server.models.providers.rate_limiter import RateLimiter

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.manual_clock import ManualClock
from tests.support.provider import LIGHT, SMALL, Remote, failure, queued, remote, waiters

MINUTE_S = 60.0
ONE = pb.EmbedRequest(texts=["one"])
BULK = pb.PRIORITY_BULK


def named(name: str, n: int) -> pb.EmbedRequest:
    return pb.EmbedRequest(texts=[f"{name} {row}" for row in range(n)])


async def status(m: Remote) -> tuple[int, str]:
    """Returns the model's state and its detail in health."""
    health = (await m.stub.Health(pb.HealthRequest())).models[0]
    return health.status, health.detail


async def test_no_minute_has_more_texts_than_the_limit(fake: FakeProvider, clock: ManualClock) -> None:
    """With all callers and retries, no window of 60 s has more texts than the limit; all texts are embedded."""
    fake.script.extend([Scripted(), Scripted(status=500), Scripted(status=429, headers={"Retry-After": "3"})])
    async with remote(fake, LIGHT, clock, texts_per_minute=100, max_texts=30, timeout_s=3600.0) as m:
        began_s = clock.now_s
        sizes = [70, 1, 45, 100, 30, 64]
        calls = [m.stub.Embed(named(str(caller), n), timeout=3600) for caller, n in enumerate(sizes)]
        limiter = m.embedder._rate_limiter
        answers = await clock.run_until_done(asyncio.gather(*calls), busy=lambda: limiter._free_calls < 8)
    assert [answer.embeddings.rows for answer in answers] == sizes
    for first in fake.requests:
        window = [r for r in fake.requests if 0 <= r.moment_s - first.moment_s < MINUTE_S]
        assert sum(len(request.texts) for request in window) <= 100
    assert clock.now_s - began_s < 7 * MINUTE_S


async def test_texts_that_the_limit_delays_beyond_the_deadline_are_rejected_at_once(
    fake: FakeProvider, clock: ManualClock
) -> None:
    """Texts that cannot be sent before the deadline are RESOURCE_EXHAUSTED with the time to wait, unsent."""
    async with remote(fake, LIGHT, clock, texts_per_minute=50) as m:
        await m.stub.Embed(named("first", 50), timeout=30)
        told = await failure(m.stub.Embed(ONE, timeout=30))
        assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT")
        assert (told.retry_s, told.pushback_ms, len(fake.requests)) == (60.0, -1, 1)
        clock.advance(MINUTE_S)
        assert (await m.stub.Embed(ONE, timeout=30)).embeddings.rows == 1


async def test_interactive_calls_overtake_bulk_calls(fake: FakeProvider, clock: ManualClock) -> None:
    """With one call in flight, calls of an INTERACTIVE request start before those of earlier BULK requests."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, max_texts=2) as m:
        requests = []
        for row, name in enumerate(["bulk a", "bulk b", "bulk c"]):
            bulk = named(name, 2)
            bulk.priority = BULK
            requests.append(asyncio.ensure_future(m.stub.Embed(bulk)))
            await (asyncio.to_thread(fake.wait_for, 1) if not row else queued(m, row))
        requests.append(asyncio.ensure_future(m.stub.Embed(named("interactive", 4))))
        await queued(m, 4)
        gate.open()
        await asyncio.gather(*requests)
    assert [request.texts[0] for request in fake.requests] == [
        "bulk a 0",
        "interactive 0",
        "interactive 2",
        "bulk b 0",
        "bulk c 0",
    ]


async def test_a_long_request_does_not_block_a_short_one(fake: FakeProvider, clock: ManualClock) -> None:
    """Requests of one priority alternate, call by call: a later short one overtakes a long one."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, max_texts=1) as m:
        first = asyncio.ensure_future(m.stub.Embed(named("long", 8)))
        await asyncio.to_thread(fake.wait_for, 1)
        await queued(m, 5)
        second = asyncio.ensure_future(m.stub.Embed(named("short", 1)))
        await queued(m, 6)
        gate.open()
        await asyncio.gather(first, second)
    assert fake.texts.index("short 0") <= 2


async def test_a_cancelled_waiting_call_sends_nothing(fake: FakeProvider, clock: ManualClock) -> None:
    """A call cancelled in the queue leaves it, uses no text of the minute, and the calls behind it continue."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, texts_per_minute=20, timeout_s=3600.0) as m:
        first = asyncio.ensure_future(m.stub.Embed(named("first", 5), timeout=30))
        await asyncio.to_thread(fake.wait_for, 1)
        cancelled = m.stub.Embed(named("cancelled", 10), timeout=300)
        await queued(m, 1)
        behind = asyncio.ensure_future(m.stub.Embed(named("behind", 15), timeout=300))
        await queued(m, 2)
        assert cancelled.cancel()
        async with asyncio.timeout(60):
            while (await m.stub.Health(pb.HealthRequest())).models[0].queued_texts != 20:
                pass
        assert sum(not waiter.started.done() for waiter in waiters(m)) == 1
        gate.open()
        await asyncio.gather(first, behind)
    assert not any(text.startswith("cancelled") for text in fake.texts)


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_the_breaker_opens_and_a_probe_closes_it(fake: FakeProvider, clock: ManualClock, source: str) -> None:
    """After five failures there are no calls and health is DEGRADED with the reason, until a probe succeeds."""
    fake.always = Scripted(status=503)
    async with remote(fake, source, clock) as m:
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
        await clock.run_until_done(failure(m.stub.Embed(ONE, timeout=60)), limit_s=4)
        assert len(fake.requests) == 5
        worse, why = await status(m)
        assert (worse, "503" in why) == (pb.SERVING_STATUS_DEGRADED, True)

        opened_s, sleeps = clock.now_s, len(clock.requested_sleeps_s)
        told = await failure(m.stub.Embed(ONE, timeout=60))
        assert (told.code, told.reason, len(fake.requests)) == ("UNAVAILABLE", "PROVIDER_UNAVAILABLE", 5)
        assert told.retry_s == pytest.approx(2)
        clock.advance(2)
        await clock.wait_for_sleeps(sleeps + 1)  # the first probe has failed
        assert (await status(m))[0] == pb.SERVING_STATUS_DEGRADED
        assert (await failure(m.stub.Embed(ONE, timeout=60))).retry_s == pytest.approx(4)

        fake.always = None
        clock.advance(4)
        await _until_recovered(m)
        assert (await m.stub.Embed(ONE, timeout=60)).embeddings.rows == 1
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
    assert [request.moment_s - opened_s for request in fake.requests[5:]] == pytest.approx([2, 6, 6])


async def test_pauses_between_probes_double(fake: FakeProvider, clock: ManualClock) -> None:
    """The pauses between probes are 2 s, then twice as long each time, up to 60 s."""
    fake.always = Scripted(status=500)
    async with remote(fake, LIGHT, clock) as m:
        await clock.run_until_done(failure(m.stub.Embed(ONE, timeout=60)), limit_s=4)
        sleeps = len(clock.requested_sleeps_s)
        await clock.run_until_done(clock.wait_for_sleeps(sleeps + 7))
    assert clock.requested_sleeps_s[sleeps - 1 : sleeps + 7] == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])


async def test_a_success_in_between_keeps_the_breaker_closed(fake: FakeProvider, clock: ManualClock) -> None:
    """Only consecutive failures count: four, a success and four more do not open the breaker."""
    bad = Scripted(status=500)
    fake.script.extend([bad, bad, bad, bad, Scripted(), bad, bad, bad, bad, Scripted()])
    async with remote(fake, LIGHT, clock) as m:
        for _ in range(2):
            assert (await clock.run_until_done(m.stub.Embed(ONE, timeout=60))).embeddings.rows == 1
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")


async def test_rejected_requests_do_not_open_the_breaker(fake: FakeProvider, clock: ManualClock) -> None:
    """Requests that the provider rejects as invalid are not failures of the provider."""
    fake.always = Scripted(status=400)
    async with remote(fake, LIGHT, clock) as m:
        for _ in range(7):
            assert (await failure(m.stub.Embed(ONE))).reason == "PROVIDER_REFUSED"
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
    assert len(fake.requests) == 7


async def test_a_rejected_key_degrades_health_until_a_call_succeeds(fake: FakeProvider, clock: ManualClock) -> None:
    """A 401 makes the model DEGRADED with the reason, though calls continue; a success makes it SERVING again."""
    fake.script.append(Scripted(status=401))
    async with remote(fake, LIGHT, clock) as m:
        assert (await failure(m.stub.Embed(ONE))).reason == "PROVIDER_CREDENTIALS"
        worse, why = await status(m)
        assert (worse, "key" in why) == (pb.SERVING_STATUS_DEGRADED, True)
        await m.stub.Embed(ONE)
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")


async def _until_recovered(m: Remote) -> None:
    async with asyncio.timeout(60):
        while m.embedder.breaker.is_open:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


async def test_a_request_beyond_the_limit_is_not_sent_in_part(fake: FakeProvider, clock: ManualClock) -> None:
    """Of a request that the limit delays beyond the deadline nothing is sent, and the limit is left to others."""
    async with remote(fake, LIGHT, clock, texts_per_minute=50, max_texts=10) as m:
        told = await failure(m.stub.Embed(named("many", 60), timeout=30))
        assert (told.reason, fake.requests) == ("PROVIDER_RATE_LIMIT", [])
        assert (await m.stub.Embed(named("few", 50), timeout=30)).embeddings.rows == 50


async def test_a_long_retry_after_is_limited(fake: FakeProvider, clock: ManualClock) -> None:
    """A Retry-After of more than five minutes is limited to five minutes."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "86400"}))
    async with remote(fake, LIGHT, clock) as m:
        began_s = clock.now_s
        answer = await clock.run_until_done(m.stub.Embed(ONE, timeout=3600))
    assert answer.embeddings.rows == 1
    assert clock.now_s - began_s == pytest.approx(300)


async def test_callers_take_turns_at_the_rate_limit(clock: ManualClock) -> None:
    """A call of a quiet caller starts after one of a greedy one, and is not refused for the texts of the others."""
    limiter = RateLimiter(clock, calls=1, texts_per_minute=100)
    started: list[str] = []

    async def call(caller: str, texts: int, deadline_s: float) -> None:
        await limiter.acquire(texts, Urgency(deadline_s=clock.now_s + deadline_s, caller=caller))
        started.append(caller)
        limiter.release(texts)

    await limiter.acquire(10, Urgency(caller="greedy"))
    calls = [asyncio.create_task(call("greedy", 20, 3600.0)) for _ in range(9)]
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(call("quiet", 20, 10.0)))  # all texts before it together would take two minutes
    await asyncio.sleep(0)
    limiter.release(10)
    await clock.run_until_done(asyncio.gather(*calls))
    limiter.close()
    assert started == ["greedy", "quiet", *["greedy"] * 8]
