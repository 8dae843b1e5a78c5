"""Workload `overhead`: the processor time of TLS, keys, quotas, metrics, traces and the log of calls, on against off.

    python -m benchmarks --work overhead [--model MODEL] [--rounds PAIRS] [--json FILE]

Two servers with the same model run on one core. The load alternates between them, a pair of slices at a time, so
that other load on the machine affects both. Ratios are on / off within a pair. drivers/overhead.py generates the
load on another core.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import trustme

from benchmarks import models
from benchmarks.keys import create_key
from benchmarks.measure import DriverClient, Pinning, start_driver
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine, spread

KINDS = {"calls": 256, "singles": 1}  # texts of a call
LIMITS = {"calls": 1.03, "singles": 1.10}  # of processor time a text, on / off
SLICE_SECONDS, WARM_SECONDS = 2.0, 4.0
SAMPLED_SHARE = "0.01"  # of calls whose trace is exported, as the guide for operators recommends
QUOTA = 10**9  # a minute: counted, and never exceeded
OFF = ("--no-access-log",)


@contextmanager
def _load(pinning: Pinning, *arguments: object) -> Iterator[DriverClient]:
    """Runs the driver of one server until the block ends."""
    process = start_driver("overhead", pinning, *arguments)
    try:
        yield DriverClient(process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _collector() -> Iterator[str]:
    """Runs a collector of traces that drops them; yields its URL."""
    export = grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")  # an empty ExportTraceServiceResponse
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": export}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def _server(
    model: str, pinning: Pinning, folder: Path, name: str, flags: Sequence[str], **variables: str
) -> Iterator[RunningProcess]:
    port_file = folder / f"{name}-port"
    serve = ("-m", "isogloss_server", "serve", "--port", "0", "--port-file", str(port_file))
    command = [sys.executable, *serve, "--model", model, "--cache-bytes", "0", *flags]
    with started(command, port_in(port_file), cores=pinning.server_cores, variables=variables) as running:
        yield running


def _on_flags(folder: Path) -> tuple[str, ...]:
    """Writes a certificate and a key; returns the flags that switch everything on."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued.private_key_pem.write_to_path(str(folder / "server.key"))
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(str(folder / "server.pem"), append=number > 0)
    quota = ("--texts-per-minute", str(QUOTA), "--tokens-per-minute", str(QUOTA), "--calls", "1000")
    (folder / "key").write_text(create_key("caller", folder / "keys", *quota), encoding="ascii")
    tls = ("--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))
    return (*tls, "--keys-file", str(folder / "keys"), "--metrics-port", "0", "--tracing")


def run(model: models.Model, pairs: int, pinning: Pinning) -> dict[str, Any]:
    """Measures `pairs` pairs and returns the report."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": stack.enter_context(_collector()),
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": SAMPLED_SHARE,
        }
        on_flags = _on_flags(folder)
        servers = {
            "off": stack.enter_context(_server(f"{model.name}={model.folder}", pinning, folder, "off", OFF)),
            "on": stack.enter_context(
                _server(f"{model.name}={model.folder}", pinning, folder, "on", on_flags, **variables)
            ),
        }
        loads = {
            "off": stack.enter_context(_load(pinning, servers["off"].address)),
            "on": stack.enter_context(_load(pinning, servers["on"].address, folder / "ca.pem", folder / "key")),
        }

        def cpu_us(name: str, seconds: float, kind: str) -> float:
            """Returns the processor time of a text in microseconds."""
            before_s = servers[name].cpu_s()
            texts = loads[name].request({"seconds": seconds, "texts_per_call": KINDS[kind]})["texts"]
            return (servers[name].cpu_s() - before_s) / texts * 1e6

        for kind in KINDS:
            for name in servers:
                cpu_us(name, WARM_SECONDS, kind)
        rounds = [
            {f"{kind}_{name}": cpu_us(name, SLICE_SECONDS, kind) for kind in KINDS for name in servers}
            for _ in range(pairs)
        ]
    return {"model": model.name, **assemble(rounds)}


def assemble(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns the report: processor time of a text in microseconds, and the ratios within pairs."""
    ratios = {kind: [result[f"{kind}_on"] / result[f"{kind}_off"] for result in rounds] for kind in KINDS}
    return {
        "work": "overhead",
        "pairs": len(rounds),
        "figures": {f"{name}_cpu_us": spread([result[name] for result in rounds]) for name in rounds[0]},
        "ratios": {kind: spread(values) for kind, values in ratios.items()},
        "limits": LIMITS,
        "sampled_share": SAMPLED_SHARE,
        "machine": machine(),
    }
