"""Reading a folder in the sentence-transformers layout: its settings, and what is rejected."""

import dataclasses
import json
from pathlib import Path

import pytest
from isogloss.wire.enums import InputType
from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models import layout, model_folder
from isogloss_server.models.catalog import find
from isogloss_server.models.model_folder import ModelFolder

from tests.support import shapes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small transformer, to be modified."""
    return shapes.write(tmp_path / "model", shapes.SMALL)


def folder(path: Path, known: str = "") -> ModelFolder:
    found = model_folder.locate(str(path))
    return dataclasses.replace(found, known=find(known) if known else None)


def edit(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def test_a_class_in_the_models_repository_is_rejected(path: Path) -> None:
    """A module of another package keeps its full name, and is rejected even if its last name is known."""
    modules = json.loads((path / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match=r"custom_st\.Transformer"):
        layout.transformer(folder(path))


@pytest.mark.parametrize("outside", ["../other", "/etc"])
def test_a_path_out_of_the_folder_is_rejected(path: Path, outside: str) -> None:
    """A module's path that leads out of the folder is rejected."""
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["path"] = outside
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFilesError, match="leads out of the folder"):
        layout.transformer(folder(path))


def test_prompts_are_the_folders_else_the_catalogs(path: Path) -> None:
    """A folder's own prompts win; empty ones, which the library saves by default, do not hide the catalog's."""
    config = path / "config_sentence_transformers.json"
    edit(config, prompts={"query": "", "document": ""})
    assert layout.prompts(folder(path)) == {}
    assert layout.prompts(folder(path, "multilingual-e5-small"))[InputType.DOCUMENT] == "passage: "
    edit(config, prompts={"query": "find: ", "passage": "found: "})
    own = layout.prompts(folder(path))
    assert (own[InputType.QUERY], own[InputType.DOCUMENT], InputType.SIMILARITY in own) == ("find: ", "found: ", False)


@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_the_length_limit_is_read_under_every_name_of_its_file(path: Path, name: str) -> None:
    """Older versions of the library named the file of the length limit after the architecture."""
    (path / "sentence_bert_config.json").unlink()
    edit(path / name, max_seq_length=77)
    assert layout.transformer(folder(path)).max_tokens == 77


def test_a_length_limit_that_is_not_a_number_is_rejected(path: Path) -> None:
    """The error quotes a length limit that is not a number."""
    edit(path / "sentence_bert_config.json", max_seq_length="long")
    with pytest.raises(ModelFilesError, match="invalid length limit 'long'"):
        layout.transformer(folder(path))


def test_a_file_of_the_hubs_cache_must_have_the_digest_in_its_name(path: Path, tmp_path: Path) -> None:
    """The hub's cache names large files by their sha256; other content is damage."""
    blob = tmp_path / ("0" * 64)
    (path / "model.safetensors").rename(blob)
    (path / "model.safetensors").symlink_to(blob)
    with pytest.raises(ModelFilesError, match="is damaged"):
        folder(path).digest("model.safetensors")


def test_dropout_and_versions_do_not_change_the_space(path: Path) -> None:
    """Settings of training and versions in config.json do not change the space; settings of the computation do."""
    before = layout.space_id(folder(path), layout.transformer(folder(path)), ["digest"], 128)
    edit(path / "config.json", hidden_dropout_prob=0.9, transformers_version="9")
    assert layout.space_id(folder(path), layout.transformer(folder(path)), ["digest"], 128) == before
    edit(path / "config.json", layer_norm_eps=1e-3)
    assert layout.space_id(folder(path), layout.transformer(folder(path)), ["digest"], 128) != before
