"""A thousand texts through a provider's API, beside the provider's own SDK driven by hand.

    python -m benchmarks --work provider [--rounds N] [--json FILE]

The provider is a stand-in that answers each call after LATENCY_S (drivers/fake_provider.py), one for each system. In every
round the systems are started afresh and take turns call by call, on core 1; the stand-ins, and who calls our service,
are on core 0.
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
from benchmarks.compare import machine
from benchmarks.measure import Lines, LoadError, Pinning, said_ready
from benchmarks.processes import Running, port_in, started
from benchmarks.workloads import Workload

LATENCY_S = 0.2
MODEL = "embed-multilingual-v3.0"
TEXTS_PER_CALL = 96  # that Cohere takes
CALLS_IN_FLIGHT = 8  # the server's default
WORK = Workload(
    name="provider",
    callers=1,
    texts_per_call=1_000,
    calls=10,
    warm_calls=2,
    max_sentences=8,
    says="one caller, a thousand texts in one Embed, 10 calls one after the other",
)
OURS, SDK = "isogloss", "sdk-base64"
SYSTEMS = {
    OURS: "isogloss-server over gRPC, one Embed of a thousand texts",
    SDK: "Cohere's SDK in process, calls gathered, vectors as base64",
    "sdk-float": "the same with lists of floats, which is how the SDK is mostly used",
}
LIMIT_S = 120.0

Sample = dict[str, float]


@contextmanager
def _provider(pinning: Pinning) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        command = [_python(), "-m", "benchmarks.drivers.fake_provider", str(file), str(LATENCY_S)]
        with started(command, port_in(file), cores=pinning.load_cores, folder=environments.ROOT) as running:
            yield running


def _python() -> str:
    return str(environments.python(environments.OWN))


def _figures(provider: Running) -> dict[str, int]:
    """Returns what the stand-in counted since it was last asked."""
    with urlopen(f"http://{provider.address}/figures", timeout=LIMIT_S) as answer:
        found: dict[str, int] = json.load(answer)
    return found


@contextmanager
def _ours(url: str, pinning: Pinning) -> Iterator[tuple[Running, Lines]]:
    """Runs the server, and a load generator that calls it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        flags = ("--max-texts", str(WORK.texts_per_call), "--port", "0", "--port-file", str(file), "--no-access-log")
        command = [_python(), "-m", "isogloss_server", "serve", "--model", f"cohere:{MODEL}@{url}", *flags]
        key = {"CO_API_KEY": "key"}
        load = [str(environments.python("load")), "-m", "benchmarks.drivers.load_generator", "grpc"]
        with (
            started(command, port_in(file), cores=pinning.server_cores, variables=pinning.variables() | key) as server,
            started(
                [*load, server.address], said_ready, cores=pinning.load_cores, folder=environments.ROOT, talks=True
            ) as caller,
        ):
            yield server, Lines(caller.process)


@contextmanager
def _sdk(url: str, kind: str, pinning: Pinning) -> Iterator[tuple[Running, Lines]]:
    """Runs the SDK in a process of its own."""
    terms = (str(TEXTS_PER_CALL), str(CALLS_IN_FLIGHT), kind)
    command = [_python(), "-m", "benchmarks.peers.cohere_sdk", url, MODEL, *terms]
    variables = pinning.variables()
    with started(
        command, said_ready, cores=pinning.server_cores, variables=variables, folder=environments.ROOT, talks=True
    ) as running:
        yield running, Lines(running.process)


class Live:
    """One system that runs, and what it has been timed at."""

    def __init__(self, provider: Running, running: Running, driver: Lines) -> None:
        """Takes its stand-in, the process whose time counts, and what makes the calls."""
        self._provider, self._running, self._driver = provider, running, driver
        self.vectors = driver.vectors(workloads.probes())
        self.walls_ms: list[float] = []
        self._before_s = 0.0

    def begin(self) -> None:
        """Counts from here on."""
        _figures(self._provider)
        self.walls_ms.clear()
        self._before_s = self._running.cpu_s()

    def call(self, texts: Sequence[str]) -> None:
        """Makes one call.

        Raises:
            LoadError: it failed.
        """
        self._driver.prepare([texts], WORK.callers)
        outcome = self._driver.run(LIMIT_S)
        if outcome.errors:
            raise LoadError(outcome.first_error)
        self.walls_ms += outcome.latencies_ms

    def sample(self) -> Sample:
        """Returns the figures since `begin`, of one call each."""
        cpu_s, counted, calls = self._running.cpu_s() - self._before_s, _figures(self._provider), len(self.walls_ms)
        return {
            "wall_ms": statistics.median(self.walls_ms),
            "cpu_ms": cpu_s * 1000 / calls,
            "provider_calls": counted["calls"] / calls,
            "provider_texts": counted["texts"] / calls,
            "most_in_flight": counted["most_in_flight"],
        }


@contextmanager
def _live(name: str, pinning: Pinning) -> Iterator[Live]:
    with _provider(pinning) as provider:
        url = f"http://{provider.address}"
        system = _ours(url, pinning) if name == OURS else _sdk(url, name.removeprefix("sdk-"), pinning)
        with system as (running, driver):
            yield Live(provider, running, driver)


def take_round(pinning: Pinning) -> dict[str, Sample]:
    """Returns each system's figures of one round, in which they take turns call by call.

    Raises:
        StartError: one does not start.
        LoadError: a call failed.
        SystemExit: the systems give different vectors.
    """
    warm, timed = workloads.calls(WORK)
    with ExitStack() as stack:
        systems = {name: stack.enter_context(_live(name, pinning)) for name in SYSTEMS}
        agreement = report.agreement({name: live.vectors for name, live in systems.items()})
        if min(agreement.values()) < report.LEAST_AGREEMENT:
            raise SystemExit("the systems give different vectors")
        for texts in warm:
            for live in systems.values():
                live.call(texts)
        for live in systems.values():
            live.begin()
        for texts in timed:
            for live in systems.values():
                live.call(texts)
        return {name: live.sample() for name, live in systems.items()}


def assemble(rounds: Sequence[dict[str, Sample]]) -> dict[str, Any]:
    """Returns the report of rounds: figures, and overheads taken within each round."""
    calls = -(-WORK.texts_per_call // TEXTS_PER_CALL)
    ideal_ms = -(-calls // CALLS_IN_FLIGHT) * LATENCY_S * 1000
    more_ms = [one[OURS]["wall_ms"] - one[SDK]["wall_ms"] for one in rounds]
    return {
        "work": WORK.name,
        "rounds": len(rounds),
        "ideal": {"provider_calls": calls, "wall_ms": ideal_ms},
        "systems": {
            name: {figure: report.spread([one[name][figure] for one in rounds]) for figure in rounds[0][name]}
            for name in rounds[0]
        },
        "overhead": {
            "to_sdk": report.spread([more / one[SDK]["wall_ms"] for more, one in zip(more_ms, rounds, strict=True)]),
            "of_providers_time": report.spread([more / ideal_ms for more in more_ms]),
            "ms": report.spread(more_ms),
        },
        "load": {
            "says": WORK.says,
            "latency_ms": LATENCY_S * 1000,
            "texts_per_call": TEXTS_PER_CALL,
            "calls_in_flight": CALLS_IN_FLIGHT,
        },
        "says": SYSTEMS,
        "machine": machine() | {"load_average": os.getloadavg()[0]},
    }


def run(rounds: int, pinning: Pinning) -> dict[str, Any]:
    """Returns the report of `rounds` rounds; raises what a round does."""
    return assemble([take_round(pinning) for _ in range(rounds)])
