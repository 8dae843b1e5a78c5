"""The embedder of models at a provider: chunks, concurrency, retries within the deadline, circuit breaker, checks."""

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server import metrics, tracing
from isogloss_server.circuit_breaker import CircuitBreaker
from isogloss_server.clock import Clock, covered_s
from isogloss_server.errors import DeadlineExceededError, DrainingError, ProviderUnavailableError
from isogloss_server.models.interfaces import Embedded, ModelCard, Urgency
from isogloss_server.models.providers.errors import (
    BAD_RESPONSE,
    LONG_TIMEOUT,
    RATE_LIMIT,
    REFUSED,
    TIMEOUT,
    ProviderCallError,
)
from isogloss_server.models.providers.interface import InvalidResponseError, Provider, ProviderResponse, check_rows
from isogloss_server.models.providers.rate_limiter import RateLimiter

MAX_FAILED_CALLS = 6  # of one request, over all its chunks
FIRST_BACKOFF_S = 0.25  # doubled with each failed call; jitter shortens each by up to half
LONG_TIMEOUT_S = 10.0  # from here on, a timeout counts as a failure of the provider
PROBE_TEXT = "isogloss"  # costs a token or two
FAILURES_TO_OPEN = 5  # consecutive ones
FIRST_PAUSE_S = 2.0
MAX_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """The limits of calls to a provider; 0 stands for no limit."""

    max_texts: int  # of one call
    max_bytes: int  # UTF-8 of one call; a single longer text is sent alone
    calls: int  # in flight at the same time
    texts_per_minute: int
    timeout_s: float  # of requests whose caller sets no deadline


@dataclass(frozen=True, slots=True)
class _ChunkResult:
    """The response for one chunk, and start and end of its last attempt in seconds of the clock."""

    response: ProviderResponse
    span: tuple[float, float]


class _RetryBudget:
    """The calls that one request may make, over all its chunks.

    At most MAX_FAILED_CALLS calls fail. They begin with as many at a time, and each successful call permits one more,
    so a provider that rejects all calls of a request receives no more than that.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.waiting = 0  # calls that wait for the rate limiter
        self.permits = asyncio.Semaphore(MAX_FAILED_CALLS)

    @property
    def is_spent(self) -> bool:
        """True if no call may be made any more."""
        return self.failed >= MAX_FAILED_CALLS

    def call_succeeded(self) -> None:
        """Returns the permit of a call, and adds one."""
        self.permits.release()
        self.permits.release()


class ProviderEmbedder:
    """Embeds texts by calls to a provider, within its rate limits and the caller's deadline.

    Attributes:
        card: Description of the model.
    """

    def __init__(
        self,
        name: str,
        provider: Provider,
        card: ModelCard,
        limits: ProviderLimits,
        clock: Clock,
        *,
        on_health: Callable[[str], None],
        on_call: Callable[[float], None] = lambda _seconds: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Creates an embedder whose circuit breaker is closed.

        Args:
            name: The name that the model is served under; a label of the metrics.
            provider: Makes the HTTP calls.
            card: Describes the model.
            limits: The limits of calls.
            clock: Measures deadlines, backoff and the provider's rate limit.
            on_health: Receives the reason if the breaker opens or the server is misconfigured, and an empty string
                when a call has succeeded.
            on_call: Receives the seconds of each call that has succeeded.
            jitter: Returns random numbers in [0, 1).
        """
        self._name = name
        self._provider = provider
        self.card = card
        self._limits = limits
        self._clock = clock
        self._on_health = on_health
        self._on_call = on_call
        self._jitter = jitter
        self._rate_limiter = RateLimiter(clock, calls=limits.calls, texts_per_minute=limits.texts_per_minute)
        self.breaker = CircuitBreaker(
            clock,
            self._probe,
            self._report_health,
            failures_to_open=FAILURES_TO_OPEN,
            first_pause_s=FIRST_PAUSE_S,
            max_pause_s=MAX_PAUSE_S,
        )
        metrics.PROVIDER_OPEN.labels(name).set_function(lambda: self.breaker.is_open)
        self._reported = ""  # the last report: a reason, or an empty string
        self._closing: asyncio.Task[None] | None = None

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,  # noqa: ARG002 - providers have no errors of single texts
    ) -> Embedded:
        """Embeds texts; equal texts are sent once. See `models.interfaces.Embedder`.

        Raises:
            DomainError: The first call that failed; the other calls of the request are cancelled.
        """
        if self._closing is not None:
            raise DrainingError("the server is stopping; retry on another server")
        began_s = self._clock.monotonic_s()
        if urgency.deadline_s == math.inf:
            urgency = replace(urgency, deadline_s=began_s + self._limits.timeout_s)
        positions = {text: position for position, text in enumerate(dict.fromkeys(texts))}
        self._rate_limiter.check(len(positions), urgency)  # for the whole request, before any chunk of it is billed
        budget = _RetryBudget()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._call_with_retries(chunk, (input_type, truncation), urgency, budget))
                    for chunk in self._chunks(list(positions))
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        results = [task.result() for task in tasks]
        rows = np.concatenate([result.response.rows for result in results])
        inference_s = covered_s([result.span for result in results])
        return Embedded(
            rows=rows if len(rows) == len(texts) else rows[[positions[text] for text in texts]],
            token_counts=None,
            total_tokens=sum(result.response.billed_tokens for result in results),
            queue_s=self._clock.monotonic_s() - began_s - inference_s,
            inference_s=inference_s,
        )

    def close(self, wait_s: float = 0.0) -> None:  # noqa: ARG002
        """Rejects further texts, and closes the provider's connections; calls in flight end with their requests."""
        self._rate_limiter.close()
        self.breaker.stop()
        self._closing = asyncio.get_running_loop().create_task(self._provider.close())

    async def _probe(self) -> str:
        try:
            await probe(self._provider, timeout_s=self._limits.timeout_s, columns=self.card.dimensions[0])
        except ProviderCallError as error:
            return error.in_full
        return ""

    def _report_health(self, detail: str) -> None:
        if detail != self._reported:
            self._reported = detail
            self._on_health(detail)

    def _chunks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yields `texts` in parts that each fit one call."""
        most = min(self._limits.max_texts, self._limits.texts_per_minute or self._limits.max_texts)
        first, size = 0, 0
        for row, text in enumerate(texts):
            length = len(text.encode()) if self._limits.max_bytes else 0
            if row > first and (row - first == most or size + length > self._limits.max_bytes):
                yield texts[first:row]
                first, size = row, 0
            size += length
        yield texts[first:]

    async def _call_with_retries(
        self, texts: Sequence[str], options: tuple[InputType, Truncation], urgency: Urgency, budget: _RetryBudget
    ) -> _ChunkResult:
        """Embeds one chunk; retries a call if a retry may succeed before the deadline and the budget permits it."""
        is_retry = False
        while True:
            await budget.permits.acquire()
            if self.breaker.is_open:
                raise ProviderUnavailableError(self.breaker.detail, retry_after_s=self.breaker.next_probe_in_s)
            async with self._slot(budget, len(texts), urgency, is_retry=is_retry):
                began_s = self._clock.monotonic_s()
                try:
                    response = await self._call(texts, options, urgency.deadline_s - began_s)
                    break
                except ProviderCallError as error:
                    wait_s = self._wait_s(error, budget.failed)
                    budget.failed += 1
                    is_late = self._clock.monotonic_s() + wait_s >= urgency.deadline_s
                    if budget.is_spent or is_late or not error.kind.retryable or self.breaker.is_open:
                        raise error.to_domain_error(wait_s, is_retried=budget.failed > 1) from None
            metrics.PROVIDER_RETRIES.labels(self._name).inc()
            is_retry = True
            await self._clock.sleep(wait_s)
        ended_s = self._clock.monotonic_s()
        self._on_call(ended_s - began_s)
        if urgency.progress is not None:
            urgency.progress.computed(1)
        budget.call_succeeded()
        return _ChunkResult(response, (began_s, ended_s))

    @contextlib.asynccontextmanager
    async def _slot(self, budget: _RetryBudget, texts: int, urgency: Urgency, *, is_retry: bool) -> AsyncIterator[None]:
        """Waits for the rate limiter, and holds one of the calls in flight.

        A request's calls queue one behind the other, so that requests take turns; a retry is first.

        Raises:
            DeadlineExceededError: The deadline passed before the call could start.
            ProviderRateLimitError: The call cannot start before the deadline.
        """
        number = 0 if is_retry else budget.waiting
        budget.waiting += 1
        try:
            remaining_s = urgency.deadline_s - self._clock.monotonic_s()
            with tracing.timed("provider queue", self._clock):
                async with asyncio.timeout(remaining_s):
                    await self._rate_limiter.acquire(texts, urgency, number)
        except TimeoutError:
            raise DeadlineExceededError(
                "the deadline passed before the provider's rate limit allowed the call"
            ) from None
        finally:
            budget.waiting -= 1
        try:
            yield
        finally:
            self._rate_limiter.release(texts)

    def _wait_s(self, error: ProviderCallError, failed: int) -> float:
        """Returns the seconds to wait after `failed` calls and this one; a rate limit pauses all callers."""
        backoff_s: float = FIRST_BACKOFF_S * 2**failed * (1 - self._jitter() / 2)
        wait_s = max(backoff_s, error.retry_after_s or 0.0)
        if error.kind is RATE_LIMIT:
            self._rate_limiter.pause(wait_s)
        return wait_s

    async def _call(
        self, texts: Sequence[str], options: tuple[InputType, Truncation], timeout_s: float
    ) -> ProviderResponse:
        """Makes one call, and updates metrics, breaker and health.

        Raises:
            ProviderCallError: The call returned no vectors of these texts.
        """
        columns, began_s = self.card.dimensions[0], self._clock.monotonic_s()
        attributes: tracing.Attributes = {"isogloss.model": self._name, "isogloss.texts": len(texts)}
        try:
            with tracing.timed("provider call", self._clock, attributes, is_call=True):
                response = await call(self._provider, texts, options, timeout_s=timeout_s, columns=columns)
        except ProviderCallError as error:
            metrics.PROVIDER_CALLS.labels(self._name, error.reason).inc()
            if error.kind.misconfigured:
                self._report_health(str(error))
            if error.kind.counts_as_failure:
                self.breaker.failed(str(error))
            raise
        finally:
            metrics.PROVIDER_CALL_SECONDS.labels(self._name).observe(self._clock.monotonic_s() - began_s)
        metrics.PROVIDER_CALLS.labels(self._name, "ok").inc()
        metrics.PROVIDER_TEXTS.labels(self._name).inc(len(texts))
        metrics.PROVIDER_BILLED_TOKENS.labels(self._name).inc(response.billed_tokens)
        self.breaker.succeeded()
        if not self.breaker.is_open:
            self._report_health("")
        return response


async def call(
    provider: Provider, texts: Sequence[str], options: tuple[InputType, Truncation], *, timeout_s: float, columns: int
) -> ProviderResponse:
    """Makes one call to a provider, and checks its response.

    A server that refuses vectors in base64 is asked for lists of numbers, once and from then on. It refuses them if it
    says so, or if it refuses the text of a probe.

    Args:
        provider: Makes the HTTP call.
        texts: The n texts of the call.
        options: The input type of the texts, and their truncation.
        timeout_s: Time limit of the call, in seconds.
        columns: The number of columns d that the vectors must have; 0 accepts any.

    Returns:
        The response, whose rows are finite float32 [n, d].

    Raises:
        ProviderCallError: The call failed or timed out, or its response is invalid.
    """
    encoding = provider.encoding
    try:
        return await _call_once(provider, texts, options, timeout_s=timeout_s, columns=columns)
    except ProviderCallError as refused:
        may_be_encoding = refused.names_encoding or list(texts) == [PROBE_TEXT]
        if refused.kind is not REFUSED or encoding == "float" or not may_be_encoding:
            raise
        provider.encoding = "float"
        try:
            return await _call_once(provider, texts, options, timeout_s=timeout_s, columns=columns)
        except ProviderCallError as second:
            if second.kind is not REFUSED:
                raise
            provider.encoding = "base64"
            raise refused from None


async def _call_once(
    provider: Provider, texts: Sequence[str], options: tuple[InputType, Truncation], *, timeout_s: float, columns: int
) -> ProviderResponse:
    """Makes one HTTP call; see `call`."""
    try:
        async with asyncio.timeout(timeout_s):
            response = await provider.embed(texts, *options, timeout_s)
        check_rows(response.rows, len(texts), columns)
    except TimeoutError:
        kind = LONG_TIMEOUT if timeout_s >= LONG_TIMEOUT_S else TIMEOUT
        raise ProviderCallError(kind, provider.title) from None
    except InvalidResponseError as error:
        raise ProviderCallError(BAD_RESPONSE, provider.title, str(error)) from error
    except ProviderCallError:
        raise
    except Exception as error:  # noqa: BLE001 - SDKs raise anything on a malformed response
        cause = f"the SDK cannot parse it ({type(error).__name__})"
        raise ProviderCallError(BAD_RESPONSE, provider.title, cause) from None
    return response


async def probe(provider: Provider, *, timeout_s: float, columns: int = 0) -> int:
    """Makes one small call to a provider.

    Args:
        provider: Makes the HTTP call.
        timeout_s: Time limit of the call, in seconds.
        columns: The number of columns that the vector must have; 0 accepts any.

    Returns:
        The number of columns of the vector.

    Raises:
        ProviderCallError: The call failed or timed out, or its response is not one vector of `columns` columns.
    """
    options = InputType.DOCUMENT, Truncation.ERROR
    response = await call(provider, [PROBE_TEXT], options, timeout_s=timeout_s, columns=columns)
    return int(response.rows.shape[1])
