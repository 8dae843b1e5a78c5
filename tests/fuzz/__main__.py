"""Runs both fuzzers in sequence, for half of the seconds each; prints the numbers of inputs and of outcomes.

The fuzzer of a server runs for half of its time against one with keys.

python -m tests.fuzz SECONDS
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.keys import add_key, bearer
from tests.support.process_state import Observer
from tests.support.server_process import ServerProcess


def fuzz(name: str, seconds: int, *more: str) -> bool:
    """Runs one fuzzer; returns whether it had no finding."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        command = [sys.executable, "-m", f"tests.fuzz.{name}", str(seconds), str(counts), *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        outcomes = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
    print(f"{name}: {outcomes.pop('tried', 0)} inputs in {seconds} s, status {done.returncode}")
    for outcome, times in outcomes.most_common():
        print(f"  {times:9} {outcome}")
    if done.returncode:
        print(done.stdout.decode(errors="backslashreplace")[-4000:])
    return done.returncode == 0


def fuzz_server(seconds: int, *, keys: Path | None = None) -> bool:
    """Fuzzes a real server; returns whether there was no finding and the server runs without leaked resources.

    Args:
        seconds: Duration.
        keys: Keys file to create; None for a server without keys.
    """
    key = [] if keys is None else [add_key(keys)]
    flags = [] if keys is None else ["--keys-file", str(keys)]
    with ServerProcess("--no-access-log", *flags) as server:
        observer = Observer(server, bearer(*key) if key else ())
        fuzz("fuzz_server", 5, server.address, *key)  # allocates what the server keeps permanently
        observer.check_freed(before := observer.held())
        passed = fuzz("fuzz_server", seconds, server.address, *key)
        observer.check_answers()
        observer.check_freed(before)
        print(f"the server before: {before}\nand after:         {observer.held()}")
        observer.close()
        return passed and server.process.poll() is None


def main() -> int:
    """Returns the exit status: 0 without a finding."""
    half, quarter = (max(1, int(sys.argv[1]) // parts) for parts in (2, 4))
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        passed = [fuzz("fuzz_requests", half), fuzz_server(quarter), fuzz_server(quarter, keys=keys)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
