"""The bundled model has the vectors of sentence-transformers for the same folder."""

import numpy as np
import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.models import model_folder, static

pytestmark = pytest.mark.sentence_transformers

TEXTS = [
    "Good morning",
    "¿Dónde está la estación de tren más cercana?",
    "おはようございます。今日は天気がいいですね。",
    "صباح الخير يا صديقي",
    "नमस्ते, आप कैसे हैं?",
    "Straße, naïve, ﬁne, ＦＵＬＬ ｗｉｄｔｈ, İstanbul",
    "e-mail: a.b@c.de 1,234.56 (50 %) — «quoted» … 👩‍👩‍👧‍👦",
    "\u200bzero\u200dwidth\ufeff \0 NUL",
    "x",
    "word " * 700,
    "ab" * 900,
]


def test_vectors_are_those_of_sentence_transformers() -> None:
    """With the table converted to float32 the difference is at most 1e-6, with and without unit length."""
    from sentence_transformers import SentenceTransformer

    folder = model_folder.locate(model_folder.BUNDLED)
    reference = SentenceTransformer(str(folder.path), device="cpu", local_files_only=True).float()
    parts = static.load(folder)
    rows = parts.model.forward(parts.tokenizer.encode(TEXTS, Truncation.END).batch)
    expected = reference.encode(TEXTS, normalize_embeddings=False)
    assert rows.dtype == expected.dtype == np.float32
    assert np.abs(rows - expected).max() <= 1e-6
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.abs(rows / lengths - reference.encode(TEXTS, normalize_embeddings=True)).max() <= 1e-6
