"""Loading a local model, and its self-test."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from isogloss.wire.enums import ElementType, InputType, Priority, Truncation
from isogloss_server import factory
from isogloss_server.clock import SystemClock
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.registry import ReadyModel
from isogloss_server.engine.request import EmbedRequest
from isogloss_server.errors import ModelFilesError, SettingsError, UnsupportedModelError
from isogloss_server.models import model_folder
from isogloss_server.models.interfaces import Urgency
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder
from isogloss_server.settings.declarations import Settings
from safetensors.numpy import load_file, save_file

from tests.support import shapes

SETTINGS = Settings(graph_cache=Path("off"), inference_threads=2, precision="f32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small transformer with a Dense module, to be modified."""
    return shapes.write(tmp_path / "model", dataclasses.replace(shapes.SMALL, dense=24))


@pytest.fixture
def ready(path: Path) -> Iterator[ReadyModel]:
    """The model of `path`, loaded."""
    workers = Executor(1)
    loaded = factory.load("m", str(path), SETTINGS, workers, SystemClock())
    yield loaded
    loaded.embedder.close()
    workers.close()


@pytest.mark.parametrize("priority", Priority)
async def test_a_folder_is_loaded_and_embeds(ready: ReadyModel, priority: Priority) -> None:
    """A loaded model returns the vector of each text, in order, whatever the other texts."""
    texts = ["Good morning", "Buenos días", "Good morning", "x " * 300]
    embedded = await ready.embedder.embed(texts, InputType.QUERY, Truncation.END, Urgency(priority))
    alone = await ready.embedder.embed(texts[1:2], InputType.QUERY, Truncation.END, Urgency())
    assert embedded.rows.shape == (4, 24)
    assert embedded.truncated_rows == (3,)
    np.testing.assert_array_equal(embedded.rows[0], embedded.rows[2])
    np.testing.assert_array_equal(embedded.rows[1], alone.rows[0])


@pytest.mark.parametrize("kind", [ValueError, BaseException])  # a panic of a library in Rust is not an Exception
def test_an_unexpected_exception_is_one_line(
    path: Path, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception of a library is an error with the model and the exception's type, in one line."""

    def fail(*_: object) -> NoReturn:
        raise kind("first\nsecond")

    monkeypatch.setattr(factory, "read", fail)
    with pytest.raises(ModelFilesError, match=rf"^cannot load model .*: {kind.__name__}: first$"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_damaged_weights_fail_the_self_test(path: Path) -> None:
    """Weights that are not finite are detected before the model serves."""
    tensors = load_file(path / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][3] = np.nan
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelFilesError, match="damaged"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_known_vectors_detect_a_wrong_pooling(path: Path) -> None:
    """If a folder has a known vector, a pooling other than the one that it was computed with is detected."""
    parts = factory.read(model_folder.locate(str(path)), SETTINGS)
    text = "Where is the station?"
    vector = parts.model.forward(parts.tokenizer.encode([text], Truncation.END).batch)[0].tolist()
    (path / "isogloss.json").write_text(json.dumps({"probes": [{"text": text, "vector": vector}]}))
    factory.load("m", str(path), SETTINGS, Executor(1), SystemClock()).embedder.close()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ModelFilesError, match="differ from the known vectors"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_only_the_backend_of_the_setting_is_tried(path: Path) -> None:
    """With --backend openvino, an unsupported architecture is rejected, even if another backend may support it."""
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mpnet"}))
    with pytest.raises(UnsupportedModelError, match="model_type 'mpnet'"):
        factory.load("m", str(path), SETTINGS.model_copy(update={"backend": "openvino"}), Executor(1), SystemClock())


def test_a_device_that_openvino_does_not_use_is_left_to_the_other_backend(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another device than the CPU, no transformer is silently served on the CPU."""
    used: list[str] = []
    monkeypatch.setattr(factory, "_sentence_transformers", lambda _, settings: used.append(settings.device))
    factory.read(model_folder.locate(str(path)), SETTINGS.model_copy(update={"device": "cuda:1"}))
    assert used == ["cuda:1"]
    with pytest.raises(SettingsError, match="device cuda requires the backend sentence-transformers"):
        factory.read(
            model_folder.locate(str(path)), SETTINGS.model_copy(update={"device": "cuda", "backend": "openvino"})
        )


def test_a_device_that_a_static_model_does_not_use_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A static model runs on the CPU; a warning says so if another device is set."""
    bundled = model_folder.locate(model_folder.BUNDLED)
    factory.read(bundled, SETTINGS)
    assert "static models run on the CPU" not in caplog.text
    factory.read(bundled, SETTINGS.model_copy(update={"device": "cuda"}))
    assert "static models run on the CPU" in caplog.text


async def test_a_static_model_computes_bulk_requests_on_all_threads() -> None:
    """A BULK request for each thread of the executor has a slot, and one that follows; a further one waits."""
    workers = Executor(2)
    settings = SETTINGS.model_copy(update={"worker_threads": 2})
    model = factory.load("m", model_folder.BUNDLED, settings, workers, SystemClock())
    request = EmbedRequest(texts=("a",), priority=Priority.BULK, element_type=ElementType.FLOAT32)
    async with AsyncExitStack() as slots:
        for _ in range(3):
            await slots.enter_async_context(model.admission.admit(request))
        fourth = asyncio.ensure_future(model.admission.admit(request).__aenter__())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not fourth.done()
    model.admission.leave(await fourth)
    model.embedder.close()
    workers.close()


def _write_another_seed(path: Path) -> None:
    shapes.write(path, dataclasses.replace(shapes.SMALL, dense=24), seed=1)


def _swap(path: Path) -> None:
    shapes.write(path.with_name("other"), dataclasses.replace(shapes.SMALL, dense=24), seed=1)
    path.rename(path.with_name("old"))
    path.with_name("other").rename(path)


def _add_a_prompt(path: Path) -> None:
    (path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find: "}}')


@pytest.mark.parametrize("change", [_write_another_seed, _swap, _add_a_prompt])
@pytest.mark.parametrize("has_failed", [False, True])
def test_files_that_change_while_they_are_read_are_read_again(
    path: Path, change: Callable[[Path], None], has_failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is made of one version of its files: if one changes until all are read, all are read again."""
    genuine, reads = factory.read, []

    def read(folder: ModelFolder, settings: Settings) -> LoadedModel:
        loaded = genuine(folder, settings)
        reads.append(loaded.card.space_id)
        if len(reads) == 1:
            change(path)
            if has_failed:
                raise ModelFilesError("half a file")
        return loaded

    monkeypatch.setattr(factory, "read", read)
    loaded = factory.read_unchanged(str(path), SETTINGS)
    assert len(reads) == 2
    assert reads[1] == loaded.card.space_id == genuine(model_folder.locate(str(path)), SETTINGS).card.space_id
    assert reads[0] != reads[1]


def test_files_that_keep_changing_are_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the files that change, and what to do."""
    genuine = factory.read

    def read(folder: ModelFolder, settings: Settings) -> LoadedModel:
        loaded = genuine(folder, settings)
        with (path / "config.json").open("a") as stream:
            stream.write(" ")
        return loaded

    monkeypatch.setattr(factory, "read", read)
    with pytest.raises(ModelFilesError, match=r"change while they are read: config\.json; start the server when"):
        factory.read_unchanged(str(path), SETTINGS)
