"""What models do: raise, give nonsense, hang, run out of memory; and threads that die."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isogloss_server.engine import local_embedder
from isogloss_server.engine.monitoring import CHECKS, FAILURES, State
from isogloss_server.models.interfaces import Rows

from tests.support.faulty import Answer, rows_of, serving_faulty
from tests.support.gated_model import GatedModel

STUCK = Answer(code="UNAVAILABLE", reason="MODEL_STUCK")
DIED = Answer(code="UNAVAILABLE", reason="WORKER_DIED")
FAULT = Answer(code="INTERNAL", reason="INTERNAL")
NO_MEMORY = Answer(code="RESOURCE_EXHAUSTED", reason="OUT_OF_MEMORY")
WAYS = pytest.mark.parametrize("queued", [True, False], ids=["queue", "direct"])


@pytest.fixture(autouse=True)
def on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves nothing to the event loop, which a model that a test holds would hold as well."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)


def good(answer: Answer, *texts: str) -> bool:
    """Whether a call got the rows of its texts."""
    return answer == Answer(rows_of(*texts))


def raising(rows: Rows) -> Rows:
    raise RuntimeError("a sentence that quotes a text")


FAULTS = {
    "raises": (raising, "RuntimeError"),
    "NaN": (lambda rows: rows * np.float32("nan"), "ValueError"),
    "too few rows": (lambda rows: rows[1:], "ValueError"),
}


@WAYS
@pytest.mark.parametrize("fault", FAULTS)
async def test_failing_batches_are_told_until_one_succeeds(static_folder: Path, fault: str, *, queued: bool) -> None:
    """A batch that fails answers its callers with INTERNAL; three in a row make the model DEGRADED, one good well."""
    change, kind = FAULTS[fault]
    model = GatedModel(change=lambda rows: change(rows) if (rows[:, 1] == 4).any() else rows)
    async with serving_faulty(static_folder, model, queued=queued) as server:
        for _ in range(2):
            for _ in range(FAILURES - 1):
                assert await server.embed("four") == FAULT
            assert good(await server.embed("one"), "one")  # so that it is none of those in a row
        for _ in range(FAILURES):
            assert await server.until(State.SERVING) == ""
            assert await server.embed("four two") == FAULT
        assert await server.until(State.DEGRADED) == f"the last {FAILURES} batches failed: {kind}"
        assert good(await server.embed("one two", "three"), "one two", "three")
        assert await server.until(State.SERVING) == ""


@WAYS
async def test_a_model_that_hangs_makes_nobody_wait(static_folder: Path, *, queued: bool) -> None:
    """Past the limit all that wait fail, new calls at once, and health says NOT_SERVING, until the model ends."""
    model = GatedModel(gated=True)
    async with serving_faulty(static_folder, model, queued=queued) as server:
        calls = [server.embedding("one")]
        await model.next_batch()
        calls += [server.embedding("two", "three") for _ in range(3)]
        await server.waiting(7)
        await server.look(CHECKS)
        assert await server.until(State.SERVING) == ""
        await server.look()
        assert await asyncio.gather(*calls) == [STUCK] * 4
        assert "exceeded the time limit of 80 s" in await server.until(State.NOT_SERVING)
        assert await server.embed("three") == STUCK
        assert len(model.batches) == 1
        model.go(2)
        assert await server.until(State.SERVING) == ""
        assert good(await server.embed("two two"), "two two")
        assert model.batches == [[[1]], [[2, 2]]]


@WAYS
async def test_one_thread_that_hangs_leaves_the_others(static_folder: Path, *, queued: bool) -> None:
    """Where one of two threads hangs its callers fail, the model is DEGRADED, and the other thread answers all else."""
    end = threading.Event()
    model = GatedModel(change=lambda rows: (end.wait(60), rows)[1] if (rows[:, 1] == 1).any() else rows)
    async with serving_faulty(static_folder, model, queued=queued, threads=2) as server:
        stuck = server.embedding("one")
        await model.next_batch()
        await server.look(CHECKS + 1)
        assert await stuck == STUCK
        assert await server.until(State.DEGRADED) == "1 of 2 threads exceeded the time limit of 80 s"
        for text in ("two", "three two", "two"):
            assert good(await server.embed(text), text)
        end.set()
        assert await server.until(State.SERVING) == ""


async def test_batches_that_take_their_time_do_not_hang(static_folder: Path) -> None:
    """However long a server is busy, no batch hangs that ends within the limit."""
    model = GatedModel(gated=True)
    async with serving_faulty(static_folder, model) as server:
        for _ in range(3):
            call = server.embedding("one")
            await model.next_batch()
            await server.look(CHECKS)
            model.go()
            assert good(await call, "one")
            assert await server.until(State.SERVING) == ""


async def test_a_clock_that_leaps_makes_nothing_hang(static_folder: Path) -> None:
    """An hour that passes at once, as where the machine was stopped, does not look like a model that hangs."""
    model = GatedModel(gated=True)
    async with serving_faulty(static_folder, model) as server:
        call = server.embedding("one")
        await model.next_batch()
        for _ in range(CHECKS // 2):
            server.time.pass_s(3600)
            await server.look()
        assert await server.until(State.SERVING) == ""
        model.go()
        assert good(await call, "one")


@pytest.mark.usefixtures("untraced")
async def test_a_thread_that_dies_is_made_anew(static_folder: Path) -> None:
    """The callers of its batch fail with UNAVAILABLE at once, others are answered; DEGRADED until a batch succeeds."""
    model = GatedModel(gated=True)
    async with serving_faulty(static_folder, model) as server:
        assert server.batcher is not None
        for _ in range(3):
            call = server.embedding("one", "two")
            await model.next_batch()
            other = server.embedding("three")
            await server.in_queue(1)
            [thread] = server.batcher._threads
            raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
            assert raised == 1
            model.go()
            assert await call == DIED
            assert await server.until(State.DEGRADED) == "a worker thread died and was restarted: SystemExit"
            await model.next_batch()
            model.go()
            assert good(await other, "three")
            assert await server.until(State.SERVING) == ""
            assert [thread.is_alive() for thread in server.batcher._threads] == [True]


def short_of_memory(most_texts: int) -> Callable[[Rows], Any]:
    """Memory that suffices for so many texts at a time, and for none that begins with "four"."""

    def change(rows: Rows) -> Rows:
        if len(rows) > most_texts or (rows[:, 1] == 4).any():
            raise MemoryError
        return rows

    return change


@WAYS
async def test_a_batch_too_large_for_memory_is_halved(static_folder: Path, *, queued: bool) -> None:
    """Where memory does not suffice for a batch, each text has its right row all the same, and all is well."""
    model = GatedModel(change=short_of_memory(2))
    texts = [" ".join(["two"] * (1 + n % 5)) for n in range(11)]
    async with serving_faulty(static_folder, model, queued=queued) as server:
        assert good(await server.embed(*texts), *texts)
        assert len(model.batches[0]) == 11
        assert await server.until(State.SERVING) == ""


@WAYS
async def test_a_text_too_large_for_memory_is_refused(static_folder: Path, *, queued: bool) -> None:
    """A text that does not even fit alone fails its own call with RESOURCE_EXHAUSTED; others are answered."""
    model = GatedModel(gated=queued, change=short_of_memory(3))
    async with serving_faulty(static_folder, model, queued=queued) as server:
        calls = []
        if queued:  # so that all the others meet in one batch
            calls.append(server.embedding("one"))
            await model.next_batch()
        calls += [server.embedding("two", "four two"), server.embedding("three", "two three"), server.embedding("one")]
        if queued:
            await server.in_queue(5)
            model.go(100)
        answers = await asyncio.gather(*calls)
        assert answers[-3] == NO_MEMORY
        assert good(answers[-2], "three", "two three")
        assert good(answers[-1], "one")
        assert await server.until(State.SERVING) == ""
