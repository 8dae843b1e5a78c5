"""How a row travels to servers beside this one: a head, then its float32 numbers, little-endian.

    format 1 byte | version 1 byte | flags 1 byte | 0 | width uint32 | tokens int32, -1 where unknown | crc32 uint32

The checksum is of the key, of the head before it, and of the numbers, so that a value is right under its own key alone.
A change of what any byte means is another version.
"""

import struct
from zlib import crc32

from isogloss_server.engine.cache.entries import Entry

FORMAT, VERSION = 0xE5, 1
TRUNCATED = 1  # the one flag
_HEAD = struct.Struct("<BBBxIi")
_CHECKSUM = struct.Struct("<I")
_ROW_AT = _HEAD.size + _CHECKSUM.size


def packed(key: bytes, entry: Entry) -> bytes:
    """Returns the value that stands for an entry."""
    row, tokens, truncated = entry
    head = _HEAD.pack(FORMAT, VERSION, TRUNCATED if truncated else 0, len(row) // 4, -1 if tokens is None else tokens)
    return b"".join((head, _CHECKSUM.pack(crc32(row, crc32(head, crc32(key)))), row))


def unpacked(key: bytes, value: bytes, width: int) -> Entry | None:
    """Returns the entry of `width` numbers that a value stands for, or None where it is not one of this version's."""
    if len(value) != _ROW_AT + 4 * width:
        return None
    head, row = value[: _HEAD.size], value[_ROW_AT:]
    kind, version, flags, columns, tokens = _HEAD.unpack(head)
    if (kind, version, columns) != (FORMAT, VERSION, width) or flags & ~TRUNCATED or tokens < -1:
        return None
    if _CHECKSUM.unpack_from(value, _HEAD.size)[0] != crc32(row, crc32(head, crc32(key))):
        return None
    return row, None if tokens < 0 else tokens, bool(flags & TRUNCATED)
