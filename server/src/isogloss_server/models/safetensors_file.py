"""The tensors in the bytes of a safetensors file, without copies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from isogloss_server.errors import ModelFilesError, UnsupportedModelError

BFLOAT16 = "BF16"  # not a dtype of numpy: read as 16 bits, which are the upper half of a float32's
DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, BFLOAT16: np.uint16, "F64": np.float64}
LENGTH_BYTES = 8  # of the length of the header, at the start of the file
METADATA = "__metadata__"

Natural = Annotated[int, Field(ge=0, strict=True)]


class _Entry(BaseModel):
    """A tensor in the header."""

    dtype: str
    shape: list[Natural]
    data_offsets: tuple[Natural, Natural]


HEADER = TypeAdapter(dict[str, _Entry | dict[str, str]])  # strings: the metadata


class Tensor:
    """A stored tensor. Its numbers are converted to float32 on access."""

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
        """Returns the whole tensor, float32 [*shape]: the bytes of the file if it has float32, else a copy."""
        return self._to_float32(self._stored)

    def _to_float32(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if self._dtype == BFLOAT16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


class Tensors:
    """The tensors of one safetensors file, by name.

    Attributes:
        names: All names in the file, in the order of its header.
    """

    def __init__(self, data: bytearray | memoryview, file: Path, prefixes: tuple[str, ...] = ()) -> None:
        """Reads the header (https://github.com/huggingface/safetensors#format).

        The library's own reader opens files by their path, and copies what it reads from bytes.

        Args:
            data: The content of the file.
            file: Its path, for errors.
            prefixes: Removed from names that start with one of them: those of a model that is part of a larger one.

        Raises:
            ModelFilesError: The file is damaged.
        """
        self._file = file
        content = np.frombuffer(data, dtype=np.uint8)
        try:
            first, header = _header(content)
            self.names = list(header)
            self._tensors = {}
            for name, entry in header.items():
                bare = next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)
                begin, end = entry.data_offsets
                if entry.dtype in DTYPES:  # others, such as position ids in files of old versions, are not used
                    stored = content[first + begin : first + end].view(DTYPES[entry.dtype]).reshape(entry.shape)
                    self._tensors[bare] = Tensor(stored, entry.dtype)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise ModelFilesError(f"{file} is damaged: its header: {where}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise ModelFilesError(f"{file} is damaged: {error}") from error

    def find(self, name: str) -> Tensor:
        """Returns a tensor of any shape.

        Raises:
            UnsupportedModelError: The file has no such tensor of floats with 16 to 64 bits.
        """
        if name not in self._tensors:
            raise UnsupportedModelError(f"{self._file} has no tensor {name} of type {', '.join(DTYPES)}")
        return self._tensors[name]

    def get(self, name: str, *shape: int) -> Tensor:
        """Returns a tensor.

        Args:
            name: Its name, without a prefix.
            shape: The shape that it must have.

        Raises:
            UnsupportedModelError: The file has no such tensor of floats with 16 to 64 bits.
            ModelFilesError: The tensor has another shape.
        """
        tensor = self.find(name)
        if tensor.shape != shape:
            raise ModelFilesError(f"{self._file}: {name} has shape {tensor.shape} instead of {shape}")
        return tensor


def _header(content: NDArray[np.uint8]) -> tuple[int, dict[str, _Entry]]:
    """Returns the place of the first byte after the header, and the entries of tensors; raises ValueError."""
    length = int(content[:LENGTH_BYTES].view("<u8")[0]) if len(content) > LENGTH_BYTES else 0
    first = LENGTH_BYTES + length
    if not 0 < length <= len(content) - LENGTH_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and the file {len(content):,}")
    header = HEADER.validate_json(content[LENGTH_BYTES:first].tobytes())
    entries = {name: entry for name, entry in header.items() if isinstance(entry, _Entry)}
    others = header.keys() - entries.keys() - {METADATA}
    if others:
        raise ValueError(f"its header has no shape for {min(others)}")
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if first + end != len(content):
        raise ValueError(f"it has {len(content):,} bytes, and its header describes {first + end:,}")
    return first, entries
