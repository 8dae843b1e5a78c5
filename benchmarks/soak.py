"""Workload `soak`: a server under mixed load for minutes; checks responses, and growth of memory and other resources.

    python -m benchmarks --work soak [--minutes N] [--json FILE]

The server has the default settings except for a small cache. It serves the multilingual shape and the bundled model.
Two load generators (drivers/soak.py) run at a time: one is terminated and restarted at intervals, the other is killed
and restarted. soak_report.py has the conditions for a pass.
"""

import collections
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from isogloss import Client
from isogloss_server.models.model_folder import BUNDLED

from benchmarks import environments, models, soak_report, workloads
from benchmarks.drivers.soak_calls import KNOWN_TEXTS
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine
from benchmarks.soak_report import LoadReport, Sample, SoakRun

CACHE_BYTES = 1 << 20  # fills up during the warm-up; a larger cache would count as growth
SAMPLE_INTERVAL_S = 2.0
# The lifetime of each load generator, and the signal that ends it.
LIFETIMES = ((20.0, signal.SIGKILL), (45.0, signal.SIGTERM))
TERMINATION_LIMIT_S = 120.0  # for a load generator to finish its calls after SIGTERM
PRELOAD_S = 10.0  # of load before the first sample, because first calls create lasting resources
# Calls before that, with up to about the tokens of a full batch: OpenVINO keeps memory for each number of tokens.
SIZING_CALLS, SIZING_CALLERS, SIZING_TEXTS, SIZING_LIMIT_S = 1_000, 4, 24, 300.0
IDLE_S = 5.0  # without load, before the samples at rest
TASKS_METRIC = "isogloss_tasks"


class SoakServer:
    """The server under test and its metrics."""

    def __init__(self, running: RunningProcess, metrics_port: int) -> None:
        self.running = running
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"

    def sample(self, at_s: float) -> Sample:
        """Returns the current memory, threads, file descriptors and asyncio tasks of the server."""
        with urllib.request.urlopen(self._url, timeout=30) as response:  # noqa: S310 - a loopback address
            metrics = dict(line.rpartition(" ")[::2] for line in response.read().decode("utf-8").splitlines())
        return Sample(
            at_s=at_s,
            resident_mb=self.running.resident_bytes() / 1024**2,
            anonymous_mb=self.running.anonymous_bytes() / 1024**2,
            threads=self.running.threads(),
            fds=self.running.fds(),
            tasks=int(float(metrics[TASKS_METRIC])),
        )


@contextmanager
def running_server(model: models.Model) -> Iterator[SoakServer]:
    """Runs isogloss-server with two models and a small cache until the block ends.

    Raises:
        StartError: The server does not start.
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
            yield SoakServer(running, metrics_port)


def known_vectors(address: str) -> dict[str, str]:
    """Returns the vectors of the known texts by model, from a call without other texts, as hexadecimal bytes."""
    with Client(address) as client:
        names = [model.name for model in client.models()]
        return {name: client.embed(KNOWN_TEXTS, model=name).vectors.tobytes().hex() for name in names}


def visit_sizes(address: str, model: models.Model) -> None:
    """Embeds requests of random sizes until batches of nearly all numbers of tokens have been computed."""
    texts, sizes = workloads.texts(workloads.WORKLOADS["batch"], 4_000), random.Random(0)  # noqa: S311 - not for cryptography
    requests = [sizes.sample(texts, sizes.randint(1, SIZING_TEXTS)) for _ in range(SIZING_CALLS)]
    with Client(address) as client, ThreadPoolExecutor(SIZING_CALLERS) as callers:
        embed = partial(client.embed, model=model.name, priority="interactive", timeout_s=SIZING_LIMIT_S)
        collections.deque(callers.map(embed, requests), maxlen=0)


class LoadSupervisor:
    """Runs one load generator at a time; ends and restarts it after each lifetime.

    Args:
        address: The address of the server.
        known: The result of known_vectors.
        lifetime_s: Seconds after which a load generator ends.
        end_signal: The signal that ends it.
    """

    def __init__(self, address: str, known: Mapping[str, str], lifetime_s: float, end_signal: signal.Signals) -> None:
        self.reports: list[LoadReport] = []
        self.starts = 0
        self.failures: list[str] = []
        self._start_s = time.monotonic()
        self._lifetime_s, self._end_signal = lifetime_s, end_signal
        self._command = [sys.executable, "-m", "benchmarks.drivers.soak", address]
        self._known = [f"{name}={digits}" for name, digits in known.items()]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def stop(self) -> None:
        """Terminates the load generator and waits until it has finished its calls."""
        self._stop.set()
        self._thread.join()

    def _supervise(self) -> None:
        seeds = random.Random(self._lifetime_s)  # noqa: S311 - not for cryptography
        while not self._stop.is_set():
            self.starts += 1
            command = [*self._command, str(seeds.getrandbits(30)), *self._known]
            process = subprocess.Popen(command, cwd=environments.ROOT, stdout=subprocess.PIPE, text=True)
            reader = threading.Thread(target=self._read, args=(process,))
            reader.start()
            stopped = self._stop.wait(self._lifetime_s)
            self._end(process, signal.SIGTERM if stopped else self._end_signal)
            reader.join()

    def _end(self, process: "subprocess.Popen[str]", end_signal: signal.Signals) -> None:
        process.send_signal(end_signal)
        try:
            status = process.wait(TERMINATION_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kinds = ", ".join(self.reports[-1].in_progress) if self.reports else "unknown"
            self.failures.append(f"did not end within {TERMINATION_LIMIT_S:.0f} s after SIGTERM: {kinds}")
            return
        if status not in {0, -signal.SIGKILL, -signal.SIGTERM}:  # -SIGTERM if it had not installed its handler yet
            self.failures.append(f"a load generator ended with status {status}")

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout  # noqa: S101 - started with a pipe
        for line in process.stdout:
            with suppress(json.JSONDecodeError):  # a killed process leaves an incomplete line
                self.reports.append(LoadReport(at_s=time.monotonic() - self._start_s, **json.loads(line)))


def run(model: models.Model, minutes: float) -> dict[str, Any]:
    """Loads a server for a number of minutes and returns the report."""
    with running_server(model) as server:
        address = server.running.address
        known = known_vectors(address)
        visit_sizes(address, model)
        preload = LoadSupervisor(address, known, *LIFETIMES[0])
        time.sleep(PRELOAD_S)
        preload.stop()
        before = _sample_at_rest(server)
        supervisors = [LoadSupervisor(address, known, *lifetime) for lifetime in LIFETIMES]
        try:
            samples = list(_samples(server, minutes * 60))
        finally:
            for supervisor in supervisors:
                supervisor.stop()
        soak_run = SoakRun(
            duration_s=minutes * 60,
            samples=samples,
            reports=[report for supervisor in supervisors for report in supervisor.reports],
            at_rest=(before, _sample_at_rest(server)),
            load_failures=[failure for supervisor in (preload, *supervisors) for failure in supervisor.failures],
            same_vectors=known_vectors(address) == known,
        )
        cpu_s = server.running.cpu_s()
    return {
        "work": "soak",
        "model": model.name,
        "minutes": minutes,
        **soak_report.assemble(soak_run),
        "cpu_s": cpu_s,
        "load_generators": {
            end_signal.name: supervisor.starts
            for supervisor, (_, end_signal) in zip(supervisors, LIFETIMES, strict=True)
        },
        "machine": machine(),
    }


def _samples(server: SoakServer, seconds: float) -> Iterator[Sample]:
    """Yields a sample every SAMPLE_INTERVAL_S for `seconds`."""
    start_s = time.monotonic()
    while (at_s := time.monotonic() - start_s) < seconds:
        yield server.sample(at_s)
        time.sleep(SAMPLE_INTERVAL_S)


def _sample_at_rest(server: SoakServer) -> Sample:
    time.sleep(IDLE_S)
    return server.sample(0.0)
