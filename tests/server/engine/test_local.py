"""Local models: prompts, blocks, and the check at start."""

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


def embedder(folder: Path, **prompts: str) -> LocalEmbedder:
    parts = static.load(model_folder.locate(str(folder)))
    by_input_type = {InputType(input_type): prompt for input_type, prompt in prompts.items()}
    return LocalEmbedder(parts.model, parts.tokenizer, parts.card, by_input_type, Executor(2), SystemClock())


async def test_a_prompt_goes_before_the_texts_of_its_role(static_folder: Path) -> None:
    """The prompt of an input type is encoded before the text; texts of other input types are encoded alone."""
    model = embedder(static_folder, query="two ")
    query = await model.embed(["one"], InputType.QUERY, Truncation.END, Urgency())
    plain = await model.embed(["two one", "one"], InputType.DOCUMENT, Truncation.END, Urgency())
    np.testing.assert_array_equal(query.rows[0], plain.rows[0])
    assert query.token_counts is not None
    assert query.token_counts.tolist() == [2]


async def test_a_prompt_does_not_stand_in_for_a_text(static_folder: Path) -> None:
    """A text that the tokenizer leaves nothing of is at fault, whatever prompt goes before it."""
    model = embedder(static_folder, query="two ")
    embedded = await model.embed(["one", "!!!"], InputType.QUERY, Truncation.END, Urgency())
    assert {row: error.reason for row, error in embedded.row_errors.items()} == {1: "TEXT_WITHOUT_TOKENS"}


async def test_blocks_change_nothing(static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, counts and faults of a call that is worked on in blocks are those of the whole."""
    model = embedder(static_folder)
    texts = ["one two", "three", "four " * 40, "one", "two two two"]
    whole = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    monkeypatch.setattr(local_embedder, "BLOCK_CHARACTERS", 10)
    monkeypatch.setattr(local_embedder, "INLINE_CHARACTERS", 0)
    parts = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    np.testing.assert_array_equal(parts.rows, whole.rows)
    np.testing.assert_array_equal(parts.token_counts, whole.token_counts)
    texts = ["one", "two", "!", "three three three", "!!"]
    failed = await model.embed(texts, InputType.QUERY, Truncation.END, Urgency())
    assert sorted(failed.row_errors) == [2, 4]


class Harmed:
    """A model whose vectors went through `harm`, which is told how many texts they are of."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def forward(self, batch: TokenBatch) -> Rows:
        rows = np.ones((len(batch.lengths), 3), np.float32)
        match self._kind:
            case "NaN":
                rows[0, 0] = np.nan
            case "zeros":
                rows[:] = 0
            case "company":
                rows[:, 0] = len(rows)
            case "alike":
                pass
        return rows


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NaN", "not finite"),
        ("zeros", "all zeros"),
        ("company", "differ from the vectors of the same texts alone"),
        ("alike", "different texts have the same vector"),
    ],
)
def test_a_model_that_computes_nonsense_is_not_served(static_folder: Path, kind: str, expected: str) -> None:
    """Vectors that are no numbers, all zeros, all alike, or depend on their company are found before it serves."""
    parts = static.load(model_folder.locate(str(static_folder)))
    model = LocalEmbedder(Harmed(kind), parts.tokenizer, parts.card, {}, Executor(1), SystemClock())
    with pytest.raises(ModelFilesError, match=expected):
        model.verify([("one", (1.0, 1.0, 1.0))] if kind == "alike" else [])


def test_known_vectors_must_be_found_again(static_folder: Path) -> None:
    """A model that misses a known vector, or is not as wide, is not served; one that finds it is."""
    model = embedder(static_folder)
    model.verify([("two", (7.0, 8.0, 9.0))])
    with pytest.raises(ModelFilesError, match="differ from the known vectors"):
        model.verify([("two", (7.0, 8.0, 9.1))])
    with pytest.raises(ModelFilesError, match="differ in dimensions"):
        model.verify([("two", (7.0, 8.0))])


@pytest.mark.parametrize(("tolerance", "served"), [(2e-3, True), (1e-3, False)])
def test_how_far_a_vector_may_be_off_is_the_models(static_folder: Path, tolerance: float, *, served: bool) -> None:
    """A number may miss the known one by the tolerance, as a share of the vector's length."""
    parts = static.load(model_folder.locate(str(static_folder)))
    model = LocalEmbedder(
        parts.model,
        parts.tokenizer,
        parts.card,
        {},
        Executor(1),
        SystemClock(),
        tolerance=Tolerance(tolerance, tolerance),
    )
    probes = [("two", (7.0, 8.0, 9.0 + 1.5e-3 * float(np.linalg.norm([7, 8, 9]))))]
    if served:
        model.verify(probes)
    else:
        with pytest.raises(ModelFilesError, match="differ from the known vectors"):
            model.verify(probes)


def test_seconds_are_counted_once() -> None:
    """Spans that overlap count as the time that they cover together."""
    assert covered_s([(5, 7), (1, 2), (6, 9), (1.5, 2), (6, 8)]) == 5
