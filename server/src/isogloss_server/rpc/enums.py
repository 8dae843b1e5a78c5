"""The contract's enum numbers <-> the engine's words: one frozen table for each enum."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from isogloss.v1 import embedding_pb2 as pb

from isogloss_server.engine.similarity import Metric
from isogloss_server.engine.vectors import ElementType
from isogloss_server.errors import UnknownEnumError
from isogloss_server.models.base import Priority, Role, State, Truncation

E = TypeVar("E", bound=Enum | None)


@dataclass(frozen=True)
class EnumTable(Generic[E]):
    """The words of one enum by their number; number 0 stands for the default, None where that is the model's."""

    words: Mapping[int, E]

    def read(self, number: int, path: str) -> E:
        """Returns the word of a number.

        Raises:
            UnknownEnumError: the contract has no such number.
        """
        if number not in self.words:
            known = ", ".join(str(known) for known in self.words)
            raise UnknownEnumError(f"{number} is none of {known}", field=path, actual=number, known=known)
        return self.words[number]

    def write(self, word: E) -> Any:
        """Returns the number of a word."""
        # The default has number 0 besides its own; its own is told.
        return max(number for number, known in self.words.items() if known is word)


INPUT_TYPES = EnumTable(
    {
        pb.INPUT_TYPE_UNSPECIFIED: Role.SIMILARITY,
        pb.INPUT_TYPE_SIMILARITY: Role.SIMILARITY,
        pb.INPUT_TYPE_QUERY: Role.QUERY,
        pb.INPUT_TYPE_DOCUMENT: Role.DOCUMENT,
        pb.INPUT_TYPE_CLASSIFICATION: Role.CLASSIFICATION,
        pb.INPUT_TYPE_CLUSTERING: Role.CLUSTERING,
    }
)
TRUNCATIONS: EnumTable[Truncation | None] = EnumTable(
    {
        pb.TRUNCATION_UNSPECIFIED: None,
        pb.TRUNCATION_END: Truncation.END,
        pb.TRUNCATION_START: Truncation.START,
        pb.TRUNCATION_ERROR: Truncation.ERROR,
    }
)
PRIORITIES = EnumTable(
    {
        pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
        pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
        pb.PRIORITY_BULK: Priority.BULK,
    }
)
ELEMENT_TYPES = EnumTable(
    {
        pb.ELEMENT_TYPE_UNSPECIFIED: ElementType.FLOAT32,
        pb.ELEMENT_TYPE_FLOAT32: ElementType.FLOAT32,
        pb.ELEMENT_TYPE_FLOAT16: ElementType.FLOAT16,
        pb.ELEMENT_TYPE_INT8: ElementType.INT8,
        pb.ELEMENT_TYPE_UINT8: ElementType.UINT8,
        pb.ELEMENT_TYPE_UBINARY: ElementType.UBINARY,
        pb.ELEMENT_TYPE_BINARY: ElementType.BINARY,
    }
)
METRICS = EnumTable(
    {
        pb.METRIC_UNSPECIFIED: Metric.COSINE,
        pb.METRIC_COSINE: Metric.COSINE,
        pb.METRIC_DOT: Metric.DOT,
        pb.METRIC_EUCLIDEAN: Metric.EUCLIDEAN,
        pb.METRIC_MANHATTAN: Metric.MANHATTAN,
    }
)
SERVING_STATUSES = EnumTable(
    {
        pb.SERVING_STATUS_SERVING: State.SERVING,
        pb.SERVING_STATUS_DEGRADED: State.DEGRADED,
        pb.SERVING_STATUS_STARTING: State.STARTING,
        pb.SERVING_STATUS_NOT_SERVING: State.NOT_SERVING,
    }
)
