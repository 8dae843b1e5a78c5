"""Fuzzing of a real server: changed requests to every RPC, and bytes of no kind on its port.

A code that may not be is a finding; whether the server lives, and what it holds, is asked by who started it.
"""

import sys

import atheris

with atheris.instrument_imports(include=["tests.fuzz.fuzz_caller"]):  # all that there is here to be guided by
    from tests.fuzz.fuzz_caller import Caller

from tests.fuzz.libfuzzer import Counts, run
from tests.fuzz.seeds import METHODS
from tests.support.raw_http2 import END_HEADERS, HEADERS, PREFACE, SETTINGS, RawCaller, call_headers, frame

CALL = PREFACE + frame(SETTINGS) + frame(HEADERS, call_headers("Embed"), flags=END_HEADERS, stream=1)
BEFORE = {"port": b"", "port, after the preface": PREFACE, "port, in a call": CALL}


class Target:
    """A server, on the other side of a socket."""

    def __init__(self, address: str, counts: Counts) -> None:
        self._address = address
        self._counts = counts
        self._caller = Caller(address)
        self._methods = list(METHODS.items())

    def one(self, data: bytes) -> None:
        """Sends one request, whose first byte says where."""
        self._counts.add("tried")
        if not data:
            return
        place, said = data[0] % 32, data[1:]
        if place < len(BEFORE):
            name = list(BEFORE)[place]
            with RawCaller(self._address, greet=False) as raw:
                raw.send(BEFORE[name] + said)
                raw.end_saying()
                raw.read_to_end()
            self._counts.add(name)
        else:
            name, method = self._methods[place % len(self._methods)]
            self._counts.add(f"{name}: {self._caller.call(method, said)}")


if __name__ == "__main__":
    target = Target(sys.argv[3], Counts(sys.argv[2]))
    count = len(METHODS)
    seeds = [
        bytes([place + count]) + seed.SerializeToString()
        for place, method in enumerate(METHODS.values())
        for seed in method.seeds
    ]
    methods = list(METHODS.values())
    kinds = [methods[(place % 32) % count].request for place in range(32)]
    run(target.one, seeds, kinds, seconds=int(sys.argv[1]))
