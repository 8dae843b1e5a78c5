"""Tokenizers whose library panics, as it does for files that it does not expect."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

PANIC_LETTER = "q"


def change_normalizer(folder: Path, normalizer: dict[str, Any]) -> None:
    """Replaces the normalizer in a folder's tokenizer.json."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))


def panic_on_letter(folder: Path) -> None:
    """Makes the library panic on texts with PANIC_LETTER: a node of its map of characters leads out of the map.

    A node is 32 bits: the letter, bit 8 for a leaf, and from bit 10 the distance to the next node
    (https://github.com/huggingface/spm_precompiled).
    """
    nodes = [0] * 256
    nodes[ord(PANIC_LETTER)] = ord(PANIC_LETTER) | 1 << 8 | 5000 << 10
    trie = struct.pack("<256I", *nodes)
    characters_map = base64.b64encode(struct.pack("<I", len(trie)) + trie + b"\0").decode()
    change_normalizer(folder, {"type": "Precompiled", "precompiled_charsmap": characters_map})
