"""What providers' APIs have in common: chunks, concurrency, retries within the deadline, a breaker, checked answers."""

import asyncio
import contextlib
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server import metrics
from isogloss_server.circuit_breaker import Breaker
from isogloss_server.clock import Clock, covered_s
from isogloss_server.errors import DeadlineExceededError, DrainingError
from isogloss_server.models.interfaces import Embedded, ModelCard, Report, Urgency
from isogloss_server.models.providers.errors import BAD_ANSWER, LONG_TIMEOUT, RATE_LIMIT, TIMEOUT, ProviderCallError
from isogloss_server.models.providers.interface import InvalidResponseError, Provider, ProviderResponse, check_rows
from isogloss_server.models.providers.rate_limiter import RateLimiter

ATTEMPTS = 6  # of one call
FIRST_BACKOFF_S = 0.25  # doubled with each attempt, and up to half of it random
LONG_S = 10.0  # where a call was given so long and did not end, the provider is at fault
PROBE = "isogloss"  # a text that costs a token or two


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLimits:
    """What one call may hold, and what a provider grants."""

    max_texts: int  # of one call
    max_bytes: int  # of UTF-8 in one call, though a longer text still goes alone; 0: any number
    calls: int  # in flight
    texts_per_minute: int  # 0: any number
    timeout_s: float  # of a job whose caller sets no deadline


@dataclass(frozen=True, slots=True)
class _Part:
    """What one call gave, and the moments around its last attempt."""

    answer: ProviderResponse
    span: tuple[float, float]


class ProviderEmbedder:
    """Asks a provider, as fast as it allows, and for no longer than the caller waits."""

    def __init__(
        self,
        name: str,
        provider: Provider,
        card: ModelCard,
        terms: ProviderLimits,
        clock: Clock,
        *,
        report: Report,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Takes the name that the model is served under, for metrics, and `jitter`, which gives numbers in [0, 1)."""
        self._name = name
        self._provider = provider
        self._card = card
        self._terms = terms
        self._clock = clock
        self._jitter = jitter
        self._rate_limiter = RateLimiter(clock, calls=terms.calls, texts_per_minute=terms.texts_per_minute)
        self.breaker = Breaker(clock, self._probe, report)
        self._closing: asyncio.Task[None] | None = None

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._card

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,  # noqa: ARG002 - providers have no errors of single texts
    ) -> Embedded:
        """Returns the vectors of `texts`, in order, of which equal ones are sent once; see `models.base.Embedder`.

        Raises:
            DomainError: what became of the first call that failed; the others are cancelled.
        """
        if self._closing is not None:
            raise DrainingError("the server is about to stop; another one may answer")
        began_s = self._clock.monotonic_s()
        if urgency.deadline_s == math.inf:
            urgency = Urgency(urgency.priority, began_s + self._terms.timeout_s)
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        self._rate_limiter.check(len(places), urgency)  # of the job as a whole, before a part of it is paid for
        try:
            async with asyncio.TaskGroup() as group:
                chunks = enumerate(self._chunks(list(places)))
                tasks = [
                    group.create_task(self._call_with_retries(number, chunk, (input_type, truncation), urgency))
                    for number, chunk in chunks
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        parts = [task.result() for task in tasks]
        rows = np.concatenate([part.answer.rows for part in parts])
        inference_s = covered_s([part.span for part in parts])
        return Embedded(
            rows=rows if len(rows) == len(texts) else rows[[places[text] for text in texts]],
            token_counts=None,
            total_tokens=sum(part.answer.billed_tokens for part in parts),
            queue_s=self._clock.monotonic_s() - began_s - inference_s,
            inference_s=inference_s,
        )

    async def _probe(self) -> None:
        await probe(self._provider, timeout_s=self._terms.timeout_s, columns=self._card.dimensions[0])

    def close(self, wait_s: float = 0.0) -> None:  # noqa: ARG002
        """Takes no more texts; calls end with the requests that they are for."""
        self._rate_limiter.close()
        self.breaker.close()
        self._closing = asyncio.get_running_loop().create_task(self._provider.close())

    def _chunks(self, texts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yields `texts` in parts, each of which one call may hold."""
        most = min(self._terms.max_texts, self._terms.texts_per_minute or self._terms.max_texts)
        first, size = 0, 0
        for row, text in enumerate(texts):
            length = len(text.encode()) if self._terms.max_bytes else 0
            if row > first and (row - first == most or size + length > self._terms.max_bytes):
                yield texts[first:row]
                first, size = row, 0
            size += length
        yield texts[first:]

    async def _call_with_retries(
        self, number: int, texts: Sequence[str], manner: tuple[InputType, Truncation], urgency: Urgency
    ) -> _Part:
        """Makes one call, again where that may help and the deadline leaves time for it; `number` is the chunk's."""
        for attempt in itertools.count():
            self.breaker.check()
            async with self._slot(0 if attempt else number, len(texts), urgency):
                began_s = self._clock.monotonic_s()
                try:
                    answer = await self._call(texts, manner, urgency.deadline_s - began_s)
                    break
                except ProviderCallError as fault:
                    wait_s = self._wait_s(fault, attempt)
                    last = attempt + 1 == ATTEMPTS or self._clock.monotonic_s() + wait_s >= urgency.deadline_s
                    if last or not fault.kind.retryable or self.breaker.is_open:
                        raise fault.error(wait_s) from None
            metrics.PROVIDER_RETRIES.labels(self._name).inc()
            await self._clock.sleep(wait_s)
        return _Part(answer, (began_s, self._clock.monotonic_s()))

    @contextlib.asynccontextmanager
    async def _slot(self, number: int, texts: int, urgency: Urgency) -> AsyncIterator[None]:
        """Holds a call's place at the provider.

        Raises:
            DeadlineExceededError: the deadline passed before there was one.
            ProviderRateLimitError: there will be none before the deadline.
        """
        try:
            async with asyncio.timeout(urgency.deadline_s - self._clock.monotonic_s()):
                await self._rate_limiter.acquire(texts, urgency, number)
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed while the texts waited for the provider") from None
        try:
            yield
        finally:
            self._rate_limiter.release(texts)

    def _wait_s(self, fault: ProviderCallError, attempt: int) -> float:
        """Returns how long to wait before the next attempt; a rate limit holds up all callers."""
        backoff_s: float = FIRST_BACKOFF_S * 2**attempt * (1 - self._jitter() / 2)
        wait_s = max(backoff_s, fault.retry_after_s or 0.0)
        if fault.kind is RATE_LIMIT:
            self._rate_limiter.pause(wait_s)
        return wait_s

    async def _call(
        self, texts: Sequence[str], manner: tuple[InputType, Truncation], timeout_s: float
    ) -> ProviderResponse:
        """Makes one call, and tells metrics and breaker.

        Raises:
            ProviderCallError: it gave no vectors of these texts.
        """
        columns = self._card.dimensions[0]
        try:
            answer = await call(self._provider, texts, manner, timeout_s=timeout_s, columns=columns)
        except ProviderCallError as fault:
            metrics.PROVIDER_CALLS.labels(self._name, fault.kind.error.reason).inc()
            self.breaker.failed(fault)
            raise
        metrics.PROVIDER_CALLS.labels(self._name, "ok").inc()
        metrics.PROVIDER_TEXTS.labels(self._name).inc(len(texts))
        metrics.PROVIDER_BILLED_TOKENS.labels(self._name).inc(answer.billed_tokens)
        self.breaker.succeeded()
        return answer


async def call(
    provider: Provider, texts: Sequence[str], manner: tuple[InputType, Truncation], *, timeout_s: float, columns: int
) -> ProviderResponse:
    """Returns what a provider answers: finite float32 [n, columns]; 0 columns: any number of them.

    Raises:
        ProviderCallError: it gave no such answer in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            answer = await provider.embed(texts, *manner, timeout_s)
        check_rows(answer.rows, len(texts), columns)
    except TimeoutError:
        raise ProviderCallError(LONG_TIMEOUT if timeout_s >= LONG_S else TIMEOUT, provider.title) from None
    except InvalidResponseError as error:
        raise ProviderCallError(BAD_ANSWER, provider.title, str(error)) from error
    except ProviderCallError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever else an SDK raises, it is about what came back
        why = f"the SDK cannot read it ({type(error).__name__})"
        raise ProviderCallError(BAD_ANSWER, provider.title, why) from None
    return answer


async def probe(provider: Provider, *, timeout_s: float, columns: int = 0) -> int:
    """Makes one small call; returns the width of its vector.

    Raises:
        ProviderCallError: it gave no vector, or not one of so many columns.
    """
    manner = InputType.DOCUMENT, Truncation.ERROR
    answer = await call(provider, [PROBE], manner, timeout_s=timeout_s, columns=columns)
    return int(answer.rows.shape[1])
