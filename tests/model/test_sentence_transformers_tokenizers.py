"""Folders whose tokenizer files disagree with each other are served as sentence-transformers serves them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.models import model_folder, sentence_transformers, tokenizer_files
from isogloss_server.models.interfaces import Rows
from isogloss_server.models.layout import LoadedModel

from tests.support.tokenizer_folders import AGREE, DIFFER, TEXTS, effective, write

pytestmark = pytest.mark.sentence_transformers


def library_tokenizer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).tokenizer


def packed(folder: Path) -> LoadedModel:
    from isogloss_server.models import openvino  # noqa: F401 - sets OpenVINO up
    from isogloss_server.models.openvino.loader import Runtime, load

    return load(model_folder.locate(str(folder)), Runtime(precision="f32", threads=1))


def rows(loaded: LoadedModel) -> Rows:
    return loaded.model.forward(loaded.tokenizer.encode(TEXTS, Truncation.END).batch)


@pytest.mark.parametrize("name", [*AGREE, *DIFFER])
def test_a_text_has_the_tokens_of_the_library(name: str, tmp_path: Path) -> None:
    """Every text has the library's tokens, and both backends find the same difference from tokenizer.json, or none."""
    folder = write((AGREE | DIFFER)[name], tmp_path / "model")
    tokenizer, difference = effective(folder)
    library = library_tokenizer(folder)
    for backend in (library.backend_tokenizer, tokenizer):
        backend.no_padding()
        backend.no_truncation()
    for text in TEXTS:
        assert tokenizer.encode(text).ids == library(text)["input_ids"], text
    lower = bool(json.loads((folder / "sentence_bert_config.json").read_text())["do_lower_case"])
    found = model_folder.locate(str(folder))
    assert tokenizer_files.difference(library.backend_tokenizer, found, "", lower_case=lower) == difference
    assert bool(difference) is (name in DIFFER)


@pytest.mark.parametrize(
    "name",
    ["bert", "bert, no normalizer", "roberta, a space first in the settings alone", "xlm-roberta, Metaspace alone"],
)
def test_both_backends_have_the_vectors_and_the_space_of_the_library(name: str, tmp_path: Path) -> None:
    """Whatever the files, vectors are the library's within 1e-5, and both backends name one space."""
    from sentence_transformers import SentenceTransformer

    folder = write((AGREE | DIFFER)[name], tmp_path / "model")
    library = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = np.asarray(library.encode(TEXTS, show_progress_bar=False))
    ours, other = packed(folder), sentence_transformers.load(model_folder.locate(str(folder)), "cpu")
    for loaded in (ours, other):
        assert float(np.abs((rows(loaded) - expected) / np.linalg.norm(expected, axis=1)[:, None]).max()) <= 1e-5
    assert ours.card.space_id == other.card.space_id


def test_the_space_of_real_weights_has_not_changed(minilm: Path) -> None:
    """The files of all-MiniLM-L6-v2 agree, so its space is that of the first version."""
    assert effective(minilm)[1] == ""
    assert packed(minilm).card.space_id == "s1-c6878690f4a7aae0d4323d7af41564c0"
