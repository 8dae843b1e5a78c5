"""Pipeline: partial results, priorities, truncation, tokenization, and both sides of a comparison."""

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Metric, Priority, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine import pipeline as pipeline_module
from isogloss_server.engine.cache import Cache
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.local_embedder import LocalEmbedder
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.request import EmbedRequest, SimilarityRequest, TextSide, VectorSide
from isogloss_server.engine.similarity import Comparison
from isogloss_server.errors import EmptyTextError, TextWithoutTokensError, UnsupportedTruncationError
from isogloss_server.models import model_folder, static
from isogloss_server.models.interfaces import Embedder, Urgency
from isogloss_server.models.tokenizer import TextTokenizer, Tokenized
from tokenizers import Tokenizer

from tests.support.cached_embedder import UniqueRowsEmbedder
from tests.support.in_process import CARD, CountingEmbedder, TruncationRecorder, new_throughput, ready_registry
from tests.support.manual_clock import ManualClock


def make_pipeline(embedder: Embedder) -> Pipeline:
    return Pipeline(ready_registry(embedder), Executor(1), SystemClock())


async def test_partial_returns_row_errors_and_embeds_the_other_texts() -> None:
    """With allow_partial a text that fails has a row of zeros and a row error; other rows are those without it."""
    request = EmbedRequest(texts=["", "ab", "!!!", " ", "abc"], allow_partial=True, normalize=False)
    result = await make_pipeline(CountingEmbedder()).embed(request)
    expected = [[0] * 4, [2, 1, 1, 1], [0] * 4, [0] * 4, [3, 1, 1, 1]]
    np.testing.assert_array_equal(result.matrix.array, expected)
    assert {row: error.reason for row, error in result.embedded.row_errors.items()} == {
        0: "EMPTY_TEXT", 2: "TEXT_WITHOUT_TOKENS", 3: "EMPTY_TEXT"
    }  # fmt: skip
    assert result.embedded.token_counts is not None
    assert result.embedded.token_counts.tolist() == [0, 2, 0, 0, 3]


@pytest.mark.parametrize("texts", [["", " "], ["!!!", ""], ["!!!"]])
async def test_partial_without_a_valid_text_returns_zeros(texts: list[str]) -> None:
    """If every text fails, every row is zeros and has a row error."""
    result = await make_pipeline(CountingEmbedder()).embed(EmbedRequest(texts=texts, allow_partial=True, dimensions=2))
    np.testing.assert_array_equal(result.matrix.array, np.zeros((len(texts), 2)))
    assert sorted(result.embedded.row_errors) == list(range(len(texts)))


async def test_without_partial_a_row_error_fails_the_request() -> None:
    """An empty text fails the request without a call of the embedder; a text without tokens fails it as well."""
    embedder = CountingEmbedder()
    with pytest.raises(EmptyTextError):
        await make_pipeline(embedder).embed(EmbedRequest(texts=["a", " "]))
    assert embedder.calls == []
    with pytest.raises(TextWithoutTokensError) as raised:
        await make_pipeline(embedder).embed(EmbedRequest(texts=["a", "!!!", "b", "!!!"]))
    assert [violation.field for violation in raised.value.violations] == ["texts[1]", "texts[3]"]


async def test_bulk_requests_run_one_at_a_time_and_do_not_delay_interactive() -> None:
    """With one BULK slot one BULK request runs, and an INTERACTIVE request does not wait for queued BULK."""
    began, released = asyncio.Event(), asyncio.Event()

    class Slow(CountingEmbedder):
        async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
            if texts == ["bulk"]:
                began.set()
                await released.wait()
            return await super().embed(texts, *arguments, **options)

    embedder = Slow()
    registry = ready_registry(embedder)
    pipeline = Pipeline(registry, Executor(1), SystemClock())
    bulk = [
        asyncio.ensure_future(pipeline.embed(EmbedRequest(texts=["bulk"], priority=Priority.BULK))) for _ in range(5)
    ]
    await began.wait()
    interactive = await pipeline.embed(EmbedRequest(texts=["now"]))
    assert interactive.matrix.array.shape == (1, 4)
    assert embedder.calls == [["now"]]
    assert registry.get("test").queued_texts == 5
    bulk[1].cancel()
    released.set()
    results = await asyncio.gather(*bulk, return_exceptions=True)
    assert [type(result).__name__ for result in results].count("EmbedResult") == 4
    assert registry.get("test").queued_texts == 0
    assert registry.get("test").embedded_texts == 5


async def test_as_many_bulk_requests_run_as_there_are_slots() -> None:
    """With three BULK slots three requests run, each with its own urgency; a fourth waits for a slot."""
    released = asyncio.Event()
    running: list[Urgency] = []

    class Gated(CountingEmbedder):
        async def embed(
            self, texts: Any, input_type: InputType, truncation: Truncation, urgency: Urgency, **options: Any
        ) -> Any:
            running.append(urgency)
            await released.wait()
            return await super().embed(texts, input_type, truncation, urgency)

    registry = ready_registry(Gated(), bulk_slots=3)
    pipeline = Pipeline(registry, Executor(1), SystemClock())
    requests = [EmbedRequest(texts=["a"], priority=Priority.BULK, deadline_s=1e9 + n) for n in range(4)]
    bulk = [asyncio.ensure_future(pipeline.embed(request)) for request in requests]
    for _ in range(10):
        await asyncio.sleep(0)
    assert running == [Urgency(Priority.BULK, 1e9 + n) for n in range(3)]
    released.set()
    await asyncio.gather(*bulk)
    assert len(running) == 4


@pytest.mark.parametrize("truncation", [Truncation.START, Truncation.END])
async def test_a_truncation_that_the_model_does_not_offer_is_rejected(truncation: Truncation) -> None:
    """A request for an unsupported truncation, also END, fails with the truncations that the model offers."""
    embedder = TruncationRecorder(Truncation.ERROR)
    side = TextSide("queries", ["a"], InputType.QUERY)
    for call in (
        make_pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=truncation)),
        make_pipeline(embedder).similarity(SimilarityRequest(queries=side, candidates=None, truncation=truncation)),
    ):
        with pytest.raises(UnsupportedTruncationError) as raised:
            await call
        assert raised.value.figures == {"actual": truncation.value, "offered": "error"}
    assert embedder.truncations == []


@pytest.mark.parametrize(
    ("offered", "requested", "expected"),
    [
        (tuple(Truncation), None, Truncation.END),
        ((Truncation.ERROR, Truncation.END), None, Truncation.END),
        ((Truncation.ERROR,), None, Truncation.ERROR),
        ((Truncation.START, Truncation.ERROR), None, Truncation.ERROR),
        (tuple(Truncation), Truncation.START, Truncation.START),
        (tuple(Truncation), Truncation.ERROR, Truncation.ERROR),
    ],
)
async def test_the_default_truncation_is_end_if_the_model_offers_it(
    offered: tuple[Truncation, ...], requested: Truncation | None, expected: Truncation
) -> None:
    """The default is END, or ERROR for a model without END, in Embed and Similarity; a request overrides it."""
    embedder = TruncationRecorder(*offered)
    side = TextSide("queries", ["a"], InputType.QUERY)
    await make_pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=requested))
    await make_pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=requested, allow_partial=True))
    await make_pipeline(embedder).similarity(SimilarityRequest(queries=side, candidates=side, truncation=requested))
    assert embedder.truncations == [expected] * 4


async def test_a_comparison_of_vectors_frees_all_that_it_holds() -> None:
    """After a comparison with vectors no texts and no tokens stay admitted."""
    registry = ready_registry(CountingEmbedder())
    model = registry.get("test")
    side = VectorSide("queries.vectors", np.ones((3, 4), np.float32), CARD.space_id, 48)
    texts = TextSide("candidates.texts.texts", ["one", "two"], InputType.QUERY)
    pipeline = Pipeline(registry, Executor(1), SystemClock())
    for candidates in (None, texts):
        result = await pipeline.similarity(SimilarityRequest(queries=side, candidates=candidates))
        assert len(result.compared) == 3
        assert (model.queued_texts, model.ready.admission.tokens) == (0, 0)


class CountingTokenizer(TextTokenizer):
    """A tokenizer that counts how often it tokenizes each text."""

    def __init__(self, file: Path) -> None:
        super().__init__(Tokenizer.from_file(str(file)), max_tokens=1000)
        self.counts: Counter[str] = Counter()

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        self.counts.update(texts)
        return super().encode(texts, truncation)


@pytest.mark.parametrize("allow_partial", [False, True])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_each_text_is_tokenized_once(static_folder: Path, cache_bytes: int, *, allow_partial: bool) -> None:
    """A request with a text without tokens tokenizes each text once: with and without a cache, strict and partial."""
    texts = [" ".join(["one"] * (1 + number)) for number in range(101)]
    texts[40] = "!!!"
    parts, executor, clock = static.load(model_folder.locate(str(static_folder))), Executor(1), SystemClock()
    tokenizer = CountingTokenizer(static_folder / "tokenizer.json")
    embedder = LocalEmbedder(parts.model, tokenizer, parts.card, {}, executor, clock, throughput=new_throughput())
    pipeline = Pipeline(ready_registry(embedder), executor, clock, Cache(clock, max_bytes=cache_bytes))
    request = EmbedRequest(texts=texts, allow_partial=allow_partial)
    if allow_partial:
        result = await pipeline.embed(request)
        assert list(result.embedded.row_errors) == [40]
        assert np.flatnonzero((result.embedded.rows == 0).all(axis=1)).tolist() == [40]
    else:
        with pytest.raises(TextWithoutTokensError) as raised:
            await pipeline.embed(request)
        assert [violation.field for violation in raised.value.violations] == ["texts[40]"]
    executor.close()
    assert tokenizer.counts == Counter(texts)


async def test_both_sides_of_a_comparison_are_embedded_concurrently() -> None:
    """The embedder is called for both sides before either call returns."""

    class Meeting(CountingEmbedder):
        def __init__(self) -> None:
            super().__init__()
            self.barrier = asyncio.Barrier(2)

        async def embed(self, *arguments: Any, **options: Any) -> Any:
            async with asyncio.timeout(60):
                await self.barrier.wait()
            return await super().embed(*arguments, **options)

    embedder = Meeting()
    queries = TextSide("queries.texts.texts", ["a", "b"], InputType.QUERY)
    candidates = TextSide("candidates.texts.texts", ["c"], InputType.DOCUMENT)
    result = await make_pipeline(embedder).similarity(SimilarityRequest(queries=queries, candidates=candidates))
    assert sorted(embedder.calls) == [["a", "b"], ["c"]]
    assert len(result.compared) == 2


async def test_a_row_error_of_the_queries_precedes_one_of_the_candidates() -> None:
    """If both sides have a row error, the request fails with that of the queries."""
    queries = TextSide("queries.texts.texts", ["a", "!!!"], InputType.QUERY)
    candidates = TextSide("candidates.texts.texts", ["!!!", "b"], InputType.DOCUMENT)
    with pytest.raises(TextWithoutTokensError) as raised:
        await make_pipeline(CountingEmbedder()).similarity(SimilarityRequest(queries=queries, candidates=candidates))
    assert [violation.field for violation in raised.value.violations] == ["queries.texts.texts[1]"]


async def test_a_call_that_fails_by_a_row_error_counts_no_embedded_texts() -> None:
    """Without allow_partial no text of a failed call counts as embedded; with it, the good ones do."""
    registry = ready_registry(CountingEmbedder())
    model, line = registry.get("test"), Pipeline(registry, Executor(1), SystemClock())
    with pytest.raises(TextWithoutTokensError):
        await line.embed(EmbedRequest(texts=["a", "!!!"]))
    assert model.embedded_texts == 0
    await line.embed(EmbedRequest(texts=["a", "!!!"], allow_partial=True))
    assert model.embedded_texts == 1


async def test_comparisons_leave_a_thread_to_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many comparisons wait, they use half of the threads, one block each at a time."""
    blocks, most = 0, 0
    lock = threading.Lock()
    scored = Comparison.scores

    def scores(self: Comparison, queries: Any) -> Any:
        nonlocal blocks, most
        with lock:
            blocks += 1
            most = max(most, blocks)
        try:
            return scored(self, queries)
        finally:
            with lock:
                blocks -= 1

    monkeypatch.setattr(Comparison, "scores", scores)
    executor = Executor(4)
    pipeline = Pipeline(ready_registry(CountingEmbedder()), executor, SystemClock())
    rows = np.ones((2000, 4), np.float32)
    sides = [VectorSide(path, rows, CARD.space_id, rows.nbytes) for path in ("queries", "candidates")]
    request = SimilarityRequest(queries=sides[0], candidates=sides[1], metric=Metric.MANHATTAN)
    results = await asyncio.gather(*(pipeline.similarity(request) for _ in range(8)))
    executor.close()
    assert {result.compared.shape for result in results} == {(2000, 2000)}
    assert 1 <= most <= 2


async def test_a_comparison_is_divided_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are sized by the measured speed: a slow comparison has more of them, with the same scores."""
    monkeypatch.setattr(pipeline_module, "COMPARISON_PRODUCTS", 1 << 20)
    rows = np.random.default_rng(0).standard_normal((1200, 4)).astype(np.float32)
    sides = [VectorSide(path, rows, CARD.space_id, rows.nbytes) for path in ("queries", "candidates")]
    request = SimilarityRequest(queries=sides[0], candidates=sides[1], metric=Metric.EUCLIDEAN)
    results, counts = [], []
    for block_s in (0.0001, 0.02):
        clock = ManualClock()
        executor = CountingExecutor(clock, block_s)
        results.append(
            (await Pipeline(ready_registry(CountingEmbedder()), executor, clock).similarity(request)).compared
        )
        counts.append(executor.blocks)
        executor.close()
    assert counts[0] < counts[1]
    np.testing.assert_array_equal(*results)


class CountingExecutor(Executor):
    """Runs work at once; a block of a comparison takes `block_s` seconds of the clock."""

    def __init__(self, clock: ManualClock, block_s: float) -> None:
        super().__init__(1)
        self.blocks = 0
        self._clock = clock
        self._block_s = block_s

    async def run(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(work, "__name__", "") != "_timed":
            return work(*args, **kwargs)
        self.blocks += 1
        result, _ = work(*args, **kwargs)
        return result, self._block_s


async def test_the_name_of_the_caller_reaches_the_embedder_and_the_cache() -> None:
    """Each caller has its own rows, for Embed and for Similarity, and the embedder receives the name."""
    embedder, clock = UniqueRowsEmbedder(), SystemClock()
    pipeline = Pipeline(ready_registry(embedder), Executor(1), clock, Cache(clock, max_bytes=1 << 20))
    side = TextSide("queries", ["a"], InputType.SIMILARITY)
    for caller in ("alice", "bob"):
        embedded = await pipeline.embed(EmbedRequest(texts=["a"], caller=caller))
        compared = await pipeline.similarity(SimilarityRequest(queries=side, candidates=None, caller=caller))
        assert (embedded.timings.cached_rows, compared.timings.cached_rows) == (0, 1)
    assert [urgency.caller for urgency in embedder.urgencies] == ["alice", "bob"]


async def test_callers_take_turns_in_comparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of a quiet caller ends before most of those that a greedy one has begun earlier."""
    monkeypatch.setattr(pipeline_module, "COMPARISON_PRODUCTS", 1 << 20)
    executor = Executor(2)
    pipeline = Pipeline(ready_registry(CountingEmbedder()), executor, SystemClock())
    rows = np.ones((600, 4), np.float32)
    side = VectorSide("queries", rows, CARD.space_id, rows.nbytes)
    ended: list[str] = []

    async def compare(caller: str) -> None:
        request = SimilarityRequest(queries=side, candidates=None, metric=Metric.MANHATTAN, caller=caller)
        await pipeline.similarity(request)
        ended.append(caller)

    await asyncio.gather(*(compare(caller) for caller in [*["greedy"] * 8, "quiet"]))
    executor.close()
    assert ended.index("quiet") <= 2
