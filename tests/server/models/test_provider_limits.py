"""What keeps a provider from being asked for too much: its limit of texts a minute, the lanes, the breaker."""

import asyncio

import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.own_time import OwnTime
from tests.support.provider import LIGHT, SMALL, Remote, failure, queued, remote

MINUTE_S = 60.0
ONE = pb.EmbedRequest(texts=["one"])
BULK = pb.PRIORITY_BULK


def named(name: str, n: int) -> pb.EmbedRequest:
    return pb.EmbedRequest(texts=[f"{name} {row}" for row in range(n)])


async def status(m: Remote) -> tuple[int, str]:
    """Returns what health tells of the model."""
    health = (await m.stub.Health(pb.HealthRequest())).models[0]
    return health.status, health.detail


async def test_no_minute_sees_more_texts_than_the_provider_allows(fake: FakeProvider, clock: OwnTime) -> None:
    """Over all callers, and retries too, no window of 60 s has more texts than the limit; all are embedded."""
    fake.script.extend([Scripted(), Scripted(status=500), Scripted(status=429, headers={"Retry-After": "3"})])
    async with remote(fake, LIGHT, clock, texts_per_minute=100, max_texts=30, timeout_s=3600.0) as m:
        began_s = clock.now_s
        sizes = [70, 1, 45, 100, 30, 64]
        calls = [m.stub.Embed(named(str(caller), n), timeout=3600) for caller, n in enumerate(sizes)]
        throttle = m.embedder._rate_limiter
        answers = await clock.fly(asyncio.gather(*calls), busy=lambda: throttle._free_calls < 8)
    assert [answer.embeddings.rows for answer in answers] == sizes
    for first in fake.requests:
        window = [r for r in fake.requests if 0 <= r.moment_s - first.moment_s < MINUTE_S]
        assert sum(len(request.texts) for request in window) <= 100
    assert clock.now_s - began_s < 7 * MINUTE_S


async def test_what_the_limit_leaves_no_room_for_is_refused_at_once(fake: FakeProvider, clock: OwnTime) -> None:
    """Texts that could not be sent before the deadline are RESOURCE_EXHAUSTED with the time to wait, unsent."""
    async with remote(fake, LIGHT, clock, texts_per_minute=50) as m:
        await m.stub.Embed(named("first", 50), timeout=30)
        told = await failure(m.stub.Embed(ONE, timeout=30))
        assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT")
        assert (told.retry_s, told.pushback_ms, len(fake.requests)) == (60.0, -1, 1)
        clock.pass_s(MINUTE_S)
        assert (await m.stub.Embed(ONE, timeout=30)).embeddings.rows == 1


async def test_interactive_texts_overtake_bulk_ones(fake: FakeProvider, clock: OwnTime) -> None:
    """With one call in flight, an INTERACTIVE job's are next, before those of BULK jobs that came sooner."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, max_texts=2) as m:
        jobs = []
        for row, name in enumerate(["bulk a", "bulk b", "bulk c"]):
            job = named(name, 2)
            job.priority = BULK
            jobs.append(asyncio.ensure_future(m.stub.Embed(job)))
            await (asyncio.to_thread(fake.wait_for, 1) if not row else queued(m, row))
        jobs.append(asyncio.ensure_future(m.stub.Embed(named("interactive", 4))))
        await queued(m, 4)
        gate.open()
        await asyncio.gather(*jobs)
    assert [request.texts[0] for request in fake.requests] == [
        "bulk a 0",
        "interactive 0",
        "interactive 2",
        "bulk b 0",
        "bulk c 0",
    ]


async def test_a_long_job_does_not_hold_up_a_short_one(fake: FakeProvider, clock: OwnTime) -> None:
    """Jobs of one lane take turns, call by call: one that comes later need not wait for all of a long one."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, max_texts=1) as m:
        first = asyncio.ensure_future(m.stub.Embed(named("long", 8)))
        await asyncio.to_thread(fake.wait_for, 1)
        await queued(m, 7)
        second = asyncio.ensure_future(m.stub.Embed(named("short", 1)))
        await queued(m, 8)
        gate.open()
        await asyncio.gather(first, second)
    assert fake.texts.index("short 0") <= 2


async def test_a_caller_who_hangs_up_while_waiting_sends_nothing(fake: FakeProvider, clock: OwnTime) -> None:
    """A call cancelled in the queue leaves it, takes no text of the minute, and those behind it go on."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, clock, calls=1, texts_per_minute=20, timeout_s=3600.0) as m:
        first = asyncio.ensure_future(m.stub.Embed(named("first", 5), timeout=30))
        await asyncio.to_thread(fake.wait_for, 1)
        gone = m.stub.Embed(named("gone", 10), timeout=300)
        await queued(m, 1)
        behind = asyncio.ensure_future(m.stub.Embed(named("behind", 15), timeout=300))
        await queued(m, 2)
        assert gone.cancel()
        async with asyncio.timeout(60):
            while (await m.stub.Health(pb.HealthRequest())).models[0].queued_texts != 20:
                pass
        assert sum(not waiter.started.done() for waiter in m.embedder._rate_limiter._waiting) == 1
        gate.open()
        await asyncio.gather(first, behind)
    assert not any(text.startswith("gone") for text in fake.texts)


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_the_breaker_opens_tells_health_and_a_probe_closes_it(
    fake: FakeProvider, clock: OwnTime, source: str
) -> None:
    """After five faults no call goes out and health is DEGRADED, saying why; probes find out when all is well."""
    fake.always = Scripted(status=503)
    async with remote(fake, source, clock) as m:
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
        await clock.fly(failure(m.stub.Embed(ONE, timeout=60)), at_most_s=4)
        assert len(fake.requests) == 5
        worse, why = await status(m)
        assert (worse, "503" in why) == (pb.SERVING_STATUS_DEGRADED, True)

        opened_s, sleeps = clock.now_s, len(clock.slept_s)
        told = await failure(m.stub.Embed(ONE, timeout=60))
        assert (told.code, told.reason, len(fake.requests)) == ("UNAVAILABLE", "PROVIDER_UNAVAILABLE", 5)
        assert told.retry_s == pytest.approx(2)
        clock.pass_s(2)
        await clock.asleep(sleeps + 1)  # the first probe has failed
        assert (await status(m))[0] == pb.SERVING_STATUS_DEGRADED
        assert (await failure(m.stub.Embed(ONE, timeout=60))).retry_s == pytest.approx(4)

        fake.always = None
        clock.pass_s(4)
        await _until_well(m)
        assert (await m.stub.Embed(ONE, timeout=60)).embeddings.rows == 1
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
    assert [request.moment_s - opened_s for request in fake.requests[5:]] == pytest.approx([2, 6, 6])


async def test_probes_become_rarer(fake: FakeProvider, clock: OwnTime) -> None:
    """Between probes are 2 s, then twice as long each time, and at last 60 s."""
    fake.always = Scripted(status=500)
    async with remote(fake, LIGHT, clock) as m:
        await clock.fly(failure(m.stub.Embed(ONE, timeout=60)), at_most_s=4)
        sleeps = len(clock.slept_s)
        await clock.fly(clock.asleep(sleeps + 7))
    assert clock.slept_s[sleeps - 1 : sleeps + 7] == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])


async def test_a_success_in_between_keeps_the_breaker_closed(fake: FakeProvider, clock: OwnTime) -> None:
    """Faults count one after the other: four, a success and four more do not open the breaker."""
    bad = Scripted(status=500)
    fake.script.extend([bad, bad, bad, bad, Scripted(), bad, bad, bad, bad, Scripted()])
    async with remote(fake, LIGHT, clock) as m:
        for _ in range(2):
            assert (await clock.fly(m.stub.Embed(ONE, timeout=60))).embeddings.rows == 1
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")


async def test_what_is_the_callers_fault_does_not_open_the_breaker(fake: FakeProvider, clock: OwnTime) -> None:
    """Requests that the provider refuses, however many, say nothing of how well it is."""
    fake.always = Scripted(status=400)
    async with remote(fake, LIGHT, clock) as m:
        for _ in range(7):
            assert (await failure(m.stub.Embed(ONE))).reason == "PROVIDER_REFUSED"
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")
    assert len(fake.requests) == 7


async def test_a_refused_key_is_told_by_health_until_it_is_taken_again(fake: FakeProvider, clock: OwnTime) -> None:
    """A 401 makes the model DEGRADED with the reason, though calls still go out; a success makes it well again."""
    fake.script.append(Scripted(status=401))
    async with remote(fake, LIGHT, clock) as m:
        assert (await failure(m.stub.Embed(ONE))).reason == "PROVIDER_CREDENTIALS"
        worse, why = await status(m)
        assert (worse, "key" in why) == (pb.SERVING_STATUS_DEGRADED, True)
        await m.stub.Embed(ONE)
        assert await status(m) == (pb.SERVING_STATUS_SERVING, "")


async def _until_well(m: Remote) -> None:
    async with asyncio.timeout(60):
        while m.embedder.breaker.is_open:  # noqa: ASYNC110 - of which nobody tells
            await asyncio.sleep(0)


async def test_a_job_that_the_limit_cannot_hold_is_not_paid_for_in_part(fake: FakeProvider, clock: OwnTime) -> None:
    """Of texts that are too many before the deadline none is sent, and the limit is left to others."""
    async with remote(fake, LIGHT, clock, texts_per_minute=50, max_texts=10) as m:
        told = await failure(m.stub.Embed(named("many", 60), timeout=30))
        assert (told.reason, fake.requests) == ("PROVIDER_RATE_LIMIT", [])
        assert (await m.stub.Embed(named("few", 50), timeout=30)).embeddings.rows == 50


async def test_a_provider_is_let_alone_for_minutes_at_most(fake: FakeProvider, clock: OwnTime) -> None:
    """However long a provider wants to be let alone, after five minutes it is asked again."""
    fake.script.append(Scripted(status=429, headers={"Retry-After": "86400"}))
    async with remote(fake, LIGHT, clock) as m:
        began_s = clock.now_s
        answer = await clock.fly(m.stub.Embed(ONE, timeout=3600))
    assert answer.embeddings.rows == 1
    assert clock.now_s - began_s == pytest.approx(300)
