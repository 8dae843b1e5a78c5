"""The files of the openvino backend: cached graphs, and folders that are rejected."""

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
    """A small model, to be modified."""
    return shapes.write(tmp_path / "model", shapes.SMALL)


def vectors(folder: Path, cache: Path | None) -> Rows:
    parts = load(folder, "f32", cache)
    return forward(parts, tokenized(parts, ["Good morning", "Buenos días"]))


def test_a_second_load_reads_the_cached_graph(folder: Path, tmp_path: Path) -> None:
    """The file is written once, read again, and has the vectors of a new compilation."""
    expected = vectors(folder, None)
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    (file,) = (tmp_path / "cache").glob("*.graph")
    written = file.stat().st_ino
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert [one.stat().st_ino for one in (tmp_path / "cache").glob("*.graph")] == [written]


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "refused"])
def test_a_damaged_cached_graph_is_compiled_again(
    folder: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is damaged, cut, empty, or of another OpenVINO gives a warning, and is replaced."""
    expected = vectors(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.graph")
    content = bytearray(file.read_bytes())
    if harm == "flipped":
        content[len(content) // 2] ^= 255
    elif harm == "refused":
        content = bytearray(b"x" * 1000 + hashlib.sha256(file.stem.encode() + b"x" * 1000).digest())
    file.chmod(0o600)
    file.write_bytes({"cut": content[:1000], "empty": b""}.get(harm, bytes(content)))
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert "damaged" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert not caplog.text


def test_an_unwritable_cache_is_a_warning(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the cache cannot be written, the model serves, with a warning."""
    (tmp_path / "cache").write_text("not a folder")
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), vectors(folder, None))
    assert "cache folder not used" in caplog.text


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("model_type", "mpnet", "model_type 'mpnet'"),
        ("position_embedding_type", "relative_key", "position_embedding_type"),
        ("hidden_act", "silu", "hidden_act 'silu'"),
    ],
)
def test_an_unsupported_architecture(folder: Path, setting: str, value: str, words: str) -> None:
    """An unsupported setting is reported as such, so that another backend may be tried."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))
    with pytest.raises(UnsupportedModelError, match=words):
        load(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    """The error of a tensor with an unexpected shape has both shapes."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.output.dense.weight"] = np.zeros((3, 3), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelFilesError, match=r"encoder\.layer\.1\.output\.dense\.weight has shape \(3, 3\)"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    """A folder without weights or tokenizer is reported as such, not as unsupported."""
    (folder / name).unlink()
    with pytest.raises(ModelFilesError, match=f"has no file {name}") as raised:
        load(folder)
    assert not isinstance(raised.value, UnsupportedModelError)


@pytest.mark.parametrize(
    ("name", "other"),
    [("model.safetensors", "model-00001-of-00002.safetensors"), ("tokenizer.json", "sentencepiece.bpe.model")],
)
def test_files_of_another_form_are_unsupported(folder: Path, name: str, other: str) -> None:
    """Weights in several files, or a tokenizer in another form, are left to another backend."""
    (folder / name).rename(folder / other)
    with pytest.raises(UnsupportedModelError, match=f"has no file {name}, which the openvino backend requires"):
        load(folder)


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    """A folder with pickled weights alone is an error that says so."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="are pickled, which are never loaded; save them as safetensors"):
        load(folder)


def test_a_missing_tensor(folder: Path) -> None:
    """The error of a missing tensor names it."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["embeddings.LayerNorm.bias"]
    save_file(tensors, file)
    with pytest.raises(ModelFilesError, match=r"no tensor embeddings\.LayerNorm\.bias"):
        load(folder)


def test_a_truncated_file(folder: Path) -> None:
    """A file of weights that is too short is damaged."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match="is damaged"):
        load(folder)


def test_an_unsupported_pooling(folder: Path) -> None:
    """The error of an unsupported pooling lists the supported ones."""
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(
        UnsupportedModelError, match="unsupported pooling lasttoken; the openvino backend supports cls, mean"
    ):
        load(folder)


def test_a_processor_without_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor without bf16, the precision bf16 is an error, and auto is f32."""
    import openvino as ov

    genuine = ov.Core.get_property

    def without(core: ov.Core, device: str, name: str) -> object:
        found = genuine(core, device, name)
        return [one for one in found if one != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found

    monkeypatch.setattr(ov.Core, "get_property", without)
    with pytest.raises(StartupError, match="precision bf16 is not supported"):
        load(folder, "bf16")
    assert load(folder, "auto").card.backend == "openvino-f32"
