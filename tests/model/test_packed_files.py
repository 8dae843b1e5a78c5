"""The files of packed models: compiled graphs that are kept, and folders that are refused."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models.interfaces import Rows
from safetensors.numpy import load_file, save_file

from tests.support import shapes
from tests.support.packed import forward, load, tokenized


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model, to be harmed."""
    return shapes.write(tmp_path / "model", shapes.SMALL)


def vectors(folder: Path, cache: Path | None) -> Rows:
    parts = load(folder, "f32", cache)
    return forward(parts, tokenized(parts, ["Good morning", "Buenos días"]))


def test_a_second_load_takes_the_file(folder: Path, tmp_path: Path) -> None:
    """The file is written once, read again, and gives the vectors of a graph compiled anew."""
    expected = vectors(folder, None)
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert [one.stat().st_mtime_ns for one in (tmp_path / "cache").iterdir()] == [written]


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "refused"])
def test_a_damaged_file_is_compiled_anew(
    folder: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is flipped, cut, empty, or of another OpenVINO is told, replaced, and harms no vector."""
    expected = vectors(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 255
    elif harm == "refused":
        content = bytearray(b"x" * 1000 + hashlib.sha256(b"x" * 1000).digest())
    file.write_bytes({"cut": content[:1000], "empty": b""}.get(harm, bytes(content)))
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert "damaged" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert not caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no file can be made the model serves all the same."""
    (tmp_path / "cache").write_text("a file, no folder")
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), vectors(folder, None))
    assert "not kept" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("model_type", "mpnet", "model_type 'mpnet'"),
        ("position_embedding_type", "relative_key", "position_embedding_type"),
        ("hidden_act", "silu", "hidden_act 'silu'"),
    ],
)
def test_another_architecture(folder: Path, setting: str, value: str, words: str) -> None:
    """What the graph has no part for is refused as such, so that another runtime may be asked."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))
    with pytest.raises(UnsupportedModelError, match=words):
        load(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    """A tensor that is not as config.json says is named, with both shapes."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((3, 3), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelFilesError, match=r"encoder\.layer\.1\.output\.dense\.weight has shape \(3, 3\)"):
        load(folder)


def test_a_missing_tensor(folder: Path) -> None:
    """A tensor that is not there is named."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["embeddings.LayerNorm.bias"]
    save_file(tensors, file)
    with pytest.raises(ModelFilesError, match=r"no tensor embeddings\.LayerNorm\.bias"):
        load(folder)


def test_a_cut_file(folder: Path) -> None:
    """Weights that broke off are damaged."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match="is damaged"):
        load(folder)


def test_a_pooling_that_is_not_computed(folder: Path) -> None:
    """A pooling that the engine does not have is named with those that it has."""
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(UnsupportedModelError, match="pooling lasttoken; the packed engine has cls, mean"):
        load(folder)


def test_a_processor_without_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for bf16, a processor without it is told so; asked for auto, it computes in f32."""
    import openvino as ov

    genuine = ov.Core.get_property

    def without(core: ov.Core, device: str, name: str) -> object:
        found = genuine(core, device, name)
        return [one for one in found if one != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(ov.Core, "get_property", without)
    with pytest.raises(StartupError, match="no bf16"):
        load(folder, "bf16")
    assert load(folder, "auto").card.backend == "openvino-f32"
