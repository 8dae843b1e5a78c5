"""Pieces of Markdown for the generated pages."""

import re
from collections.abc import Iterable, Sequence

# What reads as a name of the code: snake_case, UPPER_CASE, and Message.field, with an index or without.
NAME = re.compile(r"(?<![\w`.-])(?:(?:\w+\.)*[A-Za-z0-9]+(?:_[A-Za-z0-9]+)+|[A-Z]\w+\.[a-z]\w*)(?:\[\w+\])?(?![\w-])")
BULLET = re.compile(r"^ *\* ")


def code(text: object) -> str:
    """Returns `text` as code; of a class, its name."""
    return f"`{text.__name__ if isinstance(text, type) else text}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; cells are Markdown, in which bars are escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def prose(text: str) -> str:
    """Returns plain text on one line as Markdown, in which names of the code are code, and nothing else is a sign."""
    words = " ".join(text.split())
    parts = words.split("`")  # what stands between backticks already is code
    parts[::2] = [_escaped(part) for part in parts[::2]]
    return "`".join(parts)


def paragraphs(comment: str) -> str:
    """Returns a comment of several lines as paragraphs and a list: a line that begins with a star is an item."""
    blocks: list[tuple[str, list[str]]] = []
    fresh = True
    for line in comment.splitlines():
        bullet = BULLET.match(line)
        if bullet:
            blocks.append(("- ", [line[bullet.end() :]]))
        elif line.strip() and fresh:
            blocks.append(("", [line]))
        elif line.strip():
            blocks[-1][1].append(line)
        fresh = not line.strip()
    text = ""
    for place, (mark, lines) in enumerate(blocks):
        tight = mark and place and blocks[place - 1][0]
        text += ("\n" if text and not tight else "") + mark + prose(" ".join(lines)) + "\n"
    return text


def anchor(heading: str) -> str:
    """Returns the fragment that a heading of one word is reached by."""
    return f"#{heading.lower()}"


def _escaped(text: str) -> str:
    pieces: list[str] = []
    end = 0
    for name in NAME.finditer(text):
        pieces += [_signs(text[end : name.start()]), code(name[0])]
        end = name.end()
    return "".join([*pieces, _signs(text[end:])])


def _signs(text: str) -> str:
    return re.sub(r"([*_\[\]])", r"\\\1", text.replace("<", "&lt;"))
