"""The comparison of a model with sentence-transformers: its figures and its thresholds."""

import unicodedata

import numpy as np
import pytest
from isogloss_server.models import parity


def rows(off: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns 8 vectors of length 3, twice; one of the second is rotated until its cosine is 1 - off."""
    ours = np.zeros((8, 4), np.float32)
    ours[:, 0] = 3
    theirs = ours.copy()
    theirs[5, :2] = 3 * (1 - off), 3 * np.sqrt(1 - (1 - off) ** 2)
    return ours, theirs


def test_the_figures_are_those_of_the_worst_row() -> None:
    """The minimum cosine is that of the worst row; the difference is a share of the vector's length."""
    found = parity.compare_rows("q: ", *rows(0.02), "openvino-f32")
    assert found.min_cosine == pytest.approx(0.98, abs=1e-6)
    assert found.mean_cosine == pytest.approx(1 - 0.02 / 8, abs=1e-6)
    assert found.difference == pytest.approx(np.sqrt(1 - 0.98**2), abs=1e-6)
    assert "prompt 'q: '" in str(found)


@pytest.mark.parametrize(
    ("backend", "off", "is_faithful"),
    [
        ("openvino-f32", 0, True),
        ("openvino-f32", 2e-5, False),
        ("openvino-bf16", 2e-5, True),
        ("openvino-bf16", 4e-4, True),
        ("openvino-bf16", 6e-4, False),
        ("static", 2e-5, False),
    ],
)
def test_the_threshold_depends_on_the_precision(backend: str, off: float, *, is_faithful: bool) -> None:
    """A deviation that is faithful in bfloat16 is not faithful in float32."""
    found = parity.compare_rows("", *rows(off), backend)
    assert found.is_faithful is is_faithful
    assert ("NOT within its precision" in str(found)) is not is_faithful


def test_the_sentences_are_in_many_scripts() -> None:
    """The texts are distinct, in eighteen scripts, and one is longer than the limit of most models."""
    texts = parity.sentences()
    letters = {letter for text in texts for letter in text if letter.isalpha()}
    assert len({unicodedata.name(letter).split()[0] for letter in letters}) == 18
    assert len(set(texts)) == len(texts) > 40
    assert max(map(len, texts)) > 1500
