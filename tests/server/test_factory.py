"""From a model's name or folder to what answers requests."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Priority, Truncation
from isogloss_server import factory
from isogloss_server.clock import SystemClock
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.registry import ReadyModel
from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models import model_folder
from isogloss_server.models.interfaces import Urgency
from isogloss_server.settings.declarations import Settings
from safetensors.numpy import load_file, save_file

from tests.support import shapes

SETTINGS = Settings(graph_cache=Path("off"), inference_threads=2, precision="f32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small transformer with a Dense module, to be changed."""
    return shapes.write(tmp_path / "model", dataclasses.replace(shapes.SMALL, dense=24))


@pytest.fixture
def ready(path: Path) -> Iterator[ReadyModel]:
    """The same, loaded."""
    workers = Executor(1)
    loaded = factory.load("m", str(path), SETTINGS, workers, SystemClock())
    yield loaded
    loaded.embedder.close()
    workers.close()


@pytest.mark.parametrize("priority", Priority)
async def test_a_folder_is_loaded_checked_and_answers(ready: ReadyModel, priority: Priority) -> None:
    """What is loaded gives each text its vector, in order, whatever else is asked with it."""
    texts = ["Good morning", "Buenos días", "Good morning", "x " * 300]
    embedded = await ready.embedder.embed(texts, InputType.QUERY, Truncation.END, Urgency(priority))
    alone = await ready.embedder.embed(texts[1:2], InputType.QUERY, Truncation.END, Urgency())
    assert embedded.rows.shape == (4, 24)
    assert embedded.truncated_rows == (3,)
    np.testing.assert_array_equal(embedded.rows[0], embedded.rows[2])
    np.testing.assert_array_equal(embedded.rows[1], alone.rows[0])


def test_what_a_library_raises_is_one_line(path: Path) -> None:
    """An error that nobody foresaw is told with the model and its kind, and ends no program with a traceback."""
    config = path / "2_Dense" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"out_features": "many"}))
    with pytest.raises(ModelFilesError, match=r"cannot be loaded: ValueError: invalid literal"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_damaged_weights_are_not_served(path: Path) -> None:
    """Weights that are not numbers are found before anybody is answered."""
    tensors = load_file(path / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][3] = np.nan
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelFilesError, match="damaged"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_known_vectors_find_a_wrong_pooling(path: Path) -> None:
    """Where a folder tells a text's vector, a pooling that is not the one it was made with is found."""
    parts = factory.read(model_folder.locate(str(path)), SETTINGS)
    text = "Where is the station?"
    vector = parts.model.forward(parts.tokenizer.encode([text], Truncation.END).batch)[0].tolist()
    (path / "isogloss.json").write_text(json.dumps({"probes": [{"text": text, "vector": vector}]}))
    factory.load("m", str(path), SETTINGS, Executor(1), SystemClock()).embedder.close()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ModelFilesError, match="differ from the known vectors"):
        factory.load("m", str(path), SETTINGS, Executor(1), SystemClock())


def test_the_backend_that_was_asked_for_is_the_only_one_tried(path: Path) -> None:
    """With --backend openvino what it has no graph of is refused, though another runtime might have."""
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "mpnet"}))
    with pytest.raises(UnsupportedModelError, match="model_type 'mpnet'"):
        factory.load("m", str(path), SETTINGS.model_copy(update={"backend": "openvino"}), Executor(1), SystemClock())
