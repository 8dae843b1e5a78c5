"""One pass of a model: what its rows must be, and what is done where memory does not suffice for them."""

import math

import numpy as np

from isogloss_server.engine.vitals import Vitals
from isogloss_server.errors import OutOfMemoryError
from isogloss_server.models.base import Model, Rows, TokenBatch


def forward(model: Model, batch: TokenBatch, dimensions: int) -> Rows:
    """Returns what a model gives for n texts, float32 [n, d], which may not be finite.

    Raises:
        ValueError: it gives something else.
    """
    rows = model.forward(batch)
    due = (len(batch.lengths), dimensions)
    if rows.shape != due or rows.dtype != np.float32:
        raise ValueError(f"the model gave {rows.dtype} {list(rows.shape)} where float32 {list(due)} was due")
    return rows


def not_finite() -> ValueError:
    """Returns the error of rows that are no vectors."""
    return ValueError("the model gave numbers that are not finite")


def out_of_memory() -> OutOfMemoryError:
    """Returns the error of a text that memory does not suffice for: to ask again would only fail again."""
    return OutOfMemoryError("memory does not suffice for one of the call's texts, alone", retry_after_s=math.inf)


class Direct:
    """A model without a queue: a call's texts are computed on the thread that asks."""

    def __init__(self, model: Model, dimensions: int, vitals: Vitals) -> None:
        self._model = model
        self._dimensions = dimensions
        self._vitals = vitals

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns finite rows float32 [n, d]; where memory does not suffice, computed in halves, down to one text.

        Raises:
            OutOfMemoryError: it does not suffice for one of the texts.
            ValueError: the model gives something else.
        """
        try:
            rows = self._finite(batch)
        except BaseException as error:
            self._vitals.failed(error)
            raise
        self._vitals.succeeded()
        return rows

    def _finite(self, batch: TokenBatch) -> Rows:
        rows = self._in_parts(batch)
        if not np.isfinite(rows).all():
            raise not_finite()
        return rows

    def _in_parts(self, batch: TokenBatch) -> Rows:
        try:
            return forward(self._model, batch, self._dimensions)
        except MemoryError:
            if len(batch.lengths) == 1:
                raise out_of_memory() from None
        # Only here, where the error no longer holds what the pass had in memory.
        middle = len(batch.lengths) // 2
        at = int(batch.lengths[:middle].sum())
        halves = (
            TokenBatch(batch.ids[:at], batch.lengths[:middle]),
            TokenBatch(batch.ids[at:], batch.lengths[middle:]),
        )
        return np.concatenate([self._in_parts(half) for half in halves])
