"""The files of the openvino backend: cached graphs, and folders that are rejected."""

import dataclasses
import hashlib
import json
import shutil
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


def test_a_graph_of_a_folder_that_others_can_write_is_not_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph with a valid digest is not trusted for that: who can write to the folder can write both."""
    expected = vectors(folder, None)
    other = shapes.write(tmp_path / "other", shapes.SMALL, seed=1)
    cache = tmp_path / "cache"
    vectors(folder, cache)
    (genuine,) = cache.glob("*.graph")
    vectors(other, tmp_path / "theirs")
    (planted,) = (tmp_path / "theirs").glob("*.graph")
    graph = planted.read_bytes()[:-32]
    genuine.unlink()
    genuine.write_bytes(graph + hashlib.sha256(genuine.stem.encode() + graph).digest())
    cache.chmod(0o777)
    np.testing.assert_array_equal(vectors(folder, cache), expected)
    assert "cache folder not used" in caplog.text


def test_a_graph_under_the_name_of_another_one_is_compiled_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole graph of another model counts as damaged: the digest covers the key too."""
    expected = vectors(folder, tmp_path / "cache")
    (genuine,) = (tmp_path / "cache").glob("*.graph")
    vectors(shapes.write(tmp_path / "other", shapes.SMALL, seed=1), tmp_path / "theirs")
    (other,) = (tmp_path / "theirs").glob("*.graph")
    other.replace(genuine)
    np.testing.assert_array_equal(vectors(folder, tmp_path / "cache"), expected)
    assert "damaged" in caplog.text


BERT = "config.json"
ENCODER = "sentence_bert_config.json"
POOLING = "1_Pooling/config.json"
LIBRARY = "config_sentence_transformers.json"
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
SIZES += ("max_position_embeddings", "type_vocab_size")
INVALID = [
    *((BERT, size, value) for size in SIZES for value in (-1, 0, 10**12, 2.0, "2", True, None, [2], {})),
    *((BERT, "layer_norm_eps", value) for value in (-1e-12, 0, 1, "1e-12", True, None, float("nan"), float("inf"))),
    *((BERT, flag, value) for flag in ("is_decoder", "sinusoidal_pos_embds") for value in ("false", 0, [])),
    *((ENCODER, "max_seq_length", value) for value in (-1, 0, 1.5, "128", True, [], float("nan"))),
    *((ENCODER, "do_lower_case", value) for value in ("false", 1, [])),
    *((POOLING, "pooling_mode_cls_token", value) for value in ("false", 1, [])),
    *((POOLING, "pooling_mode", value) for value in (-1, [1], {"mean": True}, [["mean"]], True)),
    *((POOLING, "include_prompt", value) for value in ("false", 0)),
    *((LIBRARY, "prompts", value) for value in (["query: "], {"query": 5}, {"query": {"a": 1}}, "query: ")),
    *((LIBRARY, "default_prompt_name", value) for value in ("missing", 5, ["query"])),
    *(("2_Dense/config.json", "out_features", value) for value in (-1, 0, 1.5, "24", True, None)),
    *(("2_Dense/config.json", "bias", value) for value in ("false", 0)),
]


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a Dense module, which tests copy."""
    return shapes.write(tmp_path_factory.mktemp("dense") / "model", dataclasses.replace(shapes.SMALL, dense=24))


@pytest.mark.parametrize(("name", "field", "value"), INVALID)
def test_an_invalid_setting_is_an_error_that_names_it(
    dense_folder: Path, tmp_path: Path, name: str, field: str, value: object
) -> None:
    """A number out of its range, or a value of another type, is never served."""
    folder = Path(shutil.copytree(dense_folder, tmp_path / "model"))
    file = folder / name
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | {field: value}))
    words = {"max_seq_length": "length limit", "pooling_mode": "pooling", "default_prompt_name": "default_prompt_name"}
    with pytest.raises(ModelFilesError, match=words.get(field, field)) as raised:
        load(folder, "f32")
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("value", [-1, 129, 10**12, 1.0, "1", True, None])
def test_an_invalid_padding_token_is_an_error(tmp_path: Path, value: object) -> None:
    """Positions of XLM-RoBERTa start after the id of the padding token, which must leave some."""
    folder = shapes.write(tmp_path / "model", dataclasses.replace(shapes.SMALL, model_type="xlm-roberta"))
    file = folder / BERT
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": value}))
    with pytest.raises(ModelFilesError, match="pad_token_id"):
        load(folder, "f32")


@pytest.mark.parametrize("value", [[float("nan")], [float("inf")], ["x"], [None]])
def test_known_vectors_must_be_numbers(folder: Path, value: object) -> None:
    """A known vector that is not finite would pass every comparison."""
    (folder / "isogloss.json").write_text(json.dumps({"probes": [{"text": "a", "vector": value}]}))
    with pytest.raises(ModelFilesError, match=r"probes\.0\.vector\.0"):
        load(folder, "f32")


@pytest.mark.parametrize("name", ["modules.json", "config.json", "isogloss.json", "tokenizer_config.json"])
def test_deeply_nested_json_is_damage(folder: Path, name: str) -> None:
    """JSON that is nested too deep is damage, not the end of the process."""
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ModelFilesError, match=f"{name} is damaged"):
        load(folder, "f32")
