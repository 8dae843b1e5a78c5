"""The systems that the benchmarks compare, one row each."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.environments import OWN


class Kind(StrEnum):
    """The interface of a system."""

    SERVICE = "service"  # a server that writes its port to a file
    HTTP = "http"  # a server that takes its port as an argument and has /health
    LIBRARY = "library"  # a driver in the process of the library, see drivers/driver.py


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system; the runner fills in {model}, {name}, {port}, {port_file} and {threads} of its command."""

    name: str
    kind: Kind
    environment: str
    command: tuple[str, ...]  # arguments of the environment's Python
    protocol: str = ""  # of drivers/load_generator.py
    streamed_protocol: str = ""  # of streamed workloads, if the system has one for them
    needs_onnx: bool = False
    roofline: str = ""  # the precision of its matrix products
    description: str = ""


# Disable network access, and limit the threads: by default, torch and OpenMP start one for each core of the machine.
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "{threads}",
    "MKL_NUM_THREADS": "{threads}",
}


def _isogloss(precision: str, roofline: str) -> System:
    flags = "--precision {} --inference-threads {{threads}} --port 0 --port-file {{port_file}} --no-access-log"
    serve = ("-m", "isogloss_server", "serve", "--model", "{name}={model}")
    return System(
        name=f"isogloss-{precision}",
        kind=Kind.SERVICE,
        environment=OWN,
        command=(*serve, *flags.format(precision).split()),
        protocol="grpc",
        streamed_protocol="embed-many",
        roofline=roofline,
        description=f"isogloss-server, --precision {precision}",
    )


def _infinity(name: str, engine: str) -> System:
    program = ("-m", "benchmarks.peers.infinity", "v2", "--model-id", "{model}", "--served-model-name", "model")
    place = ("--host", "127.0.0.1", "--port", "{port}", "--device", "cpu", "--log-level", "warning")
    return System(
        name=name,
        kind=Kind.HTTP,
        environment="infinity",
        # By default, the ONNX engine pools by the first token, whatever the model's configuration.
        command=(*program, *place, "--engine", engine, "--pooling-method", "mean"),
        protocol="openai",
        needs_onnx=engine == "optimum",
        roofline="f32",
        description=f"Infinity 0.0.77 over HTTP, engine {engine}, base64 vectors, no access log",
    )


SYSTEMS = {
    system.name: system
    for system in (
        _isogloss("bf16", "bf16"),
        _isogloss("f32", "f32"),
        _infinity("infinity-torch", "torch"),
        _infinity("infinity-onnx", "optimum"),
        System(
            name="fastembed",
            kind=Kind.LIBRARY,
            environment="fastembed",
            command=("-m", "benchmarks.peers.fastembed", "{model}", "{threads}"),
            needs_onnx=True,
            roofline="f32",
            description="fastembed in process, one call at a time",
        ),
        System(
            name="sentence-transformers",
            kind=Kind.LIBRARY,
            environment="sentence-transformers",
            command=("-m", "benchmarks.peers.sentence_transformers", "{model}"),
            roofline="f32",
            description="sentence-transformers in process, one call at a time",
        ),
        System(
            name="naive",
            kind=Kind.SERVICE,
            environment="sentence-transformers",
            command=("-m", "benchmarks.peers.naive", "{model}", "{port_file}"),
            protocol="grpc",
            roofline="f32",
            description="grpc's thread-pool server that calls SentenceTransformer.encode",
        ),
        System(
            name="engine-bf16",
            kind=Kind.LIBRARY,
            environment=OWN,
            command=("-m", "benchmarks.drivers.engine", "{model}", "bf16", "{threads}"),
            roofline="bf16",
            description="the engine of isogloss-server in process: batch queue, tokenizer and model without gRPC",
        ),
    )
}
