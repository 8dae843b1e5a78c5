"""Memory-mapped files: pages are read on access, shared between processes, and can be released."""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from isogloss_server.errors import ModelFilesError, UnsupportedModelError

BFLOAT16 = "BF16"  # not a dtype of numpy: read as 16 bits, which are the upper half of a float32's
DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, BFLOAT16: np.uint16}


class MappedFile:
    """The bytes of a memory-mapped file.

    Attributes:
        data: uint8 [size].
    """

    def __init__(self, file: Path) -> None:
        """Maps a file; raises OSError if it cannot be read, ValueError if it is empty."""
        with file.open("rb") as stream:
            # Copy on write, since OpenVINO requires writable memory, though it never writes.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.data: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def release_pages(self) -> None:
        """Releases the pages from this process's memory; they are read again on access."""
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every system
            self._map.madvise(mmap.MADV_DONTNEED)


class Tensor:
    """A tensor of a memory-mapped file. Its numbers are converted to float32 on access."""

    def __init__(self, stored: NDArray[Any], dtype: str) -> None:
        self._stored = stored
        self._dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each axis."""
        return self._stored.shape

    def rows(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Returns a copy of rows, float32 [*indices.shape, *shape[1:]]."""
        return self._to_float32(self._stored[indices])

    def whole(self) -> NDArray[np.float32]:
        """Returns the whole tensor, float32 [*shape]: the mapped pages if the file has float32, else a copy."""
        return self._to_float32(self._stored)

    def _to_float32(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if self._dtype == BFLOAT16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


class Tensors:
    """The tensors of one safetensors file, by name."""

    def __init__(self, file: Path, prefixes: tuple[str, ...] = ()) -> None:
        """Maps a file, and reads its header (https://github.com/huggingface/safetensors#format).

        Args:
            file: The file.
            prefixes: Removed from names that start with one of them: those of a model that is part of a larger one.

        Raises:
            ModelFilesError: The file is missing or damaged.
        """
        self._file = file
        try:
            with safe_open(file, framework="numpy"):  # compares the header with the length of the file
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
            if entry["dtype"] in DTYPES:  # others, such as position ids in files of old versions, are not used
                stored = data[first + begin : first + end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
                self._tensors[bare] = Tensor(stored, entry["dtype"])

    def release_pages(self) -> None:
        """Releases the file's pages from this process's memory; they are read again on access."""
        self._mapped.release_pages()

    def get(self, name: str, *shape: int) -> Tensor:
        """Returns a tensor.

        Args:
            name: Its name, without a prefix.
            shape: The shape that it must have.

        Raises:
            UnsupportedModelError: The file has no such tensor of floats with 16 or 32 bits.
            ModelFilesError: The tensor has another shape.
        """
        if name not in self._tensors:
            raise UnsupportedModelError(f"{self._file} has no tensor {name} of type {', '.join(DTYPES)}")
        tensor = self._tensors[name]
        if tensor.shape != shape:
            raise ModelFilesError(f"{self._file}: {name} has shape {tensor.shape} instead of {shape}")
        return tensor
