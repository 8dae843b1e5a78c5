"""An embedder that returns a different row for each computation, alone and behind a cache."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.errors import TextWithoutTokensError
from isogloss_server.models.interfaces import Embedded, ModelCard, Urgency

CARD = ModelCard(backend="test", space_id="s-test", dimensions=(16, 8), max_tokens=10, texts_per_call=4)
INTERACTIVE = Urgency()


class UniqueRowsEmbedder:
    """Returns rows of random numbers: equal rows result from one computation.

    A text of more than 10 characters is truncated, "!!!" has no tokens, and a text that is a key of `errors` raises
    its error. If `gated`, every call waits for a `release`.

    Attributes:
        calls: The texts of each call.
        urgencies: The urgency of each call.
        ended: The number of calls that have returned or failed.
    """

    def __init__(
        self,
        card: ModelCard = CARD,
        *,
        gated: bool = False,
        counts: bool = True,
        errors: Mapping[str, Exception] | None = None,
    ) -> None:
        """Without `counts`, results have no token counts, like those of a provider."""
        self.card = card
        self.calls: list[list[str]] = []
        self.urgencies: list[Urgency] = []
        self.ended = 0
        self._rng = np.random.default_rng(0)
        self._errors = errors or {}
        self._gated = gated
        self._counts = counts
        self._permits = asyncio.Semaphore(0)
        self._call_began = asyncio.Condition()

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns rows float32 [n, d]."""
        self.calls.append(list(texts))
        self.urgencies.append(urgency)
        try:
            async with self._call_began:
                self._call_began.notify_all()
            if self._gated:
                await self._permits.acquire()
            for text in texts:
                if text in self._errors:
                    raise self._errors[text]
        finally:
            self.ended += 1
        rows = self._rng.standard_normal((len(texts), self.card.dimensions[0])).astype(np.float32)
        lengths = np.array([len(text) for text in texts])
        bad = [row for row, text in enumerate(texts) if text == "!!!"]
        rows[bad], lengths[bad] = 0, 0
        return Embedded(
            rows=rows,
            token_counts=np.minimum(lengths, 10) if self._counts else None,
            row_errors={row: TextWithoutTokensError("nothing left") for row in bad},
            truncated_rows=tuple(np.flatnonzero(lengths > 10).tolist()),
            total_tokens=int(np.minimum(lengths, 10).sum()),
            inference_s=1.0,
        )

    async def wait_for_calls(self, calls: int) -> None:
        """Returns when at least `calls` calls have begun since the embedder was made."""
        async with asyncio.timeout(60), self._call_began:
            await self._call_began.wait_for(lambda: len(self.calls) >= calls)

    def release(self, calls: int = 1) -> None:
        """Permits `calls` gated calls to continue."""
        for _ in range(calls):
            self._permits.release()

    def close(self, wait_s: float = 0.0) -> None:
        """Does nothing."""


class CachedEmbedder:
    """An embedder behind a cache."""

    def __init__(self, embedder: UniqueRowsEmbedder, *, max_bytes: int = 1 << 20) -> None:
        self.embedder = embedder
        self.cache = Cache(SystemClock(), max_bytes=max_bytes)

    def start_call(self, *texts: str, urgency: Urgency = INTERACTIVE) -> "asyncio.Task[Embedded]":
        """Starts a call and returns its task."""
        call = self.cache.embed(self.embedder, texts, InputType.SIMILARITY, Truncation.END, urgency)
        return asyncio.create_task(call)  # type: ignore[arg-type]  # it is a coroutine

    @property
    def in_flight(self) -> int:
        """The number of texts that the cache has in flight."""
        return len(self.cache._levels.in_flight)


async def settle() -> None:
    """Runs the event loop until every task waits for something that only the test provides."""
    for _ in range(50):
        await asyncio.sleep(0)
