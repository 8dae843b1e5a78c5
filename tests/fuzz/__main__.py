"""Both fuzzers, one after the other, for half of the seconds each; prints how many were tried, and what came of them.

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
    """Runs one fuzzer; returns whether it found nothing."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        command = [sys.executable, "-m", f"tests.fuzz.{name}", str(seconds), str(counts), *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        told = Counter(json.loads(counts.read_text())) if counts.exists() else Counter()
    print(f"{name}: {told.pop('tried', 0)} inputs in {seconds} s, status {done.returncode}")
    for reason, times in told.most_common():
        print(f"  {times:9} {reason}")
    if done.returncode:
        print(done.stdout.decode(errors="backslashreplace")[-4000:])
    return done.returncode == 0


def fuzz_server(seconds: int) -> bool:
    """Fuzzes a real server; returns whether nothing was found and it is as it was."""
    with ServerProcess("--no-access-log") as server:
        observer = Observer(server)
        fuzz("fuzz_server", 5, server.address)  # warms up what is kept for good
        observer.check_freed(before := observer.held())
        well = fuzz("fuzz_server", seconds, server.address)
        observer.check_answers()
        observer.check_freed(before)
        print(f"the server before: {before}\nand after:         {observer.held()}")
        observer.close()
        return well and server.process.poll() is None


def main() -> int:
    """Returns the exit status: 0 where nothing was found."""
    half = max(1, int(sys.argv[1]) // 2)
    found_nothing = [fuzz("fuzz_requests", half), fuzz_server(half)]
    return 0 if all(found_nothing) else 1


if __name__ == "__main__":
    sys.exit(main())
