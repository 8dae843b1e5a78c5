"""What a caller gives -> frozen, checked values. What only a server can judge is left to the server."""

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
from isogloss._arguments.checks import refusal, seconds, string
from isogloss._arguments.sides import GivenSide, GivenTexts, Side, Sides, TextSide, sides, texts

__all__ = [
    "AllPairs",
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
    "compare_arguments",
    "embed_arguments",
    "nearest_shape",
    "refusal",
    "seconds",
    "sides",
    "string",
    "texts",
]
