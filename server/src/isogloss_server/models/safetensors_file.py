"""A file mapped into memory: pages are read when touched, shared between processes, and can be given back."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from isogloss_server.errors import ModelFilesError, UnsupportedModelError

BFLOAT16 = "BF16"  # which numpy has no dtype for: read as its 16 bits, the upper half of a float32's
DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, BFLOAT16: np.uint16}


class MappedFile:
    """The bytes of a file, uint8 [size], which are never written to it."""

    def __init__(self, file: Path) -> None:
        """Maps the file; raises OSError where it cannot be read, ValueError where it is empty."""
        with file.open("rb") as stream:
            # Copy on write: OpenVINO takes writable memory alone, and nobody writes.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def release_pages(self) -> None:
        """Takes the pages out of this process's memory; what is touched again comes back by itself."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)


class Tensor:
    """A tensor of a memory-mapped file; its numbers are float32 whatever the file keeps them in."""

    def __init__(self, stored: NDArray[Any], dtype: str) -> None:
        self._stored = stored
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes along its axes."""
        return self._stored.shape

    def rows(self, places: NDArray[np.integer]) -> NDArray[np.float32]:
        """Returns a copy of the rows at `places`, float32 [*places.shape, *row]."""
        return self._widened(self._stored[places])

    def whole(self) -> NDArray[np.float32]:
        """Returns all of it: the mapped pages themselves where the file keeps float32, else a copy."""
        return self._widened(self._stored)

    def _widened(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if self._dtype == BFLOAT16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


class Tensors:
    """The tensors of one file by name, without the prefix that names the model as a part of a larger one."""

    def __init__(self, file: Path, prefixes: tuple[str, ...] = ()) -> None:
        """Maps the file.

        Raises:
            ModelFilesError: it is damaged, or keeps its numbers in a type that is not served.
        """
        self._file = file
        try:
            with safe_open(file, framework="numpy"):  # holds the header against the file's length
                pass
            self._mapped = MappedFile(file)
        except (OSError, SafetensorError) as error:
            raise ModelFilesError(f"{file} is damaged: {error}") from error
        data = self._mapped.data
        first = 8 + int(data[:8].view("<u8")[0])
        header: dict[str, Any] = json.loads(bytes(data[8:first]))
        header.pop("__metadata__", None)
        self._tensors = {}
        for name, entry in header.items():
            bare = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
            begin, end = entry["data_offsets"]
            if entry["dtype"] in DTYPES:  # others, such as the positions that old versions stored, are never asked for
                stored = data[first + begin : first + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
                self._tensors[bare] = Tensor(stored, entry["dtype"])

    def release_pages(self) -> None:
        """Takes what was read of the file out of this process's memory; it comes back where it is read again."""
        self._mapped.release_pages()

    def get(self, name: str, *shape: int) -> Tensor:
        """Returns the tensor of that name, which must have that shape.

        Raises:
            UnsupportedModelError: there is none of that name with floats of 16 or 32 bits.
            ModelFilesError: it has another shape.
        """
        if name not in self._tensors:
            raise UnsupportedModelError(f"{self._file} has no tensor {name} of {', '.join(DTYPES)}")
        found = self._tensors[name]
        if found.shape != shape:
            raise ModelFilesError(f"{self._file}: {name} has shape {found.shape}, not {shape}")
        return found
