"""The queue between callers and a model: batches that fail, and the end."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.batcher import Batcher, BatchError
from isogloss_server.errors import DrainingError
from isogloss_server.models.interfaces import Rows, Urgency

from tests.support.gated_model import GatedModel, batch_of, busy

NOW, BULK = Urgency(), Urgency(Priority.BULK)


def _raises(error: type[BaseException]) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        raise error

    return change


@pytest.mark.parametrize(
    "change",
    [
        _raises(RuntimeError),
        _raises(KeyboardInterrupt),
        lambda rows: rows[1:],
        lambda rows: rows[:, 1:],
        lambda rows: rows.astype(np.float64),
        lambda rows: rows * np.float32("nan"),
        lambda rows: rows * np.float32("inf"),
        lambda rows: None,
    ],
    ids=["error", "no Exception", "rows", "columns", "type", "NaN", "infinite", "nothing"],
)
async def test_a_failing_batch_fails_its_own_calls_alone(
    make: Callable[..., Batcher], change: Callable[[Rows], Rows]
) -> None:
    """All calls with a text in a failing batch fail, what is left of them leaves the queue; others are answered."""
    model = GatedModel(gated=True, change=lambda rows: change(rows) if (rows[:, 1] == 13).any() else rows)
    batcher = make(model, tokens=4)
    calls = [await busy(batcher, model)]
    calls += [
        batcher.submit(batch_of(*texts), NOW) for texts in ([[13, 1], [1, 1, 1]], [[2, 2]], [[3, 3, 3]], [[4] * 4])
    ]
    model.go(4)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "InferenceResult",
        "BatchError",
        "BatchError",
        "InferenceResult",
        "InferenceResult",
    ]
    failures = [result for result in results if isinstance(result, BatchError)]
    assert failures[0] is not failures[1]
    assert failures[0].__cause__ is failures[1].__cause__ is not None
    assert [1, 1, 1] not in [text for batch in model.batches for text in batch]
    assert (batcher.waiting_texts, batcher.waiting_tokens) == (0, 0)


async def test_closing_fails_what_waits_and_ends_what_runs(make: Callable[..., Batcher]) -> None:
    """A batch that runs is still delivered, what waits fails with DrainingError, and nothing more is taken."""
    model = GatedModel(gated=True)
    batcher = make(model)
    running = await busy(batcher, model)
    waiting = [batcher.submit(batch_of([1], [2]), lane) for lane in (NOW, BULK)]
    batcher.close()
    for future in waiting:
        with pytest.raises(DrainingError):
            await future
    with pytest.raises(DrainingError):
        batcher.submit(batch_of([1]), NOW)
    model.go()
    assert (await running).rows.tolist() == [[1, 0, 0]]
    assert len(model.batches) == 1


def test_a_loop_that_ended_harms_nobody(make: Callable[..., Batcher]) -> None:
    """Callers whose loop was closed under them are forgotten; the thread serves the next loop."""
    model = GatedModel(gated=True)
    batcher = make(model)

    async def leave() -> None:
        await busy(batcher, model)

    async def ask() -> Any:
        return await batcher.submit(batch_of([2, 2]), NOW)

    asyncio.run(leave())
    model.go(2)
    assert asyncio.run(ask()).rows.tolist() == [[2, 2, 4]]
