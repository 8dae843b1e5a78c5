"""The systems that are measured, a row each."""

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.environments import OWN


class Kind(StrEnum):
    """How a system is reached."""

    SERVICE = "service"  # writes its port to a file
    HTTP = "http"  # is told its port, answers /health
    LIBRARY = "library"  # drives itself, see driver.py


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system. In a command, {model}, {name}, {port}, {port_file} and {threads} stand for what the runner knows."""

    name: str
    kind: Kind
    environment: str
    command: tuple[str, ...]  # of the environment's Python
    protocol: str = ""  # of load.py
    streamed_protocol: str = ""  # the same for works that are streamed, where there is one
    needs_onnx: bool = False
    roofline: str = ""  # the precision that its products are computed in
    says: str = ""


# No system may call home, or run more threads than it has cores: unless told, torch and OpenMP take all of a machine.
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
        says=f"isogloss-server, --precision {precision}",
    )


def _infinity(name: str, engine: str) -> System:
    program = ("-m", "benchmarks.peers.infinity", "v2", "--model-id", "{model}", "--served-model-name", "model")
    place = ("--host", "127.0.0.1", "--port", "{port}", "--device", "cpu", "--log-level", "warning")
    return System(
        name=name,
        kind=Kind.HTTP,
        environment="infinity",
        # Its ONNX engine takes the first token's state for the text's vector unless told how the model pools.
        command=(*program, *place, "--engine", engine, "--pooling-method", "mean"),
        protocol="openai",
        needs_onnx=engine == "optimum",
        roofline="f32",
        says=f"Infinity 0.0.77 over HTTP, engine {engine}, base64 vectors, no access log",
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
            says="fastembed in process, one call after the other",
        ),
        System(
            name="sentence-transformers",
            kind=Kind.LIBRARY,
            environment="sentence-transformers",
            command=("-m", "benchmarks.peers.sentence_transformers", "{model}"),
            roofline="f32",
            says="sentence-transformers in process, one call after the other",
        ),
        System(
            name="naive",
            kind=Kind.SERVICE,
            environment="sentence-transformers",
            command=("-m", "benchmarks.peers.naive", "{model}", "{port_file}"),
            protocol="grpc",
            roofline="f32",
            says="grpc's blocking server around SentenceTransformer.encode",
        ),
        System(
            name="engine-bf16",
            kind=Kind.LIBRARY,
            environment=OWN,
            command=("-m", "benchmarks.drivers.engine", "{model}", "bf16", "{threads}"),
            roofline="bf16",
            says="isogloss-server's engine in process: its queue, tokenizer and model, without gRPC",
        ),
    )
}
