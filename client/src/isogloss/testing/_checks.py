"""What a request may ask for: the contract's refusals, in the order in which the server finds them."""

from collections.abc import Sequence
from typing import TypeVar

from isogloss._messages.matrix import row_bytes
from isogloss._messages.words import WORDS, Word
from isogloss.enums import ElementType, Truncation
from isogloss.errors import FieldViolation, InvalidArgumentError, IsoglossError, NotFoundError, SpaceMismatchError
from isogloss.testing._errors import MAX_VIOLATIONS, refusal
from isogloss.testing._settings import Settings

Error = TypeVar("Error", bound=IsoglossError)

ROW_OVERHEAD_BYTES = 20  # of an answer's row beside its numbers, as the server counts it


def word(default: Word, number: int, path: str) -> Word:
    """Returns the word of an enum's number, `default` for 0; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    if number == 0:
        return default
    found = WORDS[type(default)].get(number)
    if not isinstance(found, type(default)):
        raise refusal("UNKNOWN_ENUM", f"the contract has no {number} here", path, actual=number)
    return found


def check_model(settings: Settings, name: str) -> None:
    """Raises NotFoundError where another model is asked for."""
    if name not in ("", settings.model):
        raise _at("model", NotFoundError(f"no such model; served is {settings.model}", reason="UNKNOWN_MODEL"))


def check_space(settings: Settings, space_id: str, path: str) -> None:
    """Raises SpaceMismatchError where `space_id` is not the model's."""
    if space_id != settings.space_id:
        message = f"the space is not the model's, which is {settings.space_id}"
        metadata = {"expected": settings.space_id}
        raise _at(path, SpaceMismatchError(message, reason="SPACE_MISMATCH", metadata=metadata))


def check_texts(settings: Settings, texts: Sequence[str], path: str) -> None:
    """Raises InvalidArgumentError where a list of texts is empty or too long."""
    if not texts:
        raise refusal("EMPTY_TEXTS", "at least one text is needed", path)
    _check("TOO_MANY_TEXTS", len(texts), settings.max_texts, "texts of one request", path)


def check_request_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError where the texts and vectors of a request are too large."""
    _check("REQUEST_TOO_LARGE", actual, settings.max_request_bytes, "bytes of texts and vectors of one request", path)


def check_response_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError where the answer would be too large."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_response_bytes, "bytes of one answer", path)


def check_pairs(settings: Settings, actual: int) -> None:
    """Raises InvalidArgumentError where too many pairs are to be compared."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_pairs, "pairs of one Similarity", "candidates")


def columns_of(settings: Settings, dimensions: int) -> int:
    """Returns the columns that `dimensions` stands for; raises InvalidArgumentError where they are not offered."""
    offered = settings.offered_dimensions
    if dimensions and dimensions not in offered:
        choice = ", ".join(map(str, offered))
        message = f"the model offers {choice} dimensions, not {dimensions}"
        raise refusal("UNSUPPORTED_DIMENSIONS", message, "dimensions", actual=dimensions, offered=choice)
    return dimensions or offered[0]


def answer_bytes(texts: int, columns: int, element_type: ElementType) -> int:
    """Returns the bytes that vectors take in an answer at most."""
    return texts * (row_bytes(element_type, columns) + ROW_OVERHEAD_BYTES)


def utf8_bytes(texts: Sequence[str]) -> int:
    """Returns the bytes that `texts` take."""
    return sum(len(text.encode()) for text in texts)


def text_faults(
    texts: Sequence[str], counts: Sequence[int], truncation: Truncation, max_tokens: int, path: str
) -> dict[int, InvalidArgumentError]:
    """Returns for each row that cannot be embedded what is wrong with its text."""
    faults = {}
    for row, count in enumerate(counts):
        if not texts[row].strip():
            found = ("EMPTY_TEXT", "the text is empty or white space alone")
        elif truncation is Truncation.ERROR and count > max_tokens:
            found = ("TEXT_TOO_LONG", f"the text has {count} tokens; the model reads {max_tokens}")
        else:
            continue
        faults[row] = refusal(*found, f"{path}[{row}]", index=row)
    return faults


def merged(faults: dict[int, InvalidArgumentError]) -> InvalidArgumentError:
    """Returns the first of `faults`, with the fields of all that have its reason."""
    first = faults[min(faults)]
    alike = [violation for fault in faults.values() if fault.reason == first.reason for violation in fault.violations]
    return first.replaced(first.message, violations=tuple(alike[:MAX_VIOLATIONS]))


def _check(reason: str, actual: int, limit: int, what: str, path: str) -> None:
    if actual > limit:
        raise refusal(reason, f"{actual} are more than the {limit} {what}", path, actual=actual, limit=limit)


def _at(path: str, error: Error) -> Error:
    return error.replaced(error.message, violations=(FieldViolation(path, error.message),))
