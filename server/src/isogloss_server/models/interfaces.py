"""The seams between the engine and what computes vectors.

Letters of array shapes, here and everywhere: n texts, t tokens of all texts together, d dimensions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

import numpy as np
from isogloss.wire.enums import InputType, Priority, Truncation
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # [n, d]


class State(IntEnum):
    """How well a model serves; the greater the number, the worse."""

    SERVING = 1
    DEGRADED = 2
    STARTING = 3
    NOT_SERVING = 4


Report = Callable[[State, str], None]  # tells of a change: the state, and a line for people, empty where all is well


@dataclass(frozen=True, slots=True)
class Tolerance:
    """By how much a number of a vector may differ, as a share of the vector's length."""

    known: float  # from a known vector's
    batch_invariance: float  # from the same text's vector, alone or beside others


@dataclass(frozen=True, slots=True)
class Urgency:
    """How soon an answer is wanted; `deadline_s` is a moment of the clock, after which nobody wants it."""

    priority: Priority = Priority.INTERACTIVE
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens of n texts end to end, without padding: ids int32 [t], lengths int64 [n]."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


class Model(Protocol):
    """Token batches to vectors; called from worker threads, several at a time."""

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], a row a text, as the model itself scales them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model says of itself."""

    backend: str  # static, openvino, sentence-transformers, cohere, ...
    space_id: str  # fingerprint of the vector space
    dimensions: tuple[int, ...]  # that may be asked for, the model's own first
    max_tokens: int  # of one text
    revision: str = ""  # of the weights
    languages: tuple[str, ...] = ()  # BCP 47
    license: str = ""  # SPDX expression of the weights
    has_roles: bool = False
    truncations: tuple[Truncation, ...] = tuple(Truncation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What an Embedder gives for n texts; times are seconds."""

    rows: Rows  # [n, d], as the model scales them
    token_counts: NDArray[np.int64] | None  # [n], read after truncation; None where a provider does not tell
    truncated_rows: tuple[int, ...] = ()  # ascending
    total_tokens: int = 0
    cached_rows: int = 0  # of n, that were known already
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    def spread(self, places: Sequence[int], n: int) -> "Embedded":
        """Returns n rows: row i of these at places[i] (ascending), zeros elsewhere."""
        rows = np.zeros((n, self.rows.shape[1]), dtype=np.float32)
        rows[places] = self.rows
        counts = None
        if self.token_counts is not None:
            counts = np.zeros(n, dtype=np.int64)
            counts[places] = self.token_counts
        truncated = tuple(places[row] for row in self.truncated_rows)
        return replace(self, rows=rows, token_counts=counts, truncated_rows=truncated)


class Embedder(Protocol):
    """Texts to vectors, wherever they are computed."""

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        ...

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency
    ) -> Embedded:
        """Returns the vectors of `texts` (at least one, none of white space alone), in order.

        Raises:
            RowFaults: some texts cannot be embedded; all of them are named.
            DomainError: one of those that errors/ lists.
        """
        ...

    def close(self, wait_s: float = 0.0) -> None:
        """Takes no more texts, fails those that wait, and waits `wait_s` seconds at most for what runs to end."""
        ...
