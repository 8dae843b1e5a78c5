"""Loads packed models and runs them without a server."""

from pathlib import Path
from typing import Literal

import numpy as np
from isogloss.wire.enums import Truncation
from isogloss_server.models import model_folder
from isogloss_server.models.cache_folder import open_cache
from isogloss_server.models.interfaces import Rows, TokenBatch
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.openvino import loader as packed

Precision = Literal["auto", "f32", "bf16"]


def load(folder: Path, precision: Precision = "auto", cache: Path | None = None) -> LoadedModel:
    """Returns the packed model of a folder, for one thread."""
    runtime = packed.Runtime(precision=precision, threads=1)
    return packed.load(model_folder.locate(str(folder), open_cache(cache)), runtime)


def tokenized(parts: LoadedModel, texts: list[str]) -> list[np.ndarray]:
    """Returns the tokens of each text."""
    batch = parts.tokenizer.encode(texts, Truncation.END).batch
    return np.split(batch.ids, np.cumsum(batch.lengths)[:-1])


def forward(parts: LoadedModel, ids: list[np.ndarray]) -> Rows:
    """Returns the vectors of texts that are given as tokens, float32 [n, d]."""
    return parts.model.forward(TokenBatch(np.concatenate(ids), np.array([len(text_ids) for text_ids in ids])))
