"""LocalEmbedder without a batcher: prompts, blocks, and the self-test."""

import threading
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.clock import SystemClock, covered_s
from isogloss_server.engine import local_embedder
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.local_embedder import LocalEmbedder
from isogloss_server.errors import ModelFilesError
from isogloss_server.models import model_folder, static
from isogloss_server.models.interfaces import Rows, TokenBatch, Tolerance, Urgency
from isogloss_server.models.tokenizer import TextTokenizer
from tokenizers import Tokenizer

from tests.support.in_process import new_throughput
from tests.support.recorded_calls import RecordedCalls


def make_embedder(folder: Path, **prompts: str) -> LocalEmbedder:
    parts = static.load(model_folder.locate(str(folder)))
    by_input_type = {InputType(input_type): prompt for input_type, prompt in prompts.items()}
    return LocalEmbedder(
        parts.model, parts.tokenizer, parts.card, by_input_type, Executor(2), SystemClock(), throughput=new_throughput()
    )


async def test_a_prompt_precedes_the_texts_of_its_input_type(static_folder: Path) -> None:
    """The prompt of an input type is tokenized with each text; texts of other input types have none."""
    model = make_embedder(static_folder, query="two ")
    query = await model.embed(["one"], InputType.QUERY, Truncation.END, Urgency())
    plain = await model.embed(["two one", "one"], InputType.DOCUMENT, Truncation.END, Urgency())
    np.testing.assert_array_equal(query.rows[0], plain.rows[0])
    assert query.token_counts is not None
    assert query.token_counts.tolist() == [2]


async def test_a_text_without_tokens_is_a_row_error_despite_a_prompt(static_folder: Path) -> None:
    """A text without tokens of its own has a row error, although its prompt has tokens."""
    model = make_embedder(static_folder, query="two ")
    embedded = await model.embed(["one", "!!!"], InputType.QUERY, Truncation.END, Urgency())
    assert {row: error.reason for row, error in embedded.row_errors.items()} == {1: "TEXT_WITHOUT_TOKENS"}


async def test_blocks_do_not_change_the_result(static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, token counts and row errors of a call in several blocks are those of the call in one block."""
    model = make_embedder(static_folder)
    texts = ["one two", "three", "four " * 40, "one", "two two two"]
    whole = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    monkeypatch.setattr(local_embedder, "BLOCK_CHARACTERS", 10)
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)
    in_blocks = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    np.testing.assert_array_equal(in_blocks.rows, whole.rows)
    np.testing.assert_array_equal(in_blocks.token_counts, whole.token_counts)
    texts = ["one", "two", "!", "three three three", "!!"]
    failed = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    assert sorted(failed.row_errors) == [2, 4]


@pytest.mark.parametrize(
    ("texts", "prompt", "is_inline"),
    [
        (["one"], "", True),
        (["one"] * 300, "", True),
        (["one"] * 400, "", False),
        (["one"] * 100, "two " * 30, False),
        (["one " * 300], "", False),
    ],
)
async def test_only_few_characters_are_tokenized_on_the_event_loop(
    static_folder: Path, texts: list[str], prompt: str, *, is_inline: bool
) -> None:
    """The characters of prompts count like those of texts."""
    parts = static.load(model_folder.locate(str(static_folder)))
    calls = RecordedCalls(Tokenizer.from_file(str(static_folder / "tokenizer.json")))
    tokenizer = TextTokenizer(calls, max_tokens=1000)  # type: ignore[arg-type]
    prompts = {InputType.QUERY: prompt}
    speed = new_throughput()
    model = LocalEmbedder(parts.model, tokenizer, parts.card, prompts, Executor(1), SystemClock(), throughput=speed)
    calls.clear()
    await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    assert {thread == threading.get_ident() for thread in calls.threads} == {is_inline}


class DefectiveModel:
    """A model whose vectors have the defect `kind`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def forward(self, batch: TokenBatch) -> Rows:
        rows = np.ones((len(batch.lengths), 3), np.float32)
        match self._kind:
            case "NaN":
                rows[0, 0] = np.nan
            case "zeros":
                rows[:] = 0
            case "batch variance":
                rows[:, 0] = len(rows)
            case "alike":
                pass
        return rows


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NaN", "not finite"),
        ("zeros", "all zeros"),
        ("batch variance", "differ from the vectors of the same texts alone"),
        ("alike", "different texts have the same vector"),
    ],
)
def test_a_defective_model_fails_the_self_test(static_folder: Path, kind: str, expected: str) -> None:
    """The self-test detects vectors that are not finite, zero, all equal, or dependent on the batch."""
    parts = static.load(model_folder.locate(str(static_folder)))
    model = LocalEmbedder(
        DefectiveModel(kind), parts.tokenizer, parts.card, {}, Executor(1), SystemClock(), throughput=new_throughput()
    )
    with pytest.raises(ModelFilesError, match=expected):
        model.verify([("one", (1.0, 1.0, 1.0))] if kind == "alike" else [])


def test_the_self_test_compares_with_the_known_vectors(static_folder: Path) -> None:
    """The self-test fails if a vector differs from the known one in a number or in its dimensions."""
    model = make_embedder(static_folder)
    model.verify([("two", (7.0, 8.0, 9.0))])
    with pytest.raises(ModelFilesError, match="differ from the known vectors"):
        model.verify([("two", (7.0, 8.0, 9.1))])
    with pytest.raises(ModelFilesError, match="differ in dimensions"):
        model.verify([("two", (7.0, 8.0))])


@pytest.mark.parametrize(("tolerance", "passes"), [(2e-3, True), (1e-3, False)])
def test_the_tolerance_of_the_self_test_is_relative_to_the_length_of_the_vector(
    static_folder: Path, tolerance: float, *, passes: bool
) -> None:
    """A number may differ from the known one by the tolerance times the length of the vector."""
    parts = static.load(model_folder.locate(str(static_folder)))
    model = LocalEmbedder(
        parts.model,
        parts.tokenizer,
        parts.card,
        {},
        Executor(1),
        SystemClock(),
        throughput=new_throughput(),
        tolerance=Tolerance(tolerance, tolerance),
    )
    probes = [("two", (7.0, 8.0, 9.0 + 1.5e-3 * float(np.linalg.norm([7, 8, 9]))))]
    if passes:
        model.verify(probes)
    else:
        with pytest.raises(ModelFilesError, match="differ from the known vectors"):
            model.verify(probes)


def test_overlapping_spans_are_counted_once() -> None:
    """The time that spans cover counts each overlap once."""
    assert covered_s([(5, 7), (1, 2), (6, 9), (1.5, 2), (6, 8)]) == 5
