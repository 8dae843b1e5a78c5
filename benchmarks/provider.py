"""A thousand texts through a provider's API, beside the provider's own SDK driven by hand.

    python -m benchmarks --work provider [--rounds N] [--json FILE]

The provider is a stand-in that answers each call after LATENCY_S (peers/provider.py). Every round takes each system
once, in an order that rotates: the system on core 1; the stand-in, and who calls our service, on core 0.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks import environments, report, works
from benchmarks.compare import machine
from benchmarks.measure import Lines, LoadError, Pinning, said_ready
from benchmarks.processes import Running, port_in, started
from benchmarks.works import Work

LATENCY_S = 0.2
MODEL = "embed-multilingual-v3.0"
TEXTS_PER_CALL = 96  # that Cohere takes
CALLS_IN_FLIGHT = 8  # the server's default
WORK = Work(
    name="provider",
    callers=1,
    texts_per_call=1_000,
    calls=5,
    warm_calls=2,
    max_sentences=8,
    says="one caller, a thousand texts in one Embed, 5 calls one after the other",
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
        command = [_python(), "-m", "benchmarks.peers.provider", str(file), str(LATENCY_S)]
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
        load = [str(environments.python("load")), "-m", "benchmarks.load", "grpc"]
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


def measure(name: str, pinning: Pinning) -> tuple[Sample, list[list[float]]]:
    """Returns one round's figures of a system, and its vectors of works.probes().

    Raises:
        StartError: it does not start.
        LoadError: a call failed.
    """
    with _provider(pinning) as provider:
        url = f"http://{provider.address}"
        system = _ours(url, pinning) if name == OURS else _sdk(url, name.removeprefix("sdk-"), pinning)
        with system as (running, driver):
            vectors = driver.vectors(works.probes())
            warm, timed = works.calls(WORK)
            driver.prepare(warm, WORK.callers)
            driver.run(LIMIT_S)
            driver.prepare(timed, WORK.callers)
            _figures(provider)
            before_s = running.cpu_s()
            outcome = driver.run(LIMIT_S)
            cpu_s = running.cpu_s() - before_s
            counted = _figures(provider)
    if outcome.errors or outcome.texts != WORK.calls * WORK.texts_per_call:
        raise LoadError(outcome.first_error or "not all texts were answered")
    return {
        "wall_ms": statistics.median(outcome.latencies_ms),
        "cpu_ms": cpu_s * 1000 / WORK.calls,
        "provider_calls": counted["calls"] / WORK.calls,
        "provider_texts": counted["texts"] / WORK.calls,
        "most_in_flight": counted["most_in_flight"],
    }, vectors


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
    """Returns the report of `rounds` rounds.

    Raises:
        SystemExit: the systems give different vectors.
    """
    found: list[dict[str, Sample]] = []
    names = list(SYSTEMS)
    for number in range(rounds):
        place = number % len(names)
        samples, vectors = {}, {}
        for name in [*names[place:], *names[:place]]:
            samples[name], vectors[name] = measure(name, pinning)
        if min(report.agreement(vectors).values()) < report.LEAST_AGREEMENT:
            raise SystemExit("the systems give different vectors")
        found.append({name: samples[name] for name in names})
    return assemble(found)
