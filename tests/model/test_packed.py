"""The openvino backend: batch invariance, architectures, memory, and the absence of telemetry."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.models.interfaces import TokenBatch
from isogloss_server.models.openvino import loader as packed
from isogloss_server.models.openvino import numpy_reference
from isogloss_server.models.openvino.model import LANES, pack
from safetensors.numpy import load_file, save_file

from tests.support import shapes, texts
from tests.support.packed import Precision, forward, load, tokenized

pytestmark = pytest.mark.timeout(300)

HAS_AVX512 = "avx512f" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
BATCH_INVARIANCE = {"f32": 1e-6, "bf16": 2e-3}  # without AVX-512


@pytest.fixture(params=["f32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    """Each precision that this processor supports."""
    import openvino as ov

    if request.param == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bf16")
    chosen: Precision = request.param
    return chosen


@pytest.mark.parametrize("batches", [20, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("folder", ["minilm", pytest.param("multilingual", marks=pytest.mark.long)])
def test_a_vector_does_not_depend_on_the_batch(
    folder: str, batches: int, precision: Precision, request: pytest.FixtureRequest
) -> None:
    """A text alone and in many batches of mixed lengths, scripts and sizes has the same vector, bit for bit."""
    parts = load(request.getfixturevalue(folder), precision)
    tested = tokenized(
        parts, ["Good morning", "おはようございます。今日は天気がいいですね。", " ".join(texts.sentences()[:9])]
    )
    others = tokenized(parts, texts.mixed(300, seed=1))
    alone = np.concatenate([forward(parts, [ids]) for ids in tested])
    rng = np.random.default_rng(2)
    worst = 0.0
    for _ in range(batches):
        batch = [others[at] for at in rng.choice(len(others), int(rng.integers(0, 9)), replace=False)] + tested
        order = rng.permutation(len(batch))
        rows = forward(parts, [batch[at] for at in order])[np.argsort(order)][-len(tested) :]
        worst = max(worst, float(np.abs(rows - alone).max()))
    assert worst <= (0 if HAS_AVX512 else BATCH_INVARIANCE[precision])


@pytest.mark.parametrize("lengths", [[1], [5, 3, 9], [600, 700]])
def test_positions_for_metrics_are_those_of_the_graph(minilm: Path, lengths: list[int]) -> None:
    """The positions of a batch, for the efficiency of the packing, are the slots that the graph computes."""
    given = np.array(lengths)
    assert load(minilm).positions(given) == len(pack(given).slots) >= sum(lengths)


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_each_family_has_the_vectors_of_the_numpy_reference(model_type: str, pooling: str, tmp_path: Path) -> None:
    """The vectors of the packed graph are those of the numpy reference, which are its probes."""
    shape = dataclasses.replace(shapes.SMALL, model_type=model_type, pooling=pooling, dense=24, normalize=True)
    parts = load(shapes.write(tmp_path / "model", shape), "f32")
    assert len(parts.probes) == len(packed.PROBE_TEXTS)
    rows = forward(parts, tokenized(parts, [text for text, _ in parts.probes]))
    np.testing.assert_allclose(rows, [vector for _, vector in parts.probes], atol=2e-6)
    assert parts.card.dimensions == (24,)


def test_positions_of_xlm_roberta_skip_padding_tokens_in_the_text(tmp_path: Path) -> None:
    """Positions start after the padding token's id, and skip padding tokens in the text."""
    parts = load(shapes.write(tmp_path / "model", dataclasses.replace(shapes.SMALL, model_type="xlm-roberta")), "f32")
    embeddings = parts.model._embeddings  # type: ignore[attr-defined]
    plain = np.array([0, 7, 1, 8, 2, 0, 9, 2], np.int32)
    rows = embeddings.rows(TokenBatch(plain, np.array([5, 3])))
    words = embeddings._words.rows(plain)
    positions = [2, 3, 1, 4, 5, 2, 3, 4]
    np.testing.assert_array_equal(rows, words + embeddings._positions[positions])


def test_half_precision_weights_are_converted_to_float32(tmp_path: Path) -> None:
    """A file of float16 numbers has the vectors of the same numbers in float32."""
    folder = shapes.write(tmp_path / "model", shapes.SMALL)
    file = folder / "model.safetensors"
    halves = {name: tensor.astype(np.float16) for name, tensor in load_file(file).items()}
    save_file(halves, file)
    narrow = forward(load(folder, "f32"), ids := tokenized(load(folder, "f32"), ["Good morning", "Buenos días"]))
    save_file({name: tensor.astype(np.float32) for name, tensor in halves.items()}, file)
    np.testing.assert_array_equal(forward(load(folder, "f32"), ids), narrow)


def test_truncation_keeps_the_special_tokens(minilm: Path) -> None:
    """A long text keeps its first tokens, or its last, between [CLS] and [SEP], up to the model's limit."""
    tokenizer = load(minilm).tokenizer
    long = " ".join(str(number) for number in range(1000))
    end = tokenizer.encode([long], Truncation.END)
    start = tokenizer.encode([long], Truncation.START)
    assert end.truncated_rows == start.truncated_rows == (0,)
    for tokenized_text in (end, start):
        ids = tokenized_text.batch.ids
        assert (len(ids), ids[0], ids[-1]) == (256, 101, 102)
    assert end.batch.ids[1] != start.batch.ids[1]
    assert not tokenizer.encode([long], Truncation.ERROR).batch.lengths[0]


def test_known_vectors_detect_a_wrong_graph(tmp_path: Path) -> None:
    """A compiled graph with other weights fails the comparison with the known vectors."""
    folder = shapes.write(tmp_path / "model", shapes.SMALL)
    parts = load(folder, "f32")
    other = load(shapes.write(tmp_path / "other", shapes.SMALL, seed=1), "f32")
    rows = forward(other, tokenized(parts, [text for text, _ in parts.probes]))
    known = np.array([vector for _, vector in parts.probes])
    assert (np.abs(rows - known).max(axis=1) > parts.tolerance.known * np.linalg.norm(known, axis=1)).all()


def test_precision_does_not_change_the_space(minilm: Path) -> None:
    """A folder in f32 and bf16 has one space."""
    assert load(minilm, "f32").card.space_id == load(minilm, "auto").card.space_id


def test_openvino_sends_no_telemetry(minilm: Path) -> None:
    """Loading a model starts no process, and opens no socket."""
    program = (
        "import sys; from pathlib import Path; seen = []\n"
        "sys.addaudithook(lambda event, _: seen.append(event))\n"
        "from isogloss_server.models import model_folder; from isogloss_server.models.openvino import loader\n"
        "runtime = loader.Runtime(precision='auto', threads=1)\n"
        f"loader.load(model_folder.locate({str(minilm)!r}), runtime)\n"
        "wrong = [e for e in seen if e.startswith(('socket.', 'os.fork', 'subprocess', 'os.posix_spawn'))]\n"
        "sys.exit(f'{wrong}' if wrong else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.long
def test_memory_stays_flat_over_ten_thousand_shapes(tmp_path: Path) -> None:
    """10,000 batches of random sizes and lengths use no more memory than the first thousand."""
    import psutil  # not in the environment of sentence-transformers, which collects this file too

    parts = load(shapes.write(tmp_path / "model", shapes.SMALL), "auto")
    rng = np.random.default_rng(0)

    def anonymous_mb() -> float:
        memory = psutil.Process().memory_info()
        return float(memory.rss - memory.shared) / 1024**2

    after: list[float] = []
    for number in range(10_000):
        lengths = rng.integers(1, 129, int(rng.integers(1, 9)))
        parts.model.forward(TokenBatch(rng.integers(4, 3_000, lengths.sum()).astype(np.int32), lengths))
        if number in {999, 9_999}:
            after.append(anonymous_mb())
    assert after[1] - after[0] < 30


def test_long_texts_have_few_shapes() -> None:
    """Texts of up to 8,192 tokens have 160 shapes, because OpenVINO keeps memory for each."""
    shapes_of = {length: pack(np.array([length])) for length in range(1, 8_193, 3)}
    assert len({(len(packing.slots), packing.tokens.shape) for packing in shapes_of.values()}) == 64 + 3 * 32
    assert all(len(packing.slots) - length < LANES for length, packing in shapes_of.items() if length <= 1_024)
    assert all(len(packing.slots) < 1.04 * length for length, packing in shapes_of.items() if length > 1_024)


def test_the_numpy_reference_is_independent_of_the_graph() -> None:
    """The numpy reference shares only the tensors and their names with the graph."""
    imported = set(vars(numpy_reference))
    assert not imported & {"ov", "op", "openvino", "pack", "graph"}


def test_a_copy_of_a_folder_has_the_same_space(minilm: Path, tmp_path: Path) -> None:
    """The path of a folder does not change its space."""
    copy = shutil.copytree(minilm, tmp_path / "copy")
    assert load(copy).card.space_id == load(minilm).card.space_id
