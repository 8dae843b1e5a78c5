"""Calls of shared texts, failures and cancellations, in any order."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from isogloss.wire.enums import Priority
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.cache_line import Line
from tests.support.changing_embedder import ChangingEmbedder

LANES = [Urgency(), Urgency(Priority.BULK)]
TEXTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]


class Steady(ChangingEmbedder):
    """Gives each text a row of its length."""

    async def embed(self, texts: Sequence[str], *arguments: Any, **options: Any) -> Embedded:
        """Returns rows float32 [n, d]."""
        embedded = await super().embed(texts, *arguments, **options)
        embedded.rows[:] = [[len(text)] * embedded.rows.shape[1] for text in texts]
        return embedded


Calls = list[tuple[list[str], "asyncio.Task[Embedded]"]]


async def made(line: Line, pool: Sequence[str], rng: random.Random) -> Calls:
    """Returns calls, of which some were cancelled, once all that may go on does."""
    calls: Calls = []
    for _ in range(60):
        texts = rng.choices(pool, k=rng.randint(1, 5))
        calls.append((texts, line.ask(*texts, urgency=rng.choice(LANES))))
        for _ in range(rng.randint(0, 4)):
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(calls)[1].cancel()
        if rng.random() < 0.5:
            line.embedder.go(rng.randint(1, 3))
    line.embedder.go(1000)
    return calls


@pytest.mark.parametrize("seed", range(40))
async def test_no_order_of_events_strands_or_confuses_anybody(seed: int) -> None:
    """All calls end, each with its texts' rows or with a fault of its own texts, and nothing is left in flight."""
    rng = random.Random(seed)
    bad = [*(["bad"] if seed % 3 == 0 else []), *(["!!!"] if seed % 4 == 0 else [])]
    line = Line(Steady(gated=True, broken={"bad": OSError("broken")}), max_bytes=rng.choice([1, 2000, 1 << 20]))
    calls = await made(line, [*TEXTS, *bad], rng)
    async with asyncio.timeout(60):
        await asyncio.wait([task for _, task in calls])
    for texts, task in calls:
        if task.cancelled():
            continue
        error = task.exception()
        if error is not None:
            assert isinstance(error, OSError)
            assert "bad" in texts
        elif task.result().row_errors:
            assert list(task.result().row_errors) == [row for row, text in enumerate(texts) if text == "!!!"]
        else:
            assert task.result().rows[:, 0].tolist() == [len(text) for text in texts]
    assert line.flying == 0
