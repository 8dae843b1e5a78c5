"""The catalogue: its rows hold together, and names find them."""

import re

import pytest
from isogloss.wire.enums import InputType
from isogloss_server.models import catalog
from isogloss_server.models.catalog import KNOWN, KnownModel

TAG = re.compile(r"[a-z]{2,3}(-[A-Z]{2})?")  # of BCP 47, as far as the rows go


def test_names_are_distinct() -> None:
    """No two rows answer to one name."""
    answered = [name for known in KNOWN for name in (known.name, known.hub_id)]
    assert len({name.lower() for name in answered}) == len(answered) >= 26


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_row_holds_together(known: KnownModel) -> None:
    """A row is pinned to a whole commit, its dimensions descend, its input types and languages are known."""
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
def test_both_names_find_a_row(name: str) -> None:
    """A model is found by its short name and by its hub id, and by nothing else."""
    known = catalog.find(name)
    assert known is not None
    assert (known.hub_id, known.source) == (
        "sentence-transformers/LaBSE",
        "https://huggingface.co/sentence-transformers/LaBSE",
    )
    assert catalog.find(name[:-1]) is None


def test_e5_prompts_are_roles() -> None:
    """The e5 models read documents as passages, and everything else as queries."""
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
def test_names_of_the_hub(source: str, hub_id: str, revision: str) -> None:
    """A revision after an @ is taken; a model that is not known comes from its main branch."""
    wanted = catalog.resolve(source)
    assert wanted is not None
    assert (wanted.hub_id, wanted.revision, wanted.source) == (hub_id, revision, source)


@pytest.mark.parametrize("source", ["", "model", "./a/b", "/a/b", "a/b/c", "../a", "~/a", "a b/c"])
def test_what_is_no_name_of_the_hub(source: str) -> None:
    """Paths are never taken for hub ids, however they are written, unless they are two plain words."""
    assert catalog.resolve(source) is None


def test_a_name_that_is_nearly_right() -> None:
    """A slip finds the known name that was meant; something else finds none."""
    assert catalog.closest_name("labse") == "LaBSE"
    assert catalog.closest_name("paraphrase-multilingual-minilm-l12-v2@main") == "paraphrase-multilingual-MiniLM-L12-v2"
    assert catalog.closest_name("zzz") == ""
