"""Workload `cache`: the cost of a hit, of a miss, and of a lookup in Redis for calls of 256 texts, in process.

    python -m benchmarks --work cache [--rounds N] [--json FILE]

Each round measures all of them on the same texts, so that other load on the machine affects all alike. Figures are
medians over the rounds, ratios are within a round.
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

from benchmarks.report import machine, spread
from benchmarks.workloads import mixed_sentences

TEXTS_PER_CALL = 256
CACHE_BYTES = 64 * 1024**2  # the default
MINILM = 384  # columns
OPTIONS = InputType.SIMILARITY, Truncation.END, Urgency()


class ConstantEmbedder:
    """An embedder that returns stored rows, so that the time of a call is the cost of the cache."""

    def __init__(self, columns: int) -> None:
        self.card = ModelCard(backend="none", space_id="none", dimensions=(columns,), max_tokens=128)
        self._rows = np.random.default_rng(0).standard_normal((TEXTS_PER_CALL, columns)).astype(np.float32)

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,  # noqa: ARG002
        truncation: Truncation,  # noqa: ARG002
        urgency: Urgency,  # noqa: ARG002
        *,
        allow_partial: bool = False,  # noqa: ARG002
    ) -> Embedded:
        """Returns rows float32 [n, columns]."""
        n = len(texts)
        return Embedded(rows=self._rows[:n], token_counts=np.full(n, 20), total_tokens=20 * n)

    def close(self, wait_s: float = 0.0) -> None:
        """Does nothing."""


async def timed(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Returns the wall-clock time and the processor time of a call in milliseconds."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    await call()
    return (time.perf_counter() - start_s) * 1e3, (time.process_time() - start_cpu_s) * 1e3


async def in_memory(embedder: Embedder, calls: Sequence[Sequence[str]], rounds: int) -> list[dict[str, float]]:
    """Returns for each round the milliseconds of a call without the cache, of a miss, and of a hit."""
    samples = []
    for number in range(rounds):
        texts, cache = calls[number % len(calls)], Cache(SystemClock(), max_bytes=CACHE_BYTES)
        figures: dict[str, float] = {}
        for name, call in (
            ("own", lambda texts=texts: embedder.embed(texts, *OPTIONS)),
            ("miss", lambda texts=texts, cache=cache: cache.embed(embedder, texts, *OPTIONS)),
            ("hit", lambda texts=texts, cache=cache: cache.embed(embedder, texts, *OPTIONS)),
        ):
            figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = await timed(call)
        samples.append(figures)
    return samples


async def in_redis(columns: int, calls: Sequence[Sequence[str]], rounds: int) -> list[dict[str, float]] | str:
    """Returns for each round the milliseconds of a miss and a hit in Redis, without the cache in memory.

    The figures include the time to write the rows of a call, which a server does in the background. Returns the reason
    if Redis is not available.
    """
    try:
        from isogloss_server.engine.redis_store import RedisStore  # noqa: PLC0415 - an extra

        from tests.support.redis_server import RedisServer, binary  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        return f"{missing.name} is not installed"
    if binary() is None:
        return "redis-server is not installed"
    samples, embedder = [], ConstantEmbedder(columns)
    rows = to_entries(await embedder.embed(calls[0], *OPTIONS))
    with RedisServer() as redis:
        store = RedisStore(redis.url, prefix="", ttl_s=1000)
        shared = SharedCache(store, SystemClock(), timeout_s=1.0, on_health=print)
        cache = Cache(SystemClock(), max_bytes=0, shared=shared)
        cache.start()
        await store.ping()  # connects
        for number in range(rounds):
            texts, figures = calls[number % len(calls)], {}
            keys = cache_keys(texts, embedder.card, *OPTIONS[:2])
            redis.client.flushall()
            for name, call in (
                ("miss", lambda texts=texts: cache.embed(embedder, texts, *OPTIONS)),
                ("write", lambda keys=keys: _write(store, dict(zip(keys, rows, strict=True)))),
                ("hit", lambda texts=texts: cache.embed(embedder, texts, *OPTIONS)),
            ):
                figures[f"{name}_ms"], figures[f"{name}_cpu_ms"] = await timed(call)
            samples.append(figures)
        await cache.close()
    return samples


async def _write(store: Store, entries: dict[bytes, Entry]) -> None:
    items = list(entries.items())
    for first in range(0, len(items), WRITE_BATCH_ROWS):
        await store.set({key: encode_entry(key, entry) for key, entry in items[first : first + WRITE_BATCH_ROWS]})


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns median, minimum and maximum of each figure."""
    return {name: spread([samples[name] for samples in rounds]) for name in rounds[0]}


async def measure(rounds: int) -> dict[str, Any]:
    """Returns all figures and ratios."""
    texts = list(dict.fromkeys(mixed_sentences()))
    calls = [
        texts[first : first + TEXTS_PER_CALL] for first in range(0, len(texts) - TEXTS_PER_CALL + 1, TEXTS_PER_CALL)
    ]
    parts = load(model_folder.locate(model_folder.BUNDLED))
    with closing(Executor(2)) as executor:
        bundled = LocalEmbedder(parts.model, parts.tokenizer, parts.card, parts.prompts, executor, SystemClock())
        of_bundled = await in_memory(bundled, calls, rounds)
        singles = await in_memory(bundled, [[text] for text in texts], 4 * rounds)
    of_minilm = await in_memory(ConstantEmbedder(MINILM), calls, rounds)
    of_redis = await in_redis(MINILM, calls, rounds)
    return {
        "figures": {
            "bundled": summary(of_bundled),
            "bundled, one text a call": summary(singles),
            "rows of MiniLM, no model": summary(of_minilm),
            "rows of MiniLM, no model, Redis": of_redis if isinstance(of_redis, str) else summary(of_redis),
        },
        "ratios": {
            "bundled: hit/own": _ratio(of_bundled, "hit_ms", "own_ms"),
            "bundled: hit/own, processor time": _ratio(of_bundled, "hit_cpu_ms", "own_cpu_ms"),
            "bundled: miss/own": _ratio(of_bundled, "miss_ms", "own_ms"),
            "bundled: miss/own, processor time": _ratio(of_bundled, "miss_cpu_ms", "own_cpu_ms"),
        },
    }


def _ratio(rounds: Sequence[dict[str, float]], figure: str, reference: str) -> dict[str, float]:
    return spread([samples[figure] / samples[reference] for samples in rounds])


def run(rounds: int) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report."""
    return {
        "command": "python -m benchmarks --work cache",
        "rounds": rounds,
        "texts_per_call": TEXTS_PER_CALL,
        "machine": machine(),
        **asyncio.run(measure(rounds)),
    }
