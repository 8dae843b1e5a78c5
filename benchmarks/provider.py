"""Workload `provider`: a thousand texts through a provider's API, compared with the provider's SDK.

    python -m benchmarks --work provider [--rounds N] [--json FILE]

Each system has a fake provider of its own (drivers/fake_provider.py), which responds after LATENCY_S. Each round starts
all systems on core 1 and alternates between them call by call. The fake providers and the caller of the service run on
core 0.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks import environments, report, workloads
from benchmarks.measure import DriverClient, LoadError, Pinning, driver_ready, load_generator
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.workloads import Workload

LATENCY_S = 0.2
MODEL = "embed-multilingual-v3.0"
TEXTS_PER_CALL = 96  # the limit of Cohere
CALLS_IN_FLIGHT = 8  # the server's default
WORKLOAD = Workload(
    name="provider",
    callers=1,
    texts_per_call=1_000,
    calls=10,
    warm_calls=2,
    max_sentences=8,
    description="one caller, 10 consecutive calls of Embed with a thousand texts",
)
OURS, SDK = "isogloss", "sdk-base64"
SYSTEMS = {
    OURS: "isogloss-server over gRPC, one Embed call with a thousand texts",
    SDK: "Cohere's SDK in process, concurrent requests, vectors as base64",
    "sdk-float": "Cohere's SDK in process, concurrent requests, vectors as lists of floats (the usual choice)",
}
LIMIT_S = 120.0

Sample = dict[str, float]


@contextmanager
def _provider(pinning: Pinning) -> Iterator[RunningProcess]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        command = [_python(), "-m", "benchmarks.drivers.fake_provider", str(file), str(LATENCY_S)]
        with started(command, port_in(file), cores=pinning.load_cores, cwd=environments.ROOT) as running:
            yield running


def _python() -> str:
    return str(environments.python(environments.OWN))


def _figures(provider: RunningProcess) -> dict[str, int]:
    """Returns the counters of the fake provider since the last call, and resets them."""
    with urlopen(f"http://{provider.address}/figures", timeout=LIMIT_S) as response:
        figures: dict[str, int] = json.load(response)
    return figures


@contextmanager
def _ours(url: str, pinning: Pinning) -> Iterator[tuple[RunningProcess, DriverClient]]:
    """Runs isogloss-server and a load generator."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        serve = ("-m", "isogloss_server", "serve", "--model", f"cohere:{MODEL}@{url}", "--no-access-log")
        flags = ("--max-texts", str(WORKLOAD.texts_per_call), "--port", "0", "--port-file", str(file))
        command = [_python(), *serve, *flags]
        key = {"CO_API_KEY": "key"}
        with (
            started(command, port_in(file), cores=pinning.server_cores, variables=pinning.variables() | key) as server,
            load_generator("grpc", server.address, pinning) as driver,
        ):
            yield server, driver


@contextmanager
def _sdk(url: str, kind: str, pinning: Pinning) -> Iterator[tuple[RunningProcess, DriverClient]]:
    """Runs the SDK in a process of its own."""
    limits = (str(TEXTS_PER_CALL), str(CALLS_IN_FLIGHT), kind)
    command = [_python(), "-m", "benchmarks.peers.cohere_sdk", url, MODEL, *limits]
    variables = pinning.variables()
    with started(
        command, driver_ready, cores=pinning.server_cores, variables=variables, cwd=environments.ROOT, pipes=True
    ) as running:
        yield running, DriverClient(running.process)


class LiveSystem:
    """A running system and the times of its calls.

    Args:
        provider: The fake provider of the system.
        running: The process whose processor time counts.
        driver: Makes the calls.
    """

    def __init__(self, provider: RunningProcess, running: RunningProcess, driver: DriverClient) -> None:
        self._provider, self._running, self._driver = provider, running, driver
        self.vectors = driver.vectors(workloads.probes())
        self.latencies_ms: list[float] = []
        self._before_s = 0.0

    def start_measuring(self) -> None:
        """Resets all counters."""
        _figures(self._provider)
        self.latencies_ms.clear()
        self._before_s = self._running.cpu_s()

    def call(self, texts: Sequence[str]) -> None:
        """Makes one call.

        Raises:
            LoadError: The call failed.
        """
        self._driver.prepare([texts], WORKLOAD.callers)
        result = self._driver.run(LIMIT_S)
        if result.errors:
            raise LoadError(result.first_error)
        self.latencies_ms += result.latencies_ms

    def sample(self) -> Sample:
        """Returns the figures of one call since `start_measuring`."""
        cpu_s, counters = self._running.cpu_s() - self._before_s, _figures(self._provider)
        calls = len(self.latencies_ms)
        return {
            "wall_ms": statistics.median(self.latencies_ms),
            "cpu_ms": cpu_s * 1000 / calls,
            "provider_calls": counters["calls"] / calls,
            "provider_texts": counters["texts"] / calls,
            "most_in_flight": counters["most_in_flight"],
        }


@contextmanager
def _live(name: str, pinning: Pinning) -> Iterator[LiveSystem]:
    with _provider(pinning) as provider:
        url = f"http://{provider.address}"
        system = _ours(url, pinning) if name == OURS else _sdk(url, name.removeprefix("sdk-"), pinning)
        with system as (running, driver):
            yield LiveSystem(provider, running, driver)


def measure_round(pinning: Pinning) -> dict[str, Sample]:
    """Returns the figures of each system in one round, which alternates between the systems call by call.

    Raises:
        StartError: A system does not start.
        LoadError: A call failed.
        SystemExit: The vectors of the systems differ.
    """
    warm, measured = workloads.calls(WORKLOAD)
    with ExitStack() as stack:
        systems = {name: stack.enter_context(_live(name, pinning)) for name in SYSTEMS}
        agreement = report.agreement({name: system.vectors for name, system in systems.items()})
        if min(agreement.values()) < report.MIN_AGREEMENT:
            raise SystemExit("the vectors of the systems differ")
        for texts in warm:
            for system in systems.values():
                system.call(texts)
        for system in systems.values():
            system.start_measuring()
        for texts in measured:
            for system in systems.values():
                system.call(texts)
        return {name: system.sample() for name, system in systems.items()}


def assemble(rounds: Sequence[dict[str, Sample]]) -> dict[str, Any]:
    """Returns the report of all rounds: figures, and overheads within each round."""
    calls = -(-WORKLOAD.texts_per_call // TEXTS_PER_CALL)
    ideal_ms = -(-calls // CALLS_IN_FLIGHT) * LATENCY_S * 1000
    overhead_ms = [samples[OURS]["wall_ms"] - samples[SDK]["wall_ms"] for samples in rounds]
    return {
        "work": WORKLOAD.name,
        "rounds": len(rounds),
        "ideal": {"provider_calls": calls, "wall_ms": ideal_ms},
        "systems": {
            name: {figure: report.spread([samples[name][figure] for samples in rounds]) for figure in rounds[0][name]}
            for name in rounds[0]
        },
        "overhead": {
            "to_sdk": report.spread(
                [ms / samples[SDK]["wall_ms"] for ms, samples in zip(overhead_ms, rounds, strict=True)]
            ),
            "of_providers_time": report.spread([ms / ideal_ms for ms in overhead_ms]),
            "ms": report.spread(overhead_ms),
        },
        "load": {
            "description": WORKLOAD.description,
            "latency_ms": LATENCY_S * 1000,
            "texts_per_call": TEXTS_PER_CALL,
            "calls_in_flight": CALLS_IN_FLIGHT,
        },
        "descriptions": SYSTEMS,
        "machine": report.machine() | {"load_average": os.getloadavg()[0]},
    }


def run(rounds: int, pinning: Pinning) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report; raises the errors of measure_round."""
    return assemble([measure_round(pinning) for _ in range(rounds)])
