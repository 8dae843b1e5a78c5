"""The catalog of known models: its entries are consistent, and names find them."""

import re

import pytest
from isogloss.wire.enums import InputType
from isogloss_server.models import catalog
from isogloss_server.models.catalog import KNOWN, KnownModel

TAG = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?")  # the forms of BCP 47 in the catalog


def test_names_are_distinct() -> None:
    """No two entries have the same name."""
    names = [name for known in KNOWN for name in (known.name, known.hub_id)]
    assert len({name.lower() for name in names}) == len(names) >= 26


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_an_entry_is_consistent(known: KnownModel) -> None:
    """An entry has a full commit, descending dimensions, and valid input types and languages."""
    assert re.fullmatch(r"[0-9a-f]{40}", known.revision)
    assert list(known.dimensions) == sorted(set(known.dimensions), reverse=True)
    assert known.max_tokens in {128, 256, 384, 512, 8192}
    assert set(known.prompts) <= {input_type.value for input_type in InputType}
    assert all(known.prompts.values())
    assert known.modules[:2] == ("Transformer", "Pooling")
    assert known.pooling in {"mean", "cls"}
    assert known.backend in {"openvino", "sentence-transformers"}
    assert known.license in {"Apache-2.0", "MIT"}
    assert known.languages
    assert all(TAG.fullmatch(tag) for tag in known.languages)
    assert len(set(known.languages)) == len(known.languages)


@pytest.mark.parametrize("name", ["LaBSE", "sentence-transformers/LaBSE"])
def test_both_names_find_an_entry(name: str) -> None:
    """A model is found by its short name and by its hub id, and by no other name."""
    known = catalog.find(name)
    assert known is not None
    assert (known.hub_id, known.source) == (
        "sentence-transformers/LaBSE",
        "https://huggingface.co/sentence-transformers/LaBSE",
    )
    assert catalog.find(name[:-1]) is None


def test_e5_prompts() -> None:
    """The e5 models have the prompt of a passage for documents, and that of a query for all other input types."""
    known = catalog.find("multilingual-e5-small")
    assert known is not None
    assert {input_type: known.prompts[input_type] for input_type in InputType} == {
        InputType.QUERY: "query: ",
        InputType.DOCUMENT: "passage: ",
        InputType.SIMILARITY: "query: ",
        InputType.CLASSIFICATION: "query: ",
        InputType.CLUSTERING: "query: ",
    }


@pytest.mark.parametrize(
    ("source", "hub_id", "revision"),
    [
        ("LaBSE@v1", "sentence-transformers/LaBSE", "v1"),
        ("owner/some.model-2", "owner/some.model-2", "main"),
        ("owner/model@refs/pr/1", "owner/model", "refs/pr/1"),
    ],
)
def test_a_revision_follows_an_at_sign(source: str, hub_id: str, revision: str) -> None:
    """A revision follows an @; a model that is not in the catalog has the main branch by default."""
    hub_model = catalog.resolve(source)
    assert hub_model is not None
    assert (hub_model.hub_id, hub_model.revision, hub_model.source) == (hub_id, revision, source)


@pytest.mark.parametrize("source", ["", "model", "./a/b", "/a/b", "a/b/c", "../a", "~/a", "a b/c"])
def test_a_path_is_not_a_hub_id(source: str) -> None:
    """Paths are not hub ids, unless they are two plain words."""
    assert catalog.resolve(source) is None


def test_the_closest_name() -> None:
    """A misspelt name finds the closest known name; a different one finds none."""
    assert catalog.closest_name("labse") == "LaBSE"
    assert catalog.closest_name("paraphrase-multilingual-minilm-l12-v2@main") == "paraphrase-multilingual-MiniLM-L12-v2"
    assert catalog.closest_name("zzz") == ""
