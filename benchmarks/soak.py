"""A server under mixed load for minutes: what it answers, what it holds, and whether that grows.

    python -m benchmarks --work soak [--minutes N] [--json FILE]

The server has the default settings but for a small cache, the multilingual shape and the bundled model. Two processes
load it (peers/soak.py): one is asked to stop now and then and started afresh, the other killed. soak_report.py says
what must hold.
"""

import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from isogloss import Client
from isogloss_server.models.model_folder import BUNDLED

from benchmarks import environments, models, soak_report
from benchmarks.compare import machine
from benchmarks.peers.soak_calls import KNOWN_TEXTS
from benchmarks.processes import Running, port_in, started
from benchmarks.soak_report import Sample, Soak, Told

CACHE_BYTES = 1 << 20  # full before the warm-up ends; a larger one would count as growth until it is
SAMPLE_EVERY_S = 2.0
# of each process of the load: how long one lives, and how it is ended
LIVES = ((20.0, signal.SIGKILL), (45.0, signal.SIGTERM))
LAST_CALLS_S = 120.0  # that a process which was asked to stop may take
FIRST_S = 10.0  # of load before all else, so that what is made with the first calls of each kind is there
REST_S = 5.0  # after the load, before what is left is counted
METRICS = {"isogloss_tasks": "tasks", "process_open_fds": "fds"}


class Soaked:
    """A server that is soaked, and where its metrics are."""

    def __init__(self, running: Running, metrics_port: int) -> None:
        self.running = running
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"

    def sample(self, at_s: float) -> Sample:
        """Returns what the process holds now."""
        with urllib.request.urlopen(self._url, timeout=30) as answer:  # noqa: S310 - of our own server
            lines = answer.read().decode("utf-8").splitlines()
        told = {
            METRICS[name]: float(value) for name, _, value in (line.partition(" ") for line in lines) if name in METRICS
        }
        return Sample(
            at_s=at_s,
            resident_mb=self.running.status("VmRSS") / 1024,
            anonymous_mb=self.running.status("RssAnon") / 1024,
            threads=self.running.status("Threads"),
            fds=int(told["fds"]),
            tasks=int(told["tasks"]),
        )


@contextmanager
def soaked_server(model: models.Measured) -> Iterator[Soaked]:
    """Runs isogloss-server with two models and a small cache until the block ends.

    Raises:
        StartError: it does not start.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        metrics_port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        command = [
            *(sys.executable, "-m", "isogloss_server", "serve", "--port", "0", "--port-file", str(file)),
            *("--model", f"{model.name}={model.folder}", "--model", BUNDLED, "--metrics-port", str(metrics_port)),
            *("--cache-bytes", str(CACHE_BYTES)),
        ]
        with started(command, port_in(file)) as running:
            yield Soaked(running, metrics_port)


def known_vectors(address: str) -> dict[str, str]:
    """Returns the bytes of the known texts' vectors of each model, alone in their call, as hexadecimal digits."""
    with Client(address) as client:
        names = [model.name for model in client.models()]
        return {name: client.embed(KNOWN_TEXTS, model=name).vectors.tobytes().hex() for name in names}


class Loader:
    """Keeps one process of the load alive until it is stopped, and ends it again and again."""

    def __init__(self, address: str, known: Mapping[str, str], life_s: float, how: signal.Signals) -> None:
        self.told: list[Told] = []
        self.lives = 0
        self.crashes: list[str] = []
        self._began_s = time.monotonic()
        self._life_s, self._how = life_s, how
        self._command = [sys.executable, "-m", "benchmarks.peers.soak", address]
        self._known = [f"{name}={digits}" for name, digits in known.items()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def stop(self) -> None:
        """Lets the last process finish its calls."""
        self._stop.set()
        self._thread.join()

    def _live(self) -> None:
        seeds = random.Random(self._life_s)  # noqa: S311 - nothing secret
        while not self._stop.is_set():
            self.lives += 1
            command = [*self._command, str(seeds.getrandbits(30)), *self._known]
            process = subprocess.Popen(command, cwd=environments.ROOT, stdout=subprocess.PIPE, text=True)
            reader = threading.Thread(target=self._read, args=(process,))
            reader.start()
            stopped = self._stop.wait(self._life_s)
            self._end(process, signal.SIGTERM if stopped else self._how)
            reader.join()

    def _end(self, process: "subprocess.Popen[str]", how: signal.Signals) -> None:
        process.send_signal(how)
        try:
            status = process.wait(LAST_CALLS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.crashes.append(f"a process of the load had a call without an end: {LAST_CALLS_S:.0f} s after SIGTERM")
            return
        if status not in {0, -signal.SIGKILL, -signal.SIGTERM}:  # the last: before it had made a call
            self.crashes.append(f"a process of the load ended with status {status}")

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout  # noqa: S101 - a pipe
        for line in process.stdout:
            with suppress(json.JSONDecodeError):  # the last line of one that was killed
                self.told.append(Told(at_s=time.monotonic() - self._began_s, **json.loads(line)))


def run(model: models.Measured, minutes: float) -> dict[str, Any]:
    """Returns the report of a soak of so many minutes."""
    with soaked_server(model) as server:
        address = server.running.address
        known = known_vectors(address)
        first = Loader(address, known, *LIVES[0])
        time.sleep(FIRST_S)
        first.stop()
        before = _at_rest(server)
        loaders = [Loader(address, known, life_s, how) for life_s, how in LIVES]
        try:
            samples = list(_sampled(server, minutes * 60))
        finally:
            for loader in loaders:
                loader.stop()
        seen = Soak(
            wanted_s=minutes * 60,
            samples=samples,
            told=[told for loader in loaders for told in loader.told],
            rests=(before, _at_rest(server)),
            crashes=[crash for loader in (first, *loaders) for crash in loader.crashes],
            same_vectors=known_vectors(address) == known,
        )
        cpu_s = server.running.cpu_s()
    return {
        "work": "soak",
        "model": model.name,
        "minutes": minutes,
        **soak_report.assemble(seen),
        "cpu_s": cpu_s,
        "lives": {how.name: loader.lives for loader, (_, how) in zip(loaders, LIVES, strict=True)},
        "machine": machine(),
    }


def _sampled(server: Soaked, seconds: float) -> Iterator[Sample]:
    """Yields samples for so long."""
    began_s = time.monotonic()
    while (at_s := time.monotonic() - began_s) < seconds:
        yield server.sample(at_s)
        time.sleep(SAMPLE_EVERY_S)


def _at_rest(server: Soaked) -> Sample:
    time.sleep(REST_S)
    return server.sample(0.0)
