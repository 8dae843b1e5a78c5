"""What calls leave behind on the server that end otherwise than with an answer, of one version of grpcio or several.

    python -m benchmarks --work cancelled [--grpcio VERSION,...] [--calls N] [--json FILE]

The version that is installed gets two servers, ours with two models and grpc.aio alone (peers/sleeper.py), any other
the latter. Every kind of call is made in BLOCKS blocks. After each the server is let come to rest, and its heaps,
tasks, file descriptors and threads are read. What a call leaves is the slope of a line through the readings, the first
of them taken after a block to warm up.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isogloss_server.models.model_folder import BUNDLED

from benchmarks import environments, models
from benchmarks.compare import machine
from benchmarks.processes import Running, port_in, started
from benchmarks.soak_report import slope

# kind -> what it is; peers/cancelled.py makes them, and says more
KINDS = {
    "answered": "Embed, answered",
    "stream_answered": "EmbedStream, answered",
    "cancelled": "Embed, cancelled by its caller",
    "late": "Embed, past its deadline",
    "stream_cancelled": "EmbedStream, cancelled",
    "stream_late": "EmbedStream, past its deadline",
    "watch_cancelled": "Watch of grpc.health.v1, cancelled",
    "broken": "all three, the connection broken with ten of them in flight",
}
OURS = "isogloss-server"
SERVERS = {
    "grpc.aio alone": "benchmarks.peers.sleeper --port-file {port_file}",
    OURS: "benchmarks.peers.watched serve --model {bundled} --model {name}={folder} --cache-bytes 0 "
    "--no-access-log --metrics-port 0 --port 0 --port-file {port_file}",
}
BLOCKS = 5
REST_LIMIT_S = 20.0
REST_EVERY_S = 0.25
INSTALLED = "installed"


def grpcio(version: str) -> dict[str, str]:
    """Returns the variables that let a Python import a version of grpcio instead of its own; made where it is missing.

    Raises:
        subprocess.CalledProcessError: pip cannot install it.
    """
    if version == INSTALLED:
        return {}
    folder = environments.MADE / f"grpcio-{version}"
    if not (folder / "grpc").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", str(folder), f"grpcio=={version}"], check=True)
    return {"PYTHONPATH": ":".join((str(folder), *filter(None, sys.path)))}


class Watched:
    """A server under peers/watched.py."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def reading(self) -> dict[str, Any]:
        """Returns what the server holds once it has come to rest: its tasks no fewer the second time."""
        ends_s = time.monotonic() + REST_LIMIT_S
        last = self._ask()
        while time.monotonic() < ends_s:
            time.sleep(REST_EVERY_S)
            now = self._ask()
            if now["tasks"] >= last["tasks"] and now["fds"] >= last["fds"]:
                break
            last = now
        return {
            **now,
            "anonymous_kb": self.running.status("RssAnon"),
            "threads": self.running.status("Threads"),
        }

    def _ask(self) -> dict[str, Any]:
        pipe, answers = self.running.process.stdin, self.running.process.stdout
        assert pipe  # noqa: S101 - started with talks=True
        assert answers  # noqa: S101
        pipe.write("\n")
        pipe.flush()
        found: dict[str, Any] = json.loads(answers.readline())
        return found


@contextmanager
def watched_server(version: str, which: str) -> Iterator[Watched]:
    """Runs one of SERVERS on a version of grpcio.

    Raises:
        StartError: it does not start.
    """
    multilingual = models.find(models.MULTILINGUAL)
    known = {"name": multilingual.name, "folder": multilingual.folder, "bundled": BUNDLED}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        arguments = [part.format(**known, port_file=file) for part in SERVERS[which].split()]
        command = [sys.executable, "-m", *arguments]
        with started(
            command, port_in(file), variables=grpcio(version), folder=environments.ROOT, talks=True
        ) as running:
            yield Watched(running)


def measure(server: Watched, kind: str, block_calls: int) -> dict[str, Any]:
    """Returns what calls of one kind leave on a server, of BLOCKS blocks."""
    ends: dict[str, int] = {}
    _block(server, kind, block_calls)
    readings = [server.reading()]
    for _ in range(BLOCKS):
        for code, count in _block(server, kind, block_calls).items():
            ends[code] = ends.get(code, 0) + count
        readings.append(server.reading())
    return {"says": KINDS[kind], "ends": ends, **left_behind(readings, block_calls), "readings": readings}


def _block(server: Watched, kind: str, calls: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.peers.cancelled", server.running.address, kind, str(calls)]
    done = subprocess.run(command, cwd=environments.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def left_behind(readings: Sequence[Mapping[str, Any]], block_calls: int) -> dict[str, float]:
    """Returns from readings a block apart what a call leaves in bytes or blocks, and by how much the rest has grown."""
    calls = [block * block_calls for block in range(len(readings))]
    return {
        **{
            f"{name}_per_call": slope(calls, [one[name] for one in readings])
            for name in ("c_bytes", "python_blocks", "python_objects")
        },
        "anonymous_bytes_per_call": slope(calls, [one["anonymous_kb"] * 1024 for one in readings]),
        **{f"{name}_grown": readings[-1][name] - readings[0][name] for name in ("tasks", "fds", "threads")},
    }


def run(versions: Sequence[str], calls: int) -> dict[str, Any]:
    """Returns the report: of each version and server, what so many calls of each kind leave."""
    found: dict[str, Any] = {}
    for version, which in itertools.product(versions, SERVERS):
        if which == OURS and version != INSTALLED:
            continue
        with watched_server(version, which) as server:
            told = f"{which}, grpcio {server.reading()['grpcio']}"
            found[told] = {}
            for kind in KINDS:
                found[told][kind] = measure(server, kind, calls // BLOCKS)
                print(f"{told}: {kind}", file=sys.stderr)
            print(table(told, found[told]), flush=True)
    return {
        "work": "cancelled",
        "servers": found,
        "load": {"calls": calls, "blocks": BLOCKS},
        "machine": machine(),
    }


def table(server: str, kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one server's figures as a Markdown table."""
    memory_of = "C heap, bytes a call | Python, blocks a call | resident, bytes a call"
    lines = [f"| {server} | {memory_of} | tasks | files | threads |", "|---|---|---|---|---|---|---|"]
    for one in kinds.values():
        memory = f"{one['c_bytes_per_call']:.0f} | {one['python_blocks_per_call']:.2f}"
        grown = f"{one['tasks_grown']:+} | {one['fds_grown']:+} | {one['threads_grown']:+}"
        lines.append(f"| {one['says']} | {memory} | {one['anonymous_bytes_per_call']:.0f} | {grown} |")
    return "\n".join(lines)
