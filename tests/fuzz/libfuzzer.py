"""Setup of libFuzzer, and counts in a file, because libFuzzer ends the process itself."""

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris
from google.protobuf.message import Message

from tests.fuzz.mutation import mutate

MAX_INPUT_BYTES = 4096
TIMEOUT_S = 30


class Counts:
    """Counts by name, written to a file."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Increments a count."""
        self._counts[name] += 1
        if name == "tried" and self._counts[name] % 500 == 0:
            self._file.write_text(json.dumps(self._counts))


def run(one: Callable[[bytes], None], seeds: Sequence[bytes], kinds: list[type[Message]], *, seconds: int) -> None:
    """Calls `one` with mutated inputs for `seconds`, and ends the process; the status is not 0 after a finding."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, seed in enumerate(seeds):
        (folder / str(number)).write_bytes(seed)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        return mutate(data, max_size, kinds, random.Random(seed))

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-timeout={TIMEOUT_S}",
        f"-artifact_prefix={folder}/finding-",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=mutator)
    atheris.Fuzz()
