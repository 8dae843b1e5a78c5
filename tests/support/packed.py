"""Loads packed models and asks them, without what stands around them in a server."""

from pathlib import Path
from typing import Literal

import numpy as np
from isogloss_server.models import weights
from isogloss_server.models.base import Rows, TokenBatch, Truncation
from isogloss_server.models.openvino import load as packed
from isogloss_server.models.parts import Parts

Precision = Literal["auto", "f32", "bf16"]


def load(folder: Path, precision: Precision = "auto", cache: Path | None = None) -> Parts:
    """Returns a folder's packed model, for one thread."""
    runtime = packed.Runtime(precision=precision, threads=1, graph_cache=cache)
    return packed.load(weights.locate(str(folder)), runtime)


def tokenized(parts: Parts, some: list[str]) -> list[np.ndarray]:
    """Returns the tokens of each text."""
    batch = parts.tokens.encode(some, Truncation.END).batch
    return np.split(batch.ids, np.cumsum(batch.lengths)[:-1])


def forward(parts: Parts, ids: list[np.ndarray]) -> Rows:
    """Returns the vectors of texts given as tokens, float32 [n, d]."""
    return parts.model.forward(TokenBatch(np.concatenate(ids), np.array([len(one) for one in ids])))
