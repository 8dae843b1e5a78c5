"""Quotas of callers: texts and tokens a minute by token buckets, and calls in flight."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from isogloss_server import logs, metrics
from isogloss_server.circuit_breaker import CircuitBreaker
from isogloss_server.clock import Clock
from isogloss_server.errors import ExhaustedError, QuotaError, UnavailableError

MINUTE_S = 60.0
BYTES_PER_TOKEN = 4  # of UTF-8, until the tokens of a request are known
CALLS_RETRY_S = 1.0  # the time at which a call in flight ends is unknown
NOT_CHARGED = (ExhaustedError, UnavailableError)  # the server refuses the request for reasons of its own
MAX_PENDING_CORRECTIONS = 1000  # that wait for the store; further ones are dropped
FAILURES_TO_OPEN = 3  # consecutive ones: a single late response is normal
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 8.0

Amounts = tuple[int, int]  # texts and tokens
RESOURCES = ("texts", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits of one caller. 0 means no limit.

    Attributes:
        texts_per_minute: Texts of Embed, EmbedStream and Similarity.
        tokens_per_minute: Tokens of their texts.
        calls: Calls of these methods in flight, a stream being one.
    """

    texts_per_minute: int = 0
    tokens_per_minute: int = 0
    calls: int = 0

    @property
    def limits(self) -> Amounts:
        """Texts and tokens a minute."""
        return self.texts_per_minute, self.tokens_per_minute


UNLIMITED = Quota()


class QuotaStoreError(Exception):
    """An operation of the store failed; the message is the cause, without addresses."""


class QuotaStore(Protocol):
    """Token buckets that several servers share."""

    async def take(self, name: str, limits: Amounts, amounts: Amounts, *, always: bool) -> float:
        """Takes `amounts` from the buckets of a caller, as `Buckets.take` does; raises QuotaStoreError."""
        ...

    async def ping(self) -> None:
        """Returns when the store has responded; raises QuotaStoreError."""
        ...

    async def close(self) -> None:
        """Closes all connections; raises QuotaStoreError."""
        ...


class Buckets:
    """The token buckets of one caller, in this process: each holds a minute's quota, and refills continuously.

    A bucket may owe tokens, because the tokens of a request are known only after it.
    """

    def __init__(self, now_s: float) -> None:
        self._levels: dict[int, float] = {}  # by resource; a missing one is full
        self._at_s = now_s

    def take(self, limits: Amounts, amounts: Amounts, now_s: float, *, always: bool = False) -> float:
        """Takes amounts from the buckets, from all or from none.

        Args:
            limits: Size of each bucket, and its refill in a minute; 0 for no limit.
            amounts: The amounts; negative ones are returned to the bucket.
            now_s: The time.
            always: Take them even if the buckets then owe tokens.

        Returns:
            0 if they are taken, otherwise the seconds until they can be. A bucket that is full gives any amount.
        """
        elapsed_s, wait_s, levels = max(0.0, now_s - self._at_s), 0.0, {}
        for number, (limit, amount) in enumerate(zip(limits, amounts, strict=True)):
            if limit:
                level = min(limit, self._levels.get(number, limit) + limit * elapsed_s / MINUTE_S)
                wait_s = max(wait_s, (min(amount, limit) - level) * MINUTE_S / limit)
                levels[number] = level - amount
        if wait_s > 0 and not always:
            return wait_s
        self._levels, self._at_s = levels, now_s
        return 0.0


class SharedBuckets:
    """The buckets of a store, with a time limit; while the store fails, there are none."""

    def __init__(self, store: QuotaStore, clock: Clock, *, timeout_s: float) -> None:
        """Takes the store, and the time limit of one operation in seconds."""
        self._store = store
        self._timeout_s = timeout_s
        self._corrections: set[asyncio.Task[float | None]] = set()
        self._breaker = CircuitBreaker(
            clock,
            self._probe,
            _report,
            failures_to_open=FAILURES_TO_OPEN,
            first_pause_s=FIRST_PAUSE_S,
            max_pause_s=MAX_PAUSE_S,
        )

    def start(self) -> None:
        """Starts a first probe; the buckets are used when it has succeeded."""
        self._breaker.start()

    async def close(self) -> None:
        """Stops all tasks, and closes the store."""
        self._breaker.stop()
        for task in self._corrections:
            task.cancel()
        try:
            await self._store.close()
        except QuotaStoreError as error:
            logs.debug("closing the store of quotas failed", cause=str(error))

    async def take(self, name: str, limits: Amounts, amounts: Amounts, *, always: bool = False) -> float | None:
        """Returns what `Buckets.take` returns, or None if the store is unavailable or late."""
        if self._breaker.is_open:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                wait_s = await self._store.take(name, limits, amounts, always=always)
        except (QuotaStoreError, TimeoutError) as error:
            metrics.QUOTA_SHARED_ERRORS.inc()
            self._breaker.failed(_cause(error))
            return None
        self._breaker.succeeded()
        return wait_s

    def correct(self, name: str, limits: Amounts, amounts: Amounts) -> None:
        """Takes amounts in the background, whatever the buckets hold."""
        if not self._breaker.is_open and len(self._corrections) < MAX_PENDING_CORRECTIONS:
            task = asyncio.create_task(self.take(name, limits, amounts, always=True))
            self._corrections.add(task)
            task.add_done_callback(self._corrections.discard)

    async def _probe(self) -> str:
        try:
            async with asyncio.timeout(max(1.0, self._timeout_s)):
                await self._store.ping()
        except (QuotaStoreError, TimeoutError) as error:
            metrics.QUOTA_SHARED_ERRORS.inc()
            return _cause(error)
        return ""


def _cause(error: Exception) -> str:
    return str(error) or "no response within the time limit"  # a TimeoutError has no message


def _report(cause: str) -> None:
    if cause:
        logs.warning("shared quotas unavailable; this server counts alone", cause=cause)
    else:
        logs.info("quotas are shared")


class Quotas:
    """Counts the use of all callers, by name, and refuses what exceeds a quota."""

    def __init__(self, clock: Clock, shared: SharedBuckets | None = None) -> None:
        """Creates empty counts.

        Args:
            clock: Refills the buckets.
            shared: The buckets that other servers use too. This server's own buckets are used while those fail, and
                until then they follow what this server has taken.
        """
        self._clock = clock
        self._shared = shared
        self._buckets: dict[str, Buckets] = {}
        self._calls: Counter[str] = Counter()

    def start(self) -> None:
        """Starts to use the shared buckets."""
        if self._shared is not None:
            self._shared.start()

    async def close(self) -> None:
        """Closes the shared buckets."""
        if self._shared is not None:
            await self._shared.close()

    def begin_call(self, name: str, quota: Quota) -> Callable[[], None]:
        """Counts a call in flight; returns the function that ends it.

        Raises:
            QuotaError: As many calls as the quota permits are in flight.
        """
        if quota.calls and self._calls[name] >= quota.calls:
            raise QuotaError(
                f"{quota.calls} calls of the key are in flight, the limit of its quota",
                retry_after_s=CALLS_RETRY_S,
                quota="calls",
                limit=quota.calls,
            )
        self._calls[name] += 1
        return partial(self._end_call, name)

    def _end_call(self, name: str) -> None:
        self._calls[name] -= 1
        if not self._calls[name]:
            del self._calls[name]

    def charge(self, name: str, quota: Quota, *, texts: int, text_bytes: int) -> "Charge":
        """Returns the charge for one request, to be entered before its work."""
        return Charge(self, name, quota, texts, max(texts, text_bytes // BYTES_PER_TOKEN))

    async def take(self, name: str, quota: Quota, amounts: Amounts) -> None:
        """Takes texts and estimated tokens of one request.

        Raises:
            QuotaError: They exceed the quota at this time or, for texts, at all times.
        """
        limits, own = quota.limits, self._own(name)
        if 0 < quota.texts_per_minute < amounts[0]:
            message = f"{amounts[0]} texts; the quota of the key is {limits[0]} a minute; send smaller requests"
            raise QuotaError(message, retry_after_s=float("inf"), quota="texts", actual=amounts[0], limit=limits[0])
        wait_s = await self._shared.take(name, limits, amounts) if self._shared is not None else None
        is_shared = wait_s is not None
        if wait_s is None:
            wait_s = own.take(limits, amounts, self._clock.monotonic_s())
        if wait_s > 0:
            shown = " and ".join(f"{limit} {unit}" for limit, unit in zip(limits, RESOURCES, strict=True) if limit)
            message = f"the quota of the key, {shown} a minute, is used up; retry in {wait_s:.3g} s"
            figures: dict[str, object] = {f"{u}_per_minute": n for n, u in zip(limits, RESOURCES, strict=True) if n}
            raise QuotaError(message, field="", retry_after_s=wait_s, quota="minute", **figures)
        if is_shared:
            own.take(limits, amounts, self._clock.monotonic_s(), always=True)

    def correct(self, name: str, quota: Quota, amounts: Amounts) -> None:
        """Takes further amounts of a request that was taken; negative ones are returned."""
        if any(amounts):
            self._own(name).take(quota.limits, amounts, self._clock.monotonic_s(), always=True)
            if self._shared is not None:
                self._shared.correct(name, quota.limits, amounts)

    def _own(self, name: str) -> Buckets:
        buckets = self._buckets.get(name)
        if buckets is None:
            buckets = self._buckets[name] = Buckets(self._clock.monotonic_s())
        return buckets


class Charge:
    """The charge for one request: taken by an estimate, then corrected to the tokens that the request had.

    A request that the server refuses for its own reasons, such as overload, is not charged. One that fails otherwise is
    charged by the estimate.

    Attributes:
        tokens: Tokens of the request; set it when they are known, or leave it if they are not.
    """

    def __init__(self, quotas: Quotas, name: str, quota: Quota, texts: int, tokens: int) -> None:
        self.tokens = tokens
        self._quotas = quotas
        self._name = name
        self._quota = quota
        self._taken = texts, tokens

    async def __aenter__(self) -> Self:
        if any(self._quota.limits):
            await self._quotas.take(self._name, self._quota, self._taken)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if not any(self._quota.limits):
            return
        texts, tokens = self._taken
        refunded = kind is not None and issubclass(kind, NOT_CHARGED)
        self._quotas.correct(self._name, self._quota, (-texts, -tokens) if refunded else (0, self.tokens - tokens))
