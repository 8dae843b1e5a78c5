"""Where a command prints, and how: for people or, with --json, for programs."""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from isogloss.cli.arguments import UsageError


@dataclass(frozen=True, slots=True)
class Output:
    """Where to print, and whether in colours and as JSON."""

    stream: TextIO
    colour: bool
    as_json: bool

    @classmethod
    def of(cls, stream: TextIO, arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Output":
        """Returns the output that the arguments ask for; by itself, colours go to a terminal that can show them."""
        dumb = environment.get("TERM") == "dumb" or bool(environment.get("NO_COLOR"))
        colour = arguments.color == "always" or (arguments.color == "auto" and stream.isatty() and not dumb)
        return cls(stream, colour, arguments.json)

    def show(self, data: Mapping[str, Any], readable: Callable[[], str]) -> None:
        """Prints `data` as one JSON object, or what `readable` makes for people."""
        if self.as_json:
            self.line(data)
        else:
            self.stream.write(readable())

    def line(self, data: Mapping[str, Any]) -> None:
        """Prints `data` as one line of JSON."""
        json.dump(data, self.stream, ensure_ascii=False, default=_plain)
        self.stream.write("\n")


def _plain(value: Any) -> Any:
    """Returns what json cannot write by itself as what it can."""
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


class NpyFile:
    """float32 [n, d] of a number of rows that shows only at the end.

    Rows go to a new file beside `path`, which takes the place of `path` where the `with` block ends without an
    exception, and is removed otherwise.

    Raises:
        UsageError: There is something at `path` that is no file, such as a folder or a device.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        if self._path.exists() and not self._path.is_file():
            raise UsageError(f"--npy: {path} is no file")
        self._partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        self._file = self._partial.open("xb")
        self._rows_at = 0
        self.shape = (0, 0)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Writes float32 [n, d] below what was written."""
        count, columns = rows.shape
        if not self._rows_at:
            self.shape = (0, columns)
            self._rows_at = self._header()
        if columns != self.shape[1]:
            raise ValueError(f"rows of {columns} numbers below rows of {self.shape[1]}")
        self._file.write(rows.astype("<f4", order="C", copy=False).tobytes())
        self.shape = (self.shape[0] + count, columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._finish()
            if kind is None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        self._file.seek(0)
        # numpy leaves room in the header for the number of rows to grow.
        if self._header() != self._rows_at:
            raise OSError(f"{self._path}: the header of {self.shape[0]} rows does not fit before them")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _header(self) -> int:
        npy.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": self.shape})
        return self._file.tell()
