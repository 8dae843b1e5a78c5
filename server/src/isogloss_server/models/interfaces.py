"""Interfaces between the engine and the models.

Letters in array shapes, here and everywhere: n texts, t tokens of all texts together, d dimensions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from isogloss.wire.enums import InputType, Priority, Truncation
from numpy.typing import NDArray

from isogloss_server.errors import DomainError

Rows = NDArray[np.float32]  # [n, d]
# Returns the positions that a runtime computes for a batch of texts with these lengths, int64 [n], padding included.
Positions = Callable[[NDArray[np.int64]], int]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest deviation of a number of a vector, as a share of the vector's length.

    Attributes:
        known: From the known vector of the same text.
        batch_invariance: Between a text's vector alone and in a batch.
    """

    known: float
    batch_invariance: float


class Progress(Protocol):
    """Receives the progress of one request, so that admission knows the work that is left."""

    def tokenized(self, tokens: int, *, is_last: bool) -> None:
        """Records the tokens of a part of the texts of one call; `is_last` with its last part."""
        ...

    def computed(self, tokens: int) -> None:
        """Records tokens whose rows are computed; called from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Urgency:
    """Priority of a call, its deadline in seconds of the clock, the receiver of its progress, and its caller's name."""

    priority: Priority = Priority.INTERACTIVE
    deadline_s: float = math.inf
    progress: Progress | None = field(default=None, compare=False, repr=False)
    caller: str = ""  # unknown callers share as one


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The tokens of n texts end to end, without padding: ids int32 [t], lengths int64 [n]."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


def without_padding(lengths: NDArray[np.int64]) -> int:
    """Returns the tokens of a batch, for runtimes without padding; see Positions."""
    return int(lengths.sum())


class Model(Protocol):
    """Computes vectors of token batches; called from several worker threads at a time."""

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], one row for each text, as the model scales them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Description of a model."""

    backend: str  # static, openvino, sentence-transformers, cohere, ...
    space_id: str  # fingerprint of the vector space
    dimensions: tuple[int, ...]  # offered to callers, the model's own first
    max_tokens: int  # of one text
    revision: str = ""  # of the weights
    languages: tuple[str, ...] = ()  # BCP 47
    license: str = ""  # SPDX expression of the weights
    has_roles: bool = False
    has_token_counts: bool = True  # of single texts; providers report none
    truncations: tuple[Truncation, ...] = tuple(Truncation)
    texts_per_call: int = 0  # of one call to a provider; 0 for a local model


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Result of an Embedder for n texts.

    Attributes:
        rows: float32 [n, d], as the model scales them; zeros for a row error.
        token_counts: int64 [n], after truncation; None if a provider does not return them.
        truncated_rows: Rows whose texts were truncated, ascending.
        row_errors: The errors of texts that cannot be embedded, by row, ascending.
        total_tokens: Tokens of all texts, or those that a provider bills.
        cached_rows: Rows that were not computed for this call.
        tokenization_s: Seconds of tokenization.
        queue_s: Seconds that the texts waited.
        inference_s: Seconds of inference.
    """

    rows: Rows
    token_counts: NDArray[np.int64] | None
    truncated_rows: tuple[int, ...] = ()
    row_errors: Mapping[int, DomainError] = field(default_factory=dict)
    total_tokens: int = 0
    cached_rows: int = 0
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    @classmethod
    def failed(
        cls, n: int, dimensions: int, row_errors: Mapping[int, DomainError], *, tokenization_s: float = 0.0
    ) -> "Embedded":
        """Returns the result for n texts that were not computed, since some of them have errors."""
        return cls(
            rows=np.zeros((n, dimensions), np.float32),
            token_counts=np.zeros(n, np.int64),
            row_errors=row_errors,
            tokenization_s=tokenization_s,
        )

    def spread(self, places: Sequence[int], n: int, row_errors: Mapping[int, DomainError]) -> "Embedded":
        """Returns n rows: row i of these at places[i] (ascending), zeros and `row_errors` elsewhere."""
        rows = np.zeros((n, self.rows.shape[1]), dtype=np.float32)
        rows[places] = self.rows
        counts = None
        if self.token_counts is not None:
            counts = np.zeros(n, dtype=np.int64)
            counts[places] = self.token_counts
        errors = {**row_errors, **{places[row]: error for row, error in self.row_errors.items()}}
        return replace(
            self,
            rows=rows,
            token_counts=counts,
            truncated_rows=tuple(places[row] for row in self.truncated_rows),
            row_errors=dict(sorted(errors.items())),
        )


class Embedder(Protocol):
    """Embeds texts, whether locally or at a provider."""

    @property
    def card(self) -> ModelCard:
        """Description of the model."""
        ...

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns one row for each of `texts` (at least one, each with a character other than white space), in order.

        A text that cannot be embedded has a row error. Unless `allow_partial`, texts need not be computed once one of
        them has an error: the other rows are then undefined.

        Raises:
            DomainError: the call as a whole failed; see errors.py.
        """
        ...

    def close(self, wait_s: float = 0.0) -> None:
        """Accepts no more texts, fails those that wait, and waits at most `wait_s` seconds for running inference."""
        ...
