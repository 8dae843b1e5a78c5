"""Fuzzing of a real server: altered requests to every RPC, and arbitrary bytes on its port.

An unexpected status code is a finding. __main__ checks that the server runs and has freed its resources.
"""

import sys

import atheris

with atheris.instrument_imports(
    include=["tests.fuzz.fuzz_caller"]
):  # the only code of this process to take coverage from
    from tests.fuzz.fuzz_caller import Caller

from tests.fuzz.libfuzzer import Counts, run
from tests.fuzz.seeds import METHODS
from tests.support.raw_http2 import END_HEADERS, HEADERS, PREFACE, SETTINGS, RawCaller, call_headers, frame

CALL = PREFACE + frame(SETTINGS) + frame(HEADERS, call_headers("Embed"), flags=END_HEADERS, stream=1)
PREFIXES = {"port": b"", "port, after preface": PREFACE, "port, in a call": CALL}


class Target:
    """A real server."""

    def __init__(self, address: str, counts: Counts) -> None:
        self._address = address
        self._counts = counts
        self._caller = Caller(address)
        self._methods = list(METHODS.items())

    def one(self, data: bytes) -> None:
        """Sends one request; its first byte selects an RPC or the port."""
        self._counts.add("tried")
        if not data:
            return
        selector, payload = data[0] % 32, data[1:]
        if selector < len(PREFIXES):
            name = list(PREFIXES)[selector]
            with RawCaller(self._address, preface=False) as raw:
                raw.send(PREFIXES[name] + payload)
                raw.half_close()
                raw.read_to_end()
            self._counts.add(name)
        else:
            name, method = self._methods[selector % len(self._methods)]
            self._counts.add(f"{name}: {self._caller.call(method, payload)}")


if __name__ == "__main__":
    target = Target(sys.argv[3], Counts(sys.argv[2]))
    count = len(METHODS)
    seeds = [
        bytes([selector + count]) + seed.SerializeToString()
        for selector, method in enumerate(METHODS.values())
        for seed in method.seeds
    ]
    methods = list(METHODS.values())
    kinds = [methods[(selector % 32) % count].request for selector in range(32)]
    run(target.one, seeds, kinds, seconds=int(sys.argv[1]))
