"""Torch runs out of the device's memory."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.models import model_folder, sentence_transformers

from tests.support.library_folders import bert

pytestmark = pytest.mark.sentence_transformers


def test_an_exhausted_device_raises_memory_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.OutOfMemoryError becomes MemoryError, after which the batcher halves the batch."""
    import torch

    parts = sentence_transformers.load(model_folder.locate(str(bert(tmp_path / "model"))), "cpu")
    model: Any = parts.model

    def full(_features: Any) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model, "_library", full)
    with pytest.raises(MemoryError):
        model.forward(parts.tokenizer.encode(["one"], Truncation.END).batch)
