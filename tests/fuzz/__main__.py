"""Runs both fuzzers in sequence, for half of the seconds each; prints the numbers of inputs and of outcomes.

python -m tests.fuzz SECONDS
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

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


def fuzz_server(seconds: int) -> bool:
    """Fuzzes a real server; returns whether there was no finding and the server runs without leaked resources."""
    with ServerProcess("--no-access-log") as server:
        observer = Observer(server)
        fuzz("fuzz_server", 5, server.address)  # allocates what the server keeps permanently
        observer.check_freed(before := observer.held())
        passed = fuzz("fuzz_server", seconds, server.address)
        observer.check_answers()
        observer.check_freed(before)
        print(f"the server before: {before}\nand after:         {observer.held()}")
        observer.close()
        return passed and server.process.poll() is None


def main() -> int:
    """Returns the exit status: 0 without a finding."""
    half = max(1, int(sys.argv[1]) // 2)
    passed = [fuzz("fuzz_requests", half), fuzz_server(half)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
