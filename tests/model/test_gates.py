"""The openvino backend has the vectors of sentence-transformers: real weights, and the multilingual model's shape."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.models import model_folder
from isogloss_server.models.interfaces import Rows
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.openvino import loader as packed

from tests.support import texts

pytestmark = [pytest.mark.sentence_transformers, pytest.mark.timeout(600)]

UNUSUAL = [
    "x",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "ﬁne ＦＵＬＬ ｗｉｄｔｈ İstanbul naïve Straße",
    "\u200bzero\u200dwidth\ufeff",
    "a" * 3000,
    "word " * 700,
    "日本語" * 400,
    "   leading, trailing, and   inner\tspaces\n\n",
    "[CLS] [SEP] [PAD] <s> </s> <pad>",
    "é" * 10 + " " + "e\u0301" * 10,
]
TEXTS = [*texts.mixed(500 - len(UNUSUAL)), *UNUSUAL]
GATES = {"f32": (0.99999, 0.99999), "bf16": (0.9999, 0.9995)}  # lowest mean and minimum cosine


class Pair:
    """A folder in both: the library, with its vectors of TEXTS, and the openvino backend in each precision."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.folder = folder
        self.library: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.expected: Rows = self.library.encode(TEXTS, batch_size=16, normalize_embeddings=True)

    def packed(self, precision: Literal["f32", "bf16"]) -> LoadedModel:
        """Returns the model in the openvino backend."""
        runtime = packed.Runtime(precision=precision, threads=1)
        return packed.load(model_folder.locate(str(self.folder)), runtime)


@pytest.fixture(scope="module", params=["minilm", "multilingual"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each model in both."""
    return Pair(request.getfixturevalue(request.param))


@pytest.mark.parametrize("precision", GATES)
def test_vectors_are_those_of_the_library(pair: Pair, precision: Literal["f32", "bf16"]) -> None:
    """On 500 texts of many scripts and lengths the cosines to sentence-transformers in float32 pass the gates."""
    parts = pair.packed(precision)
    rows = np.concatenate(
        [
            parts.model.forward(parts.tokenizer.encode(TEXTS[first : first + 10], Truncation.END).batch)
            for first in range(0, len(TEXTS), 10)
        ]
    ).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows * pair.expected).sum(axis=1)
    lowest_mean, lowest_min = GATES[precision]
    assert cosines.mean() >= lowest_mean
    assert cosines.min() >= lowest_min
    if precision == "f32":
        assert np.abs(rows - pair.expected).max() <= 1e-6


def test_tokens_are_those_of_the_library(pair: Pair) -> None:
    """Each text has the library's tokens: limit, special tokens and truncation."""
    parts = pair.packed("f32")
    assert parts.tokenizer.max_tokens == pair.library.max_seq_length
    batch = parts.tokenizer.encode(TEXTS, Truncation.END).batch
    ours = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
    for text, ids in zip(TEXTS, ours, strict=True):
        features = pair.library.preprocess([text])
        assert features["input_ids"][0].tolist() == ids.tolist(), text[:50]
