"""A file mapped into memory: pages are read when touched, shared between processes, and can be given back."""

import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """The bytes of a file, uint8 [size], which are never written to it."""

    def __init__(self, file: Path) -> None:
        """Maps the file; raises OSError where it cannot be read, ValueError where it is empty."""
        with file.open("rb") as stream:
            # Copy on write: OpenVINO takes writable memory alone, and nobody writes.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def give_back(self) -> None:
        """Takes the pages out of this process's memory; what is touched again comes back by itself."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)
