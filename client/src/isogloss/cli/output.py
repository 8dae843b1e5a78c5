"""Where a command prints, and how: for people or, with --json, for programs."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np


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
