"""Quotas: token buckets, the correction of estimates, calls in flight, and a shared store that fails."""

import asyncio

import pytest
from isogloss_server import metrics
from isogloss_server.errors import DomainError, InvalidRequestError, OverloadedError, QuotaError
from isogloss_server.security.quotas import Amounts, Buckets, Quota, Quotas, QuotaStoreError, SharedBuckets

from tests.support.manual_clock import ManualClock

TEXTS = Quota(texts_per_minute=60)
TOKENS = Quota(tokens_per_minute=600)


async def use(quotas: Quotas, quota: Quota, texts: int, *, tokens: int | None = None, name: str = "a") -> None:
    """Charges a request whose estimate is 10 tokens a text, and which has `tokens`."""
    async with quotas.charge(name, quota, texts=texts, text_bytes=40 * texts) as charge:
        charge.tokens = charge.tokens if tokens is None else tokens


async def wait_of(quotas: Quotas, quota: Quota, texts: int, name: str = "a") -> float:
    """Returns the delay that a refused request is asked for."""
    with pytest.raises(QuotaError) as refused:
        await use(quotas, quota, texts, name=name)
    assert refused.value.retry_after_s is not None
    return refused.value.retry_after_s


async def test_a_minute_of_texts_is_allowed_at_once_and_then_refills() -> None:
    """A full bucket gives a minute's quota; the delay of a refusal is the time until the request fits."""
    clock = ManualClock()
    quotas = Quotas(clock)
    await use(quotas, TEXTS, 60)
    delay_s = await wait_of(quotas, TEXTS, 20)
    assert delay_s == pytest.approx(20)
    clock.advance(delay_s)
    await use(quotas, TEXTS, 20)
    assert await wait_of(quotas, TEXTS, 1) == pytest.approx(1)


async def test_a_bucket_holds_a_minute_at_most() -> None:
    """Time without calls does not add up to more than a minute's quota."""
    clock = ManualClock()
    quotas = Quotas(clock)
    await use(quotas, TEXTS, 60)
    clock.advance(3600)
    await use(quotas, TEXTS, 60)
    await wait_of(quotas, TEXTS, 1)


async def test_a_request_above_a_minute_of_texts_never_fits() -> None:
    """It is refused without a time to retry, with its size and the limit."""
    with pytest.raises(QuotaError) as refused:
        await use(Quotas(ManualClock()), TEXTS, 61)
    assert refused.value.retry_after_s == float("inf")
    assert (refused.value.figures["actual"], refused.value.figures["limit"]) == ("61", "60")


async def test_tokens_are_charged_as_they_were_and_not_as_estimated() -> None:
    """An estimate that was too low leaves a debt; one that was too high is returned."""
    clock = ManualClock()
    quotas = Quotas(clock)
    await use(quotas, TOKENS, 10, tokens=900)  # estimated as 100
    assert await wait_of(quotas, TOKENS, 10) == pytest.approx(40)  # 300 owed, and 100 more, at 10 a second
    clock.advance(60)
    await use(quotas, TOKENS, 30, tokens=10)  # estimated as 300, which is all there is
    await use(quotas, TOKENS, 29, tokens=290)


async def test_a_request_of_more_tokens_than_a_minute_needs_a_full_bucket() -> None:
    """The estimate may be wrong, so that such a request is not refused for ever."""
    quotas = Quotas(ManualClock())
    await use(quotas, TOKENS, 1000, tokens=1000)
    assert await wait_of(quotas, TOKENS, 1) == pytest.approx(41)


async def test_names_have_buckets_of_their_own() -> None:
    """The use of one caller takes nothing from another."""
    quotas = Quotas(ManualClock())
    await use(quotas, TEXTS, 60, name="greedy")
    await use(quotas, TEXTS, 60, name="other")


@pytest.mark.parametrize(("error", "charged"), [(OverloadedError, False), (InvalidRequestError, True)])
async def test_a_refusal_of_the_server_is_not_charged(error: type[DomainError], charged: bool) -> None:
    """Overload costs no quota; an error of the caller does."""
    quotas = Quotas(ManualClock())
    with pytest.raises(error):
        async with quotas.charge("a", TEXTS, texts=60, text_bytes=0):
            raise error("why")
    if charged:
        await wait_of(quotas, TEXTS, 1)
    else:
        await use(quotas, TEXTS, 60)


async def test_a_refused_request_takes_nothing() -> None:
    """Of two limits, neither is charged if one refuses."""
    clock = ManualClock()
    quotas = Quotas(clock)
    quota = Quota(texts_per_minute=60, tokens_per_minute=600)
    await use(quotas, quota, 40, tokens=400)
    for _ in range(3):
        assert await wait_of(quotas, quota, 30) == pytest.approx(10)
    clock.advance(10)
    await use(quotas, quota, 30)


def test_calls_in_flight_are_counted_by_name() -> None:
    """A call beyond the quota is refused until one of the same name ends."""
    quotas, quota = Quotas(ManualClock()), Quota(calls=2)
    end, _ = quotas.begin_call("a", quota), quotas.begin_call("a", quota)
    quotas.begin_call("b", quota)
    with pytest.raises(QuotaError) as refused:
        quotas.begin_call("a", quota)
    assert refused.value.retry_after_s
    end()
    quotas.begin_call("a", quota)


class Store:
    """A store in memory, which fails or hangs when the test wants it."""

    def __init__(self, clock: ManualClock) -> None:
        self.failing = self.hanging = False
        self.buckets = Buckets(clock.now_s)
        self._clock = clock

    async def take(self, name: str, limits: Amounts, amounts: Amounts, *, always: bool) -> float:
        await self.ping()
        return self.buckets.take(limits, amounts, self._clock.now_s, always=always)

    async def ping(self) -> None:
        if self.hanging:
            await asyncio.Event().wait()
        if self.failing:
            raise QuotaStoreError("no connection")

    async def close(self) -> None:
        """Does nothing."""


def errors() -> float:
    return metrics.REGISTRY.get_sample_value("isogloss_quota_shared_errors_total") or 0.0


async def shared_quotas(store: Store, clock: ManualClock) -> Quotas:
    """Returns quotas of one of several servers, connected to the store."""
    shared = SharedBuckets(store, clock, timeout_s=0.01)
    quotas = Quotas(clock, shared)
    quotas.start()
    await until_used(shared)
    return quotas


async def until_used(shared: SharedBuckets) -> None:
    """Waits for the probe that makes a server use its store."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert not shared._breaker.is_open


async def test_servers_share_a_quota() -> None:
    """What one server has used is missing at the other."""
    clock = ManualClock()
    store = Store(clock)
    one, two = await shared_quotas(store, clock), await shared_quotas(store, clock)
    await use(one, TEXTS, 40)
    assert await wait_of(two, TEXTS, 30) == pytest.approx(10)


@pytest.mark.parametrize("fault", ["failing", "hanging"])
async def test_without_its_store_a_server_counts_alone(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Calls do not fail; the server continues from what it has used itself, and logs the failure once."""
    clock = ManualClock()
    store = Store(clock)
    quotas = await shared_quotas(store, clock)
    await use(quotas, TEXTS, 40)
    before = errors()
    setattr(store, fault, True)
    for _ in range(5):
        await use(quotas, TEXTS, 1)
    assert await wait_of(quotas, TEXTS, 16) == pytest.approx(1)
    assert errors() > before
    assert [record.message for record in caplog.records].count(
        "shared quotas unavailable; this server counts alone"
    ) == 1
    await quotas.close()


async def test_a_store_that_recovers_is_used_again() -> None:
    """After a successful probe, the buckets of the store decide."""
    clock = ManualClock()
    store = Store(clock)
    quotas = await shared_quotas(store, clock)
    store.failing = True
    for _ in range(3):
        await use(quotas, TEXTS, 20)
    store.failing = False
    await clock.wait_for_sleeps(1)
    clock.advance(10)
    shared = quotas._shared
    assert shared is not None
    await until_used(shared)
    await use(quotas, TEXTS, 60)
    await quotas.close()
