"""A cache before an embedder, and calls of it as tasks."""

import asyncio

from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.changing_embedder import ChangingEmbedder

SOON = Urgency()


class Line:
    """A cache before an embedder."""

    def __init__(self, embedder: ChangingEmbedder, *, max_bytes: int = 1 << 20) -> None:
        self.embedder = embedder
        self.cache = Cache(SystemClock(), max_bytes=max_bytes)

    def ask(self, *texts: str, urgency: Urgency = SOON) -> "asyncio.Task[Embedded]":
        """Begins a call."""
        asked = self.cache.embed(self.embedder, texts, InputType.SIMILARITY, Truncation.END, urgency)
        return asyncio.create_task(asked)  # type: ignore[arg-type]  # it is a coroutine

    @property
    def flying(self) -> int:
        """How many texts are being computed, as far as the cache knows."""
        return len(self.cache._levels.in_flight)
