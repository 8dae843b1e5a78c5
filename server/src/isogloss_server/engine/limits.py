"""What one request may ask for, and how large things are."""

from collections.abc import Sequence
from dataclasses import dataclass

from isogloss_server.engine.vectors import ElementType, bytes_per_row
from isogloss_server.errors import EmptyTextsError, RequestTooLargeError, ResponseTooLargeError, TooManyTextsError

# The most that parts of an answer take on the wire; a test holds them against real messages.
ROW_OVERHEAD_BYTES = 20  # of a row beside its numbers: token count, truncated row, scale
ROW_ERROR_BYTES = 240
RANKING_BYTES = 20  # of a query beside its neighbours
NEIGHBOR_BYTES = 9  # a row number and a score
DEFAULT_ANSWER_BYTES = 4 * 1024 * 1024 - 65_536  # what gRPC clients accept by default, less some room


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request of a model may ask for, as ListModels announces it."""

    max_texts: int
    max_request_bytes: int
    max_response_bytes: int
    max_pairs: int

    def check_texts(self, texts: Sequence[str], path: str) -> None:
        """Raises EmptyTextsError or TooManyTextsError where the request's list `path` is out of bounds."""
        if not texts:
            raise EmptyTextsError("at least one text is needed", field=path)
        if len(texts) > self.max_texts:
            message = f"{len(texts)} texts; one request may have {self.max_texts}"
            raise TooManyTextsError(message, field=path, actual=len(texts), limit=self.max_texts)

    def check_request_bytes(self, actual: int, path: str) -> None:
        """Raises RequestTooLargeError where the texts and vectors of a request are `actual` bytes, and too many."""
        if actual > self.max_request_bytes:
            message = f"{actual} bytes of texts and vectors; one request may have {self.max_request_bytes}"
            raise RequestTooLargeError(message, field=path, actual=actual, limit=self.max_request_bytes)

    def check_response_bytes(self, actual: int, path: str) -> None:
        """Raises ResponseTooLargeError where an answer of `actual` bytes would be too large."""
        if actual > self.max_response_bytes:
            message = f"the answer would have {actual} bytes; one response may have {self.max_response_bytes}"
            raise ResponseTooLargeError(message, field=path, actual=actual, limit=self.max_response_bytes)

    def check_pairs(self, actual: int) -> None:
        """Raises ResponseTooLargeError where `actual` pairs are too many for one Similarity."""
        if actual > self.max_pairs:
            message = f"{actual} pairs of a query and a candidate; one request may have {self.max_pairs}"
            raise ResponseTooLargeError(message, field="candidates", actual=actual, limit=self.max_pairs)


def default_max_texts(dimensions: int) -> int:
    """Returns how many texts' float32 vectors of that width fit the 4 MiB that gRPC clients accept by default."""
    return DEFAULT_ANSWER_BYTES // answer_bytes(1, dimensions, ElementType.FLOAT32, partial=True)


def answer_bytes(texts: int, columns: int, element_type: ElementType, *, partial: bool) -> int:
    """Returns the bytes that an answer to so many texts takes at most; `partial` where it may tell of failed rows."""
    overhead = ROW_OVERHEAD_BYTES + (ROW_ERROR_BYTES if partial else 0)
    return texts * (bytes_per_row(columns, element_type) + overhead)


def rankings_bytes(queries: int, neighbors: int) -> int:
    """Returns the bytes that so many neighbours for each query take at most."""
    return queries * (RANKING_BYTES + neighbors * NEIGHBOR_BYTES)


def utf8_bytes(texts: Sequence[str]) -> int:
    """Returns the bytes that `texts` take together in UTF-8."""
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)
