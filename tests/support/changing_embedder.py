"""An Embedder that gives a text another row each time, and whose calls the test sees, holds and fails."""

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.errors import TextWithoutTokensError
from isogloss_server.models.interfaces import Embedded, ModelCard, Urgency

CARD = ModelCard(backend="test", space_id="s-test", dimensions=(16, 8), max_tokens=10)


class ChangingEmbedder:
    """Numbers that never come twice: equal rows were computed once.

    A text of more than 10 characters is cut, "!!!" has no tokens, and one that is a key of `broken` raises its error.
    Where `gated`, every call waits for a `go`.
    """

    def __init__(
        self,
        card: ModelCard = CARD,
        *,
        gated: bool = False,
        counts: bool = True,
        broken: Mapping[str, Exception] | None = None,
    ) -> None:
        """Without `counts` it tells no token counts, as a provider."""
        self.card = card
        self.calls: list[list[str]] = []
        self.urgencies: list[Urgency] = []
        self.ended = 0  # calls, however
        self._rng = np.random.default_rng(0)
        self._broken = broken or {}
        self._gated = gated
        self._counts = counts
        self._permits = asyncio.Semaphore(0)
        self._began = asyncio.Condition()

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
            async with self._began:
                self._began.notify_all()
            if self._gated:
                await self._permits.acquire()
            for text in texts:
                if text in self._broken:
                    raise self._broken[text]
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

    async def began(self, calls: int) -> None:
        """Returns once so many calls have begun, since it was made."""
        async with asyncio.timeout(60), self._began:
            await self._began.wait_for(lambda: len(self.calls) >= calls)

    def go(self, calls: int = 1) -> None:
        """Lets so many calls go on."""
        for _ in range(calls):
            self._permits.release()

    def close(self, wait_s: float = 0.0) -> None:
        """Has nothing to end."""


async def settle() -> None:
    """Returns once every task that can go on has gone as far as it can without the test."""
    for _ in range(50):
        await asyncio.sleep(0)
