"""The arguments of an embed of any size, beside those that it shares with an embed."""

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from isogloss._arguments.checks import count, refusal, seconds, type_name

AnyTexts = Iterable[str] | AsyncIterable[str]

Source = TypeVar("Source", bound=AnyTexts)

LONGEST_S = 1e7  # 115 days; more overflows what waits are counted in


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkArguments:
    """How an embed of any size is cut and sent.

    Attributes:
        chunk_texts: The most texts of a chunk.
        window_chunks: The most chunks that are held at a time, from reading their texts to giving them out.
        patience_s: Seconds of waiting without any answer before giving up.
    """

    chunk_texts: int
    window_chunks: int
    patience_s: float


def bulk_arguments(*, chunk_texts: int, window_chunks: int, patience_s: float) -> BulkArguments:
    """Returns the arguments, checked; raises InvalidArgumentError, which names the first wrong one."""
    return BulkArguments(
        chunk_texts=count("chunk_texts", chunk_texts, "BAD_CHUNK", least=1),
        window_chunks=count("window_chunks", window_chunks, "BAD_WINDOW", least=1),
        patience_s=min(seconds("patience_s", patience_s, LONGEST_S), LONGEST_S),
    )


def many_texts(value: Source, *kinds: type) -> Source:
    """Returns `value`; raises InvalidArgumentError, reason NOT_A_LIST, unless it is an iterable of one of `kinds`."""
    if isinstance(value, str | bytes) or not isinstance(value, kinds):
        raise refusal("texts", f"must be an iterable of str, not a single {type_name(value)}", "NOT_A_LIST")
    return value
