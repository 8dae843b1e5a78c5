"""What a caller gives -> frozen, checked values. What only a server can judge is left to the server."""

from isogloss._arguments.bulk import AnyTexts, BulkArguments, bulk_arguments, many_texts
from isogloss._arguments.calls import (
    AllPairs,
    CompareArguments,
    EmbedArguments,
    Nearest,
    Pairwise,
    Shape,
    compare_arguments,
    embed_arguments,
    nearest_shape,
)
from isogloss._arguments.checks import refusal, seconds, string, utf8_bytes
from isogloss._arguments.sides import GivenSide, GivenTexts, Side, Sides, TextSide, both_sides, sides, texts

__all__ = [
    "AllPairs",
    "AnyTexts",
    "BulkArguments",
    "CompareArguments",
    "EmbedArguments",
    "GivenSide",
    "GivenTexts",
    "Nearest",
    "Pairwise",
    "Shape",
    "Side",
    "Sides",
    "TextSide",
    "both_sides",
    "bulk_arguments",
    "compare_arguments",
    "embed_arguments",
    "many_texts",
    "nearest_shape",
    "refusal",
    "seconds",
    "sides",
    "string",
    "texts",
    "utf8_bytes",
]
