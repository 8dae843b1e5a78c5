"""How wide a text is on a terminal, and how to make it as wide as a column."""

import unicodedata

ELLIPSIS = "…"
# Around a label with letters that run from right to left: keeps terminals that reorder text from moving the columns
# beside it. Both marks are invisible and take no column.
ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


def printable(text: str) -> str:
    """Returns `text` on one line, without characters that could command a terminal or reorder a line."""
    return "".join(_shown(character) for character in text)


def width(text: str) -> int:
    """Returns the columns that `text` takes: two for wide East Asian characters, none for marks that combine."""
    return sum(map(_columns, text))


def fitted(text: str, columns: int) -> str:
    """Returns `text` made exactly so wide: padded to the right, or cut with an ellipsis. It must be printable."""
    shown = text if width(text) <= columns else _cut(text, columns - 1) + ELLIPSIS
    return isolated(shown) + " " * (columns - width(shown))


def isolated(text: str) -> str:
    """Returns `text`, between invisible marks where it has letters that run from right to left."""
    if any(unicodedata.bidirectional(character) in {"R", "AL"} for character in text):
        return f"{ISOLATE}{text}{POP_ISOLATE}"
    return text


def _cut(text: str, columns: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:place]
    return text


def _columns(character: str) -> int:
    # U+1160 to U+11FF are the later parts of a Korean syllable, drawn onto the first.
    if unicodedata.category(character) in {"Mn", "Me", "Cf"} or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _shown(character: str) -> str:
    match unicodedata.category(character):
        case "Cc" | "Zl" | "Zp":
            return " "
        case "Cs":
            return "\ufffd"
        case "Cf":
            # Joiners shape Indic and Arabic letters and emoji; the others, marks of direction among them, are dropped.
            return character if character in "\u200c\u200d" else ""
        case _:
            return character
