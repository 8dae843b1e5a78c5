"""Output of the commands: text or JSON on standard output, and vectors in .npy files."""

import argparse
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from isogloss.cli.arguments import UsageError

CONTROLS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories of Unicode


@dataclass(frozen=True, slots=True)
class Output:
    """A stream, and the form of what is printed to it.

    Attributes:
        stream: Where to print.
        colour: True prints colours.
        as_json: True prints JSON instead of tables.
        columns: Width of the terminal; None if the stream is not a terminal.
    """

    stream: TextIO
    colour: bool
    as_json: bool
    columns: int | None

    @classmethod
    def of(cls, stream: TextIO, arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Output":
        """Returns the output for --json and --color; "auto" prints colours to a terminal that supports them."""
        terminal = stream.isatty()
        plain = environment.get("TERM") == "dumb" or bool(environment.get("NO_COLOR"))
        colour = arguments.color == "always" or (arguments.color == "auto" and terminal and not plain)
        return cls(stream, colour, arguments.json, shutil.get_terminal_size().columns if terminal else None)

    def show(self, data: Mapping[str, Any], table: Callable[[], str]) -> None:
        """Prints `data` as one JSON object, or the text that `table` returns."""
        if self.as_json:
            self.line(data)
        else:
            self.stream.write(table())

    def line(self, data: Mapping[str, Any]) -> None:
        """Prints `data` as one line of JSON; characters that control a terminal are escapes of JSON."""
        text = json.dumps(data, ensure_ascii=False, default=_to_json)
        controls = {ord(c): json.dumps(c)[1:-1] for c in set(text) if unicodedata.category(c) in CONTROLS}
        controls[0x7F] = "\\u007f"  # the only one that ASCII has and json does not escape
        self.stream.write(f"{text.translate(controls)}\n")


def _to_json(value: Any) -> Any:
    """Converts values that json does not support."""
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


class NpyFile:
    """Writes float32 [n, d] to a file, row by row; the file appears when it is complete.

    Rows are written to a temporary file beside `path`. It replaces `path` if the `with` block ends without an
    exception, and is removed otherwise.

    Raises:
        UsageError: `path` exists and is not a regular file.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        if self._path.exists() and not self._path.is_file():
            raise UsageError(f"--npy: {path} is not a regular file")
        self._partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            self._file = self._partial.open("xb")
        except OSError as error:  # names `path`, not the temporary file
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None
        self._rows_at = 0
        self.shape = (0, 0)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Writes float32 [n, d] after the rows so far."""
        count, columns = rows.shape
        if not self._rows_at:
            self.shape = (0, columns)
            self._rows_at = self._write_header()
        if columns != self.shape[1]:
            raise ValueError(f"rows have {columns} columns, but the rows before them have {self.shape[1]}")
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
        # numpy reserves space in the header for a larger number of rows.
        if self._write_header() != self._rows_at:
            raise OSError(f"{self._path}: the header for {self.shape[0]} rows exceeds the space reserved for it")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write_header(self) -> int:
        npy.write_array_header_1_0(self._file, {"descr": "<f4", "fortran_order": False, "shape": self.shape})
        return self._file.tell()
