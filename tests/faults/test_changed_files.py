"""Model files that change while they are served: copied over, written in place, cut, deleted, or swapped by a link."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from isogloss import Client, Embeddings

from tests.support import shapes
from tests.support.server_process import ServerProcess

TEXTS = ["Good morning", "Wo ist der Bahnhof?", "one two three " * 40]
SHAPES = {
    "bert": shapes.SMALL,
    "xlm-roberta": dataclasses.replace(shapes.SMALL, model_type="xlm-roberta", pooling="cls", dense=32),
    "distilbert": dataclasses.replace(shapes.SMALL, model_type="distilbert", normalize=True),
}
MODELS = (*SHAPES, "static")


def write_models(root: Path, *, seed: int) -> None:
    """Writes a model of each kind; another seed results in other weights of the same size."""
    for name, shape in SHAPES.items():
        shapes.write(root / name, shape, seed=seed)
    static = root / "static"
    shapes.write(static, dataclasses.replace(shapes.SMALL, layers=1), seed=seed)
    rng = np.random.default_rng(seed)
    from safetensors.numpy import save_file

    save_file({"embedding.weight": rng.standard_normal((4_000, 32), dtype=np.float32)}, static / "model.safetensors")
    kind = "sentence_transformers.models.StaticEmbedding"
    (static / "modules.json").write_text(f'[{{"idx": 0, "name": "0", "path": "", "type": "{kind}"}}]')


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """A link to the first version of the models; the second one is in the folder `second`."""
    for seed, name in enumerate(("first", "second")):
        write_models(tmp_path / name, seed=seed)
    (tmp_path / "current").symlink_to("first")
    return tmp_path / "current"


@contextlib.contextmanager
def serving(current: Path, cache: str) -> Iterator[ServerProcess]:
    models = [flag for name in MODELS for flag in ("--model", f"{name}={current / name}")]
    with ServerProcess(*models, "--graph-cache", cache, "--cache-bytes", "0", "--precision", "f32") as server:
        yield server


def embedded(server: ServerProcess) -> Mapping[str, Embeddings]:
    with Client(server.address) as client:
        return {name: client.embed(TEXTS, model=name) for name in MODELS}


def files(current: Path) -> list[Path]:
    return [file for file in current.rglob("*") if file.is_file()]


def copy_over(current: Path) -> None:
    shutil.copytree(current.parent / "second", current, dirs_exist_ok=True)


def write_in_place(current: Path) -> None:
    """Writes the second half of each file over the first one's, as rsync --inplace does."""
    for file in files(current):
        content = (current.parent / "second" / file.relative_to(current)).read_bytes()
        with file.open("r+b") as stream:
            stream.seek(len(content) // 2)
            stream.write(content[len(content) // 2 :])


def cut(current: Path) -> None:
    for file in files(current):
        os.truncate(file, file.stat().st_size // 3)


def empty(current: Path) -> None:
    for file in files(current):
        os.truncate(file, 0)


def delete(current: Path) -> None:
    shutil.rmtree(current.resolve())


def swap(current: Path) -> None:
    link = current.with_name("next")
    link.symlink_to("second")
    link.replace(current)


HARMS: tuple[Callable[[Path], None], ...] = (copy_over, cut, swap)
MORE_HARMS: tuple[Callable[[Path], None], ...] = (write_in_place, empty, delete)


@pytest.mark.parametrize("cache", ["graphs", pytest.param("off", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "harm",
    [*HARMS, *(pytest.param(harm, marks=pytest.mark.long) for harm in MORE_HARMS)],
    ids=lambda harm: harm.__name__,
)
def test_a_running_server_does_not_notice_changed_files(
    current: Path, tmp_path: Path, cache: str, harm: Callable[[Path], None]
) -> None:
    """Whatever becomes of the files, each model keeps its vectors and its space, and the server stops normally."""
    with serving(current, cache if cache == "off" else str(tmp_path / cache)) as server:
        before = embedded(server)
        harm(current)
        after = embedded(server)
        assert server.stop() == 0
    for name in MODELS:
        assert after[name].space_id == before[name].space_id
        np.testing.assert_array_equal(after[name].vectors, before[name].vectors)


def test_the_next_start_serves_the_new_files_from_a_folder_that_is_shared(current: Path, tmp_path: Path) -> None:
    """Servers of two versions share one cache folder; each has the vectors of its own files."""
    with serving(current, str(tmp_path / "graphs")) as first:
        before = embedded(first)
        copy_over(current)
        with serving(current, str(tmp_path / "graphs")) as second:
            new = embedded(second)
        old = embedded(first)
    with serving(tmp_path / "second", "off") as reference:
        expected = embedded(reference)
    for name in MODELS:
        np.testing.assert_array_equal(old[name].vectors, before[name].vectors)
        np.testing.assert_array_equal(new[name].vectors, expected[name].vectors)
        assert new[name].space_id == expected[name].space_id != before[name].space_id
