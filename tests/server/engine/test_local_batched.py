"""Local models behind a batcher: blocks in the queue, faults, cancellation, and where the time went."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import Clock, SystemClock
from isogloss_server.engine import local_embedder
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.local_embedder import LocalEmbedder
from isogloss_server.engine.registry import Registry
from isogloss_server.errors import DrainingError
from isogloss_server.models import model_folder, static
from isogloss_server.models.interfaces import Embedded, Model, Rows, TokenBatch, Urgency
from isogloss_server.models.tokenizer import TextTokenizer, Tokenized, read_tokenizer

from tests.support.gated_model import WATCHDOG_S, GatedModel, OwnClock
from tests.support.in_process import ready


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts calls into blocks of a few words, each tokenised on a worker thread."""
    monkeypatch.setattr(local_embedder, "BLOCK_CHARACTERS", 10)
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)


class Parts:
    """An embedder with its batcher, around a model that the test brings."""

    def __init__(
        self, folder: Path, model: Model | None = None, tokens: TextTokenizer | None = None, clock: Clock | None = None
    ) -> None:
        parts = static.load(model_folder.locate(str(folder)))
        clock, model, tokens = clock or SystemClock(), model or parts.model, tokens or parts.tokenizer
        self.batcher = Batcher(model, dimensions=3, threads=1, max_batch_tokens=100, clock=clock, watchdog_s=WATCHDOG_S)
        self.workers = Executor(1)
        self.embedder = LocalEmbedder(model, tokens, parts.card, {}, self.workers, clock, batcher=self.batcher)
        self.direct = LocalEmbedder(model, tokens, parts.card, {}, self.workers, clock)

    async def embed(self, *texts: str) -> Embedded:
        return await self.embedder.embed(texts, InputType.QUERY, Truncation.END, Urgency())


@pytest.fixture
def made() -> Iterator[list[Parts]]:
    """Parts to be closed at the end."""
    parts: list[Parts] = []
    yield parts
    for one in parts:
        one.workers.close()
        one.embedder.close(wait_s=60)


async def test_a_batcher_changes_nothing(static_folder: Path, made: list[Parts]) -> None:
    """Rows, counts and truncated rows through the queue are those of the model called directly."""
    made.append(parts := Parts(static_folder))
    texts = ["one two", "three", "four " * 40, "one", "two two two"]
    queued = await parts.embed(*texts)
    direct = await parts.direct.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    np.testing.assert_array_equal(queued.rows, direct.rows)
    np.testing.assert_array_equal(queued.token_counts, direct.token_counts)
    assert (queued.truncated_rows, queued.total_tokens) == (direct.truncated_rows, direct.total_tokens)


class _Held(TextTokenizer):
    """A tokenizer that stops at "three" until the test, or a model, lets it go on."""

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        if "three" in texts:
            self.reached.set()
            assert self.go_on.wait(60)
        return super().encode(texts, truncation)


def held_tokens(folder: Path) -> _Held:
    tokens = _Held(read_tokenizer(folder / "tokenizer.json"), max_tokens=99)
    tokens.reached, tokens.go_on = threading.Event(), threading.Event()
    return tokens


async def test_tokenisation_overlaps_inference(static_folder: Path, made: list[Parts]) -> None:
    """The first block is inferred while the second is still to be tokenised."""
    tokens = held_tokens(static_folder)

    class Begins(GatedModel):
        def forward(self, batch: TokenBatch) -> Rows:
            tokens.go_on.set()
            return super().forward(batch)

    made.append(parts := Parts(static_folder, Begins(), tokens))
    embedded = await parts.embed("one", "two two", "three")
    assert embedded.rows[:, 0].tolist() == [1, 2, 1]


async def test_a_fault_takes_the_call_out_of_the_queue(static_folder: Path, made: list[Parts]) -> None:
    """A text at fault in a late block ends the call with all faults, and what it has in the queue is not computed."""
    model = GatedModel(gated=True)
    made.append(parts := Parts(static_folder, model))
    first = asyncio.ensure_future(parts.embed("four"))
    await model.next_batch()
    failed = await parts.embed("one one", "two two", "!", "three three", "!!")
    assert sorted(failed.row_errors) == [2, 4]
    await asyncio.sleep(0)  # cancelling tells the queue in the loop's next turn
    assert parts.batcher.waiting_texts == 0
    model.go(2)
    await first
    assert len(model.batches) == 1


async def test_a_cancelled_call_leaves_the_queue(
    static_folder: Path, made: list[Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the caller gives up, none of its blocks stays in the queue."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 100)
    model = GatedModel(gated=True)
    made.append(parts := Parts(static_folder, model))
    first = asyncio.ensure_future(parts.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(parts.embed("one one", "two two", "three three"))
    await asyncio.sleep(0)
    assert parts.batcher.waiting_texts == 3
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert parts.batcher.waiting_texts == 0
    model.go()
    await first


async def test_a_call_cancelled_while_it_is_tokenised_leaves_the_queue(static_folder: Path, made: list[Parts]) -> None:
    """Blocks that wait for the model are not left behind by a call that ends while a later one is tokenised."""
    model, tokens = GatedModel(gated=True), held_tokens(static_folder)
    made.append(parts := Parts(static_folder, model, tokens))
    first = asyncio.ensure_future(parts.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(parts.embed("one one", "two two", "three three", "three"))
    await asyncio.get_running_loop().run_in_executor(None, tokens.reached.wait, 60)
    assert parts.batcher.waiting_texts == 3
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert parts.batcher.waiting_texts == 0
    tokens.go_on.set()
    model.go()
    await first


async def test_where_the_time_went(static_folder: Path, made: list[Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in the queue is that before a call's batch began, inference that of the batch, each as a whole."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 100)
    model, clock = GatedModel(gated=True), OwnClock()
    made.append(parts := Parts(static_folder, model, clock=clock))
    first = asyncio.ensure_future(parts.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(parts.embed("one one", "two two"))
    await asyncio.sleep(0)
    clock.now_s += 3
    model.go()
    await first
    await model.next_batch()
    clock.now_s += 5
    model.go()
    embedded = await second
    assert (embedded.queue_s, embedded.inference_s, embedded.tokenization_s) == (3, 5, 0)


async def test_closing_the_models_closes_their_queues(static_folder: Path, made: list[Parts]) -> None:
    """Once the registry is closed no queue takes more texts, whether or not every model was loaded."""
    made.append(parts := Parts(static_folder))
    registry = Registry(["queued", "loading"])
    registry.get("queued").serve(ready(parts.embedder))
    registry.close()
    with pytest.raises(DrainingError):
        await parts.embed("one")
