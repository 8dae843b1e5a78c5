"""The enums of enums.py <-> the numbers of the contract's enums: equal names, after the contract's prefix."""

from enum import StrEnum
from typing import Any, TypeVar

from isogloss.enums import ElementType, InputType, Metric, Priority, ServingStatus, Truncation
from isogloss.v1 import embedding_pb2 as pb

Word = TypeVar("Word", bound=StrEnum)

PREFIXES: dict[type[StrEnum], tuple[Any, str]] = {
    ElementType: (pb.ElementType, "ELEMENT_TYPE_"),
    InputType: (pb.InputType, "INPUT_TYPE_"),
    Metric: (pb.Metric, "METRIC_"),
    Priority: (pb.Priority, "PRIORITY_"),
    ServingStatus: (pb.ServingStatus, "SERVING_STATUS_"),
    Truncation: (pb.Truncation, "TRUNCATION_"),
}


def _numbers(kind: type[StrEnum]) -> dict[int, StrEnum]:
    enum, prefix = PREFIXES[kind]
    return {number: kind[name.removeprefix(prefix)] for name, number in enum.items() if number}


WORDS = {kind: _numbers(kind) for kind in PREFIXES}
# By kind, for words of two enums may be spelt alike, and then are equal.
NUMBERS = {kind: {word: number for number, word in words.items()} for kind, words in WORDS.items()}


def number(word: StrEnum | None) -> Any:
    """Returns the contract's number of `word`, 0 of None; Any, for each enum's numbers are a type of their own."""
    return 0 if word is None else NUMBERS[type(word)][word]


def known(kind: type[Word], value: int) -> Word | None:
    """Returns the word of the contract's number `value`, None where a newer server has one that is unknown here."""
    found = WORDS[kind].get(value)
    return found if isinstance(found, kind) else None
