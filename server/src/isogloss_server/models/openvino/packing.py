"""Where the rows of a packed batch go for attention, in few shapes.

OpenVINO prepares itself anew, for milliseconds and with memory, for each shape that it has not seen, and it computes a
text's attention in the same steps in any company only where the longest text's length is a multiple of LANES. So
every size is rounded up to one of a few; what is added is masked, and its results are thrown away.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LANES = 16  # float32 numbers that the processor's widest registers hold
MASKED = np.float32(-1e9)  # added to a score that must not count: its exponential is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Inputs of the graph beside the embeddings, for n texts of t tokens, both rounded up."""

    side_by_side: NDArray[np.int32]  # [n, longest]: the row of each place
    end_to_end: NDArray[np.int32]  # [t]: the place of each row
    mask: NDArray[np.float32]  # [n, 1, 1, longest]: 0, or MASKED beyond a text's end


def pack(lengths: NDArray[np.int64]) -> Packing:
    """Returns the packing of texts of these lengths, int64 [n], each at least 1."""
    texts, longest = text_steps(len(lengths)), length_steps(int(lengths.max()))
    starts = np.cumsum(lengths) - lengths
    offsets = np.arange(longest)
    inside = offsets < lengths[:, None]
    side_by_side = np.zeros((texts, longest), dtype=np.int32)
    side_by_side[: len(lengths)] = np.where(inside, starts[:, None] + offsets, 0)
    mask = np.zeros((texts, 1, 1, longest), dtype=np.float32)
    mask[: len(lengths), 0, 0] = np.where(inside, np.float32(0), MASKED)
    tokens = int(lengths.sum())
    end_to_end = np.zeros(token_steps(tokens), dtype=np.int32)
    end_to_end[:tokens] = np.flatnonzero(inside)
    return Packing(side_by_side=side_by_side, end_to_end=end_to_end, mask=mask)


def token_steps(tokens: int) -> int:
    """Returns the number of rows for so many tokens."""
    return -(-tokens // LANES) * LANES


@lru_cache(maxsize=4096)
def text_steps(texts: int) -> int:
    """Returns the number of places for so many texts: 1, 2, 3, 4, 6, 8, 12, 16, 24 ..."""
    power = 1 << (texts - 1).bit_length()
    return power * 3 // 4 if power >= 4 and texts <= power * 3 // 4 else power


@lru_cache(maxsize=4096)
def length_steps(longest: int) -> int:
    """Returns the number of places for a text so long: multiples of 16, from 128 on eight to each doubling."""
    step = max(LANES, (1 << (longest - 1).bit_length()) // 16)
    return -(-longest // step) * step
