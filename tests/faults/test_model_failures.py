"""Models that raise, return invalid rows, stall or run out of memory, and worker threads that die."""

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

from tests.support.gated_model import GatedModel
from tests.support.injected_faults import Outcome, rows_of, serving_model

STALLED = Outcome(code="UNAVAILABLE", reason="MODEL_STUCK")
DIED = Outcome(code="UNAVAILABLE", reason="WORKER_DIED")
INTERNAL = Outcome(code="INTERNAL", reason="INTERNAL")
OUT_OF_MEMORY = Outcome(code="RESOURCE_EXHAUSTED", reason="OUT_OF_MEMORY")
RUNNERS = pytest.mark.parametrize("queued", [True, False], ids=["batcher", "direct"])


@pytest.fixture(autouse=True)
def on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs all inference on threads, so that a gated model does not block the event loop."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)


def succeeded(outcome: Outcome, *texts: str) -> bool:
    """Returns whether a call received the rows of its texts."""
    return outcome == Outcome(rows_of(*texts))


def raising(rows: Rows) -> Rows:
    raise RuntimeError("a sentence that quotes a text")


FAILING = {
    "raises": (raising, "RuntimeError"),
    "NaN": (lambda rows: rows * np.float32("nan"), "ValueError"),
    "too few rows": (lambda rows: rows[1:], "ValueError"),
}


@RUNNERS
@pytest.mark.parametrize("failure", FAILING)
async def test_consecutive_failed_batches_degrade_the_model_until_one_succeeds(
    static_folder: Path, failure: str, *, queued: bool
) -> None:
    """The callers of a failed batch get INTERNAL; three consecutive failures report DEGRADED, a success SERVING."""
    change, kind = FAILING[failure]
    model = GatedModel(change=lambda rows: change(rows) if (rows[:, 1] == 4).any() else rows)
    async with serving_model(static_folder, model, queued=queued) as server:
        for _ in range(2):
            for _ in range(FAILURES - 1):
                assert await server.embed("four") == INTERNAL
            assert succeeded(await server.embed("one"), "one")  # ends the consecutive failures
        for _ in range(FAILURES):
            assert await server.wait_for_state(State.SERVING) == ""
            assert await server.embed("four two") == INTERNAL
        assert await server.wait_for_state(State.DEGRADED) == f"the last {FAILURES} batches failed: {kind}"
        assert succeeded(await server.embed("one two", "three"), "one two", "three")
        assert await server.wait_for_state(State.SERVING) == ""


@RUNNERS
async def test_calls_to_a_stalled_model_fail_at_once_until_it_recovers(static_folder: Path, *, queued: bool) -> None:
    """After the time limit all waiting and all new calls fail; health is NOT_SERVING until the inference ends."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model, queued=queued) as server:
        calls = [server.start_embed("one")]
        await model.next_batch()
        calls += [server.start_embed("two", "three") for _ in range(3)]
        await server.wait_for_admitted(7)
        await server.run_checks(CHECKS)
        assert await server.wait_for_state(State.SERVING) == ""
        await server.run_checks()
        assert await asyncio.gather(*calls) == [STALLED] * 4
        assert "exceeded the time limit of a batch" in await server.wait_for_state(State.NOT_SERVING)
        assert await server.embed("three") == STALLED
        assert len(model.batches) == 1
        model.release(2)
        assert await server.wait_for_state(State.SERVING) == ""
        assert succeeded(await server.embed("two two"), "two two")
        assert model.batches == [[[1]], [[2, 2]]]


@RUNNERS
async def test_a_stalled_thread_does_not_affect_the_other_threads(static_folder: Path, *, queued: bool) -> None:
    """If one of two threads stalls, its callers fail, the model is DEGRADED, and the other thread serves the rest."""
    end = threading.Event()
    model = GatedModel(change=lambda rows: (end.wait(60), rows)[1] if (rows[:, 1] == 1).any() else rows)
    async with serving_model(static_folder, model, queued=queued, threads=2) as server:
        stalled = server.start_embed("one")
        await model.next_batch()
        await server.run_checks(CHECKS + 1)
        assert await stalled == STALLED
        assert (
            await server.wait_for_state(State.DEGRADED)
            == "1 of 2 threads exceeded the time limit of a batch (watchdog_s 80)"
        )
        for text in ("two", "three two", "two"):
            assert succeeded(await server.embed(text), text)
        end.set()
        assert await server.wait_for_state(State.SERVING) == ""


async def test_batches_within_the_time_limit_do_not_stall(static_folder: Path) -> None:
    """A server that is busy for longer than the limit does not stall if each batch ends within the limit."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model) as server:
        for _ in range(3):
            call = server.start_embed("one")
            await model.next_batch()
            await server.run_checks(CHECKS)
            model.release()
            assert succeeded(await call, "one")
            assert await server.wait_for_state(State.SERVING) == ""


async def test_a_clock_that_jumps_does_not_stall_a_batch(static_folder: Path) -> None:
    """An hour that passes at once, as if the machine was suspended, does not count as a stalled model."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model) as server:
        call = server.start_embed("one")
        await model.next_batch()
        for _ in range(CHECKS // 2):
            server.clock.advance(3600)
            await server.run_checks()
        assert await server.wait_for_state(State.SERVING) == ""
        model.release()
        assert succeeded(await call, "one")


@pytest.mark.usefixtures("untraced")
async def test_a_worker_thread_that_dies_is_restarted(static_folder: Path) -> None:
    """Its callers get UNAVAILABLE at once, other calls succeed; the model is DEGRADED until a batch succeeds."""
    model = GatedModel(gated=True)
    async with serving_model(static_folder, model) as server:
        assert server.batcher is not None
        for _ in range(3):
            call = server.start_embed("one", "two")
            await model.next_batch()
            other = server.start_embed("three")
            await server.wait_for_queued(1)
            [thread] = server.batcher._threads
            raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )
            assert raised == 1
            model.release()
            assert await call == DIED
            assert await server.wait_for_state(State.DEGRADED) == "a worker thread died and was restarted: SystemExit"
            await model.next_batch()
            model.release()
            assert succeeded(await other, "three")
            assert await server.wait_for_state(State.SERVING) == ""
            assert [thread.is_alive() for thread in server.batcher._threads] == [True]


def out_of_memory(max_texts: int) -> Callable[[Rows], Any]:
    """Returns a change that raises MemoryError for over `max_texts` texts, and for a text that begins with "four"."""

    def change(rows: Rows) -> Rows:
        if len(rows) > max_texts or (rows[:, 1] == 4).any():
            raise MemoryError
        return rows

    return change


@RUNNERS
async def test_a_batch_too_large_for_memory_is_halved(static_folder: Path, *, queued: bool) -> None:
    """If memory does not suffice for a batch, each text still gets its row, and the model stays SERVING."""
    model = GatedModel(change=out_of_memory(2))
    texts = [" ".join(["two"] * (n + 1)) for n in range(11)]
    async with serving_model(static_folder, model, queued=queued) as server:
        assert succeeded(await server.embed(*texts), *texts)
        assert len(model.batches[0]) == 11
        assert await server.wait_for_state(State.SERVING) == ""


@RUNNERS
async def test_a_text_too_large_for_memory_fails_its_own_call_only(static_folder: Path, *, queued: bool) -> None:
    """A text that does not fit alone fails its call with RESOURCE_EXHAUSTED; the other calls succeed."""
    model = GatedModel(gated=queued, change=out_of_memory(3))
    async with serving_model(static_folder, model, queued=queued) as server:
        calls = []
        if queued:  # so that all other texts are in one batch
            calls.append(server.start_embed("one"))
            await model.next_batch()
        calls += [
            server.start_embed("two", "four two"),
            server.start_embed("three", "two three"),
            server.start_embed("one one"),
        ]
        if queued:
            await server.wait_for_queued(5)
            model.release(100)
        outcomes = await asyncio.gather(*calls)
        assert outcomes[-3] == OUT_OF_MEMORY
        assert succeeded(outcomes[-2], "three", "two three")
        assert succeeded(outcomes[-1], "one one")
        assert await server.wait_for_state(State.SERVING) == ""
