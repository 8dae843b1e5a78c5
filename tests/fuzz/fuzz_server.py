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

    def __init__(self, address: str, counts: Counts, key: str) -> None:
        """Takes the key of a caller, which is empty for a server without keys."""
        self._address = address
        self._counts = counts
        self._key = key
        self._caller = Caller(address, keys=bool(key))
        self._methods = list(METHODS.items())

    def one(self, data: bytes) -> None:
        """Sends one request; the low bits of its first byte select an RPC or the port, the high bits the key."""
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
            metadata = self._metadata(data[0] // 32, payload)
            self._counts.add(f"{name}: {self._caller.call(method, payload, metadata=metadata)}")

    def _metadata(self, selector: int, payload: bytes) -> list[tuple[str, str]]:
        """Returns the valid key, a damaged one, two, one made of the payload, or none."""
        if not self._key:
            return []
        text = payload[:100].hex() if selector % 2 else payload[:100].decode("ascii", "ignore")
        printable = "".join(character for character in text if " " <= character <= "~").strip()
        given = {
            5: [f"Bearer {self._key[:-1]}"],
            4: [f"Bearer {self._key}"] * 2,
            3: [printable],
            2: [f"Bearer isogloss_{printable}"],
            1: [],
        }
        return [("authorization", value) for value in given.get(selector, [f"Bearer {self._key}"])]


if __name__ == "__main__":
    target = Target(sys.argv[3], Counts(sys.argv[2]), sys.argv[4] if len(sys.argv) > 4 else "")
    count = len(METHODS)
    seeds = [
        bytes([selector + count]) + seed.SerializeToString()
        for selector, method in enumerate(METHODS.values())
        for seed in method.seeds
    ]
    methods = list(METHODS.values())
    kinds = [methods[(selector % 32) % count].request for selector in range(32)]
    run(target.one, seeds, kinds, seconds=int(sys.argv[1]))
