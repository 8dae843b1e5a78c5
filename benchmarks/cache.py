"""What the cache costs: a hit, what it adds to a miss, and a look-up in Redis, at 256 texts a call, in process.

    python -m benchmarks --work cache [--rounds N] [--json FILE]

Every round takes all in turn, on the same texts, so that what else the machine does touches all of them; figures are
medians over the rounds, ratios are taken round by round.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.cache import Cache, cache_keys, to_entries
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.local_embedder import LocalEmbedder
from isogloss_server.engine.shared_cache import WRITE_BATCH_ROWS, Entry, SharedCache, Store, encode_entry
from isogloss_server.models import model_folder
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Urgency
from isogloss_server.models.static import load

from benchmarks.bundled import sample
from benchmarks.compare import machine
from benchmarks.report import spread

TEXTS = 256  # of a call
ROOM = 64 * 1024**2  # the default
MINILM = 384  # columns
MANNER = InputType.SIMILARITY, Truncation.END, Urgency()


class NoTime:
    """An Embedder that takes none: what is left is the cache's own cost."""

    def __init__(self, columns: int) -> None:
        self.card = ModelCard(backend="none", space_id="none", dimensions=(columns,), max_tokens=128)
        self._rows = np.random.default_rng(0).standard_normal((TEXTS, columns)).astype(np.float32)

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,  # noqa: ARG002
        truncation: Truncation,  # noqa: ARG002
        urgency: Urgency,  # noqa: ARG002
    ) -> Embedded:
        """Returns rows float32 [n, columns]."""
        n = len(texts)
        return Embedded(rows=self._rows[:n], token_counts=np.full(n, 20), total_tokens=20 * n)

    def close(self, wait_s: float = 0.0) -> None:
        """Has nothing to end."""


async def timed(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Returns the milliseconds on the clock and of processor time that `work` took."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await work()
    return (time.perf_counter() - began_s) * 1e3, (time.process_time() - began_cpu_s) * 1e3


async def in_memory(embedder: Embedder, calls: Sequence[Sequence[str]], rounds: int) -> list[dict[str, float]]:
    """Returns a round's milliseconds of a call: the embedder's own, through the cache for the first time, and again."""
    found = []
    for number in range(rounds):
        texts, cache = calls[number % len(calls)], Cache(SystemClock(), max_bytes=ROOM)
        figures: dict[str, float] = {}
        for name, work in (
            ("own", lambda texts=texts: embedder.embed(texts, *MANNER)),
            ("miss", lambda texts=texts, cache=cache: cache.embed(embedder, texts, *MANNER)),
            ("hit", lambda texts=texts, cache=cache: cache.embed(embedder, texts, *MANNER)),
        ):
            figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = await timed(work)
        found.append(figures)
    return found


async def in_redis(columns: int, calls: Sequence[Sequence[str]], rounds: int) -> list[dict[str, float]] | str:
    """Returns a round's milliseconds of a call through Redis alone, unknown there and known, or why there is none.

    Beside them: what writing a call's rows takes, which a server does in the background.
    """
    try:
        from isogloss_server.engine.redis_store import RedisStore  # noqa: PLC0415 - an extra

        from tests.support.redis_server import RedisServer, binary  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        return f"{missing.name} is not installed"
    if binary() is None:
        return "redis-server is not installed"
    found, embedder = [], NoTime(columns)
    rows = to_entries(await embedder.embed(calls[0], *MANNER))
    with RedisServer() as redis:
        store = RedisStore(redis.url, prefix="", ttl_s=1000)
        shared = SharedCache(store, SystemClock(), timeout_s=1.0, report=lambda _state, why: print(why))
        cache = Cache(SystemClock(), max_bytes=0, shared=shared)
        cache.start()
        await store.ping()  # it is connected
        for number in range(rounds):
            texts, figures = calls[number % len(calls)], {}
            keys = cache_keys(texts, embedder.card, *MANNER[:2])
            redis.client.flushall()
            for name, work in (
                ("miss", lambda texts=texts: cache.embed(embedder, texts, *MANNER)),
                ("write", lambda keys=keys: _write(store, dict(zip(keys, rows, strict=True)))),
                ("hit", lambda texts=texts: cache.embed(embedder, texts, *MANNER)),
            ):
                figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = await timed(work)
            found.append(figures)
        await cache.close()
    return found


async def _write(store: Store, entries: dict[bytes, Entry]) -> None:
    items = list(entries.items())
    for first in range(0, len(items), WRITE_BATCH_ROWS):
        await store.set({key: encode_entry(key, entry) for key, entry in items[first : first + WRITE_BATCH_ROWS]})


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns median, least and greatest of each figure."""
    return {name: spread([one[name] for one in rounds]) for name in rounds[0]}


async def measure(rounds: int) -> dict[str, Any]:
    """Returns all figures and ratios."""
    texts = list(dict.fromkeys(sample()))
    calls = [texts[first : first + TEXTS] for first in range(0, len(texts) - TEXTS + 1, TEXTS)]
    parts = load(model_folder.locate(model_folder.BUNDLED))
    with closing(Executor(2)) as workers:
        bundled = LocalEmbedder(parts.model, parts.tokenizer, parts.card, parts.prompts, workers, SystemClock())
        of_bundled = await in_memory(bundled, calls, rounds)
        singles = await in_memory(bundled, [[text] for text in texts], 4 * rounds)
    of_minilm = await in_memory(NoTime(MINILM), calls, rounds)
    of_redis = await in_redis(MINILM, calls, rounds)
    return {
        "figures": {
            "bundled": summary(of_bundled),
            "bundled, one text a call": summary(singles),
            "rows of MiniLM, no model": summary(of_minilm),
            "rows of MiniLM, no model, Redis": of_redis if isinstance(of_redis, str) else summary(of_redis),
        },
        "ratios": {
            "bundled: hit/own": spread([one["hit_ms"] / one["own_ms"] for one in of_bundled]),
            "bundled: hit/own, processor time": spread([one["hit_cpu_ms"] / one["own_cpu_ms"] for one in of_bundled]),
            "bundled: miss/own": spread([one["miss_ms"] / one["own_ms"] for one in of_bundled]),
            "bundled: miss/own, processor time": spread([one["miss_cpu_ms"] / one["own_cpu_ms"] for one in of_bundled]),
        },
    }


def run(rounds: int) -> dict[str, Any]:
    """Returns the report of `rounds` rounds."""
    return {
        "command": "python -m benchmarks --work cache",
        "rounds": rounds,
        "texts_per_call": TEXTS,
        "machine": machine(),
        **asyncio.run(measure(rounds)),
    }
