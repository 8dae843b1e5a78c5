"""LocalEmbedder with a batcher: blocks in the queue, row errors, cancellation, and timings."""

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
from isogloss_server.models.tokenizer import TextTokenizer, Tokenized
from tokenizers import Tokenizer

from tests.support.gated_model import WATCHDOG_S, GatedModel
from tests.support.in_process import ready
from tests.support.manual_clock import ManualClock


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits calls into blocks of a few words, each tokenized on a thread."""
    monkeypatch.setattr(local_embedder, "BLOCK_CHARACTERS", 10)
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)


class BatchedEmbedder:
    """A LocalEmbedder with a batcher, and `direct`, one without, of the same model."""

    def __init__(
        self, folder: Path, model: Model | None = None, tokens: TextTokenizer | None = None, clock: Clock | None = None
    ) -> None:
        parts = static.load(model_folder.locate(str(folder)))
        clock, model, tokens = clock or SystemClock(), model or parts.model, tokens or parts.tokenizer
        self.batcher = Batcher(model, dimensions=3, threads=1, max_batch_tokens=100, clock=clock, watchdog_s=WATCHDOG_S)
        self.executor = Executor(1)
        self.embedder = LocalEmbedder(model, tokens, parts.card, {}, self.executor, clock, batcher=self.batcher)
        self.direct = LocalEmbedder(model, tokens, parts.card, {}, self.executor, clock)

    async def embed(self, *texts: str) -> Embedded:
        return await self.embedder.embed(texts, InputType.QUERY, Truncation.END, Urgency())


@pytest.fixture
def embedders() -> Iterator[list[BatchedEmbedder]]:
    """Embedders that are closed after the test."""
    made: list[BatchedEmbedder] = []
    yield made
    for instance in made:
        instance.executor.close()
        instance.embedder.close(wait_s=60)


async def test_a_batcher_does_not_change_the_result(static_folder: Path, embedders: list[BatchedEmbedder]) -> None:
    """Rows, token counts and truncated rows are those of the embedder without a batcher."""
    embedders.append(batched := BatchedEmbedder(static_folder))
    texts = ["one two", "three", "four " * 40, "one", "two two two"]
    queued = await batched.embed(*texts)
    direct = await batched.direct.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    np.testing.assert_array_equal(queued.rows, direct.rows)
    np.testing.assert_array_equal(queued.token_counts, direct.token_counts)
    assert (queued.truncated_rows, queued.total_tokens) == (direct.truncated_rows, direct.total_tokens)


class GatedTokenizer(TextTokenizer):
    """A tokenizer that blocks at the text "three" until `released` is set."""

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        if "three" in texts:
            self.reached.set()
            assert self.released.wait(60)
        return super().encode(texts, truncation)


def gated_tokenizer(folder: Path) -> GatedTokenizer:
    tokens = GatedTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), max_tokens=99)
    tokens.reached, tokens.released = threading.Event(), threading.Event()
    return tokens


async def test_tokenization_overlaps_inference(static_folder: Path, embedders: list[BatchedEmbedder]) -> None:
    """Inference of the first block runs while a later block is not yet tokenized."""
    tokens = gated_tokenizer(static_folder)

    class Releasing(GatedModel):
        def forward(self, batch: TokenBatch) -> Rows:
            tokens.released.set()
            return super().forward(batch)

    embedders.append(batched := BatchedEmbedder(static_folder, Releasing(), tokens))
    embedded = await batched.embed("one", "two two", "three")
    assert embedded.rows[:, 0].tolist() == [1, 2, 1]


async def test_a_row_error_removes_the_call_from_the_queue(
    static_folder: Path, embedders: list[BatchedEmbedder]
) -> None:
    """A row error in a late block ends the call with all row errors; its queued texts are not computed."""
    model = GatedModel(gated=True)
    embedders.append(batched := BatchedEmbedder(static_folder, model))
    first = asyncio.ensure_future(batched.embed("four"))
    await model.next_batch()
    failed = await batched.embed("one one", "two two", "!", "three three", "!!")
    assert sorted(failed.row_errors) == [2, 4]
    await asyncio.sleep(0)  # the queue is notified in the next iteration of the event loop
    assert batched.batcher.waiting_texts == 0
    model.release(2)
    await first
    assert len(model.batches) == 1


async def test_a_cancelled_call_is_removed_from_the_queue(
    static_folder: Path, embedders: list[BatchedEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the blocks of a cancelled call stays in the queue."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 100)
    model = GatedModel(gated=True)
    embedders.append(batched := BatchedEmbedder(static_folder, model))
    first = asyncio.ensure_future(batched.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(batched.embed("one one", "two two", "three three"))
    await asyncio.sleep(0)
    assert batched.batcher.waiting_texts == 3
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert batched.batcher.waiting_texts == 0
    model.release()
    await first


async def test_a_call_cancelled_during_tokenization_is_removed_from_the_queue(
    static_folder: Path, embedders: list[BatchedEmbedder]
) -> None:
    """The queued blocks of a call are removed if it is cancelled while a later block is tokenized."""
    model, tokens = GatedModel(gated=True), gated_tokenizer(static_folder)
    embedders.append(batched := BatchedEmbedder(static_folder, model, tokens))
    first = asyncio.ensure_future(batched.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(batched.embed("one one", "two two", "three three", "three"))
    await asyncio.get_running_loop().run_in_executor(None, tokens.reached.wait, 60)
    assert batched.batcher.waiting_texts == 3
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0)
    assert batched.batcher.waiting_texts == 0
    tokens.released.set()
    model.release()
    await first


async def test_timings_separate_queue_and_inference(
    static_folder: Path, embedders: list[BatchedEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue time ends when the batch of the call begins; the inference time is that of the whole batch."""
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 100)
    model, clock = GatedModel(gated=True), ManualClock()
    embedders.append(batched := BatchedEmbedder(static_folder, model, clock=clock))
    first = asyncio.ensure_future(batched.embed("four"))
    await model.next_batch()
    second = asyncio.ensure_future(batched.embed("one one", "two two"))
    await asyncio.sleep(0)
    clock.now_s += 3
    model.release()
    await first
    await model.next_batch()
    clock.now_s += 5
    model.release()
    embedded = await second
    assert (embedded.queue_s, embedded.inference_s, embedded.tokenization_s) == (3, 5, 0)


async def test_closing_the_registry_closes_the_batchers(static_folder: Path, embedders: list[BatchedEmbedder]) -> None:
    """After the registry is closed no batcher accepts texts, also if a model was not loaded."""
    embedders.append(batched := BatchedEmbedder(static_folder))
    registry = Registry(["queued", "loading"])
    registry.get("queued").serve(ready(batched.embedder))
    registry.close()
    with pytest.raises(DrainingError):
        await batched.embed("one")
