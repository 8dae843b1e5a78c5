"""Static models: their vectors, truncation, spaces, and the errors of damaged folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.errors import ModelFilesError
from isogloss_server.models import model_folder, static
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.tokenizer import TextTokenizer
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.support.recorded_calls import RecordedCalls


@pytest.fixture
def folder(static_folder: Path) -> Path:
    """A small static model, to be modified."""
    return static_folder


def load(folder: Path) -> LoadedModel:
    return static.load(model_folder.locate(str(folder)))


def test_a_vector_is_the_mean_of_its_tokens(folder: Path) -> None:
    """The vector of a text is the mean of the table's rows of its tokens, unknown words among them."""
    parts = load(folder)
    tokens = parts.tokenizer.encode(["one two", "four", "zzz one one"], Truncation.END)
    rows = parts.model.forward(tokens.batch)
    np.testing.assert_array_equal(rows, np.array([[5.5, 6.5, 7.5], [13, 14, 15], [3, 4, 5]], np.float32))
    assert rows.dtype == np.float32


def test_a_vector_does_not_depend_on_the_batch() -> None:
    """The same text has the same bits alone, in every batch, and at every position in it."""
    parts = static.load(model_folder.locate(model_folder.BUNDLED))
    rng = np.random.default_rng(0)
    words = ["bonjour", "le", "monde", "wie", "geht", "es", "dir", "今日は", "123", "where", "is", "the", "station"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 60))) for _ in range(300)]
    together = parts.model.forward(parts.tokenizer.encode(texts, Truncation.END).batch)
    for row in rng.integers(0, 300, 40):
        alone = parts.model.forward(parts.tokenizer.encode([texts[row]], Truncation.END).batch)
        np.testing.assert_array_equal(alone[0], together[row])


def test_truncation_keeps_one_end_or_is_an_error(folder: Path) -> None:
    """A text over the tokenizer's limit keeps its start or its end, or is an error; its row is reported."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = load(folder).tokenizer
    texts = ["one", "one two three"]
    assert tokens.encode(texts, Truncation.END).batch.ids.tolist() == [1, 1, 2]
    assert tokens.encode(texts, Truncation.START).batch.ids.tolist() == [1, 2, 3]
    assert tokens.encode(texts, Truncation.START).truncated_rows == (1,)
    fault = tokens.encode(texts, Truncation.ERROR).row_errors[1]
    assert (fault.reason, fault.figures) == ("TEXT_TOO_LONG", {"actual": "3", "limit": "2"})


def test_a_text_without_tokens_is_an_error(folder: Path) -> None:
    """A text without tokens is a row error, not a vector of zeros."""
    faults = load(folder).tokenizer.encode(["one", "!!!"], Truncation.END).row_errors
    assert {row: fault.reason for row, fault in faults.items()} == {1: "TEXT_WITHOUT_TOKENS"}


def test_a_normalize_module_scales_to_unit_length(folder: Path) -> None:
    """A folder with Normalize has rows of unit length, and another space."""
    before = load(folder).card.space_id
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    parts = load(folder)
    rows = parts.model.forward(parts.tokenizer.encode(["one two"], Truncation.END).batch)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert parts.card.space_id != before


def test_prompts_belong_to_input_types(folder: Path) -> None:
    """A folder's prompts belong to input types, and change the space."""
    before = load(folder).card
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "two ", "document": ""}}')
    parts = load(folder)
    assert parts.prompts == {InputType.QUERY: "two "}
    assert (before.has_roles, parts.card.has_roles) == (False, True)
    assert parts.card.space_id != before.space_id


def test_the_default_prompt_is_that_of_input_types_without_a_prompt(folder: Path) -> None:
    """As in sentence-transformers, an input type without a prompt has the default one; an empty prompt is one."""
    config = {"prompts": {"query": "two ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    prompts = load(folder).prompts
    assert prompts == {input_type: "two " for input_type in InputType if input_type is not InputType.DOCUMENT}


LONG = {
    "words": "one two three four " * 3000,
    "one word": "one" * 20_000,
    "few tokens": "one" + " " * 60_000 + "two",
    "dots": "one." * 15_000,
}


@pytest.mark.parametrize("truncation", [Truncation.END, Truncation.START])
@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_is_truncated_as_if_it_had_been_tokenized_whole(kind: str, truncation: Truncation) -> None:
    """Only a piece of a long text is tokenized, and the tokens kept are those of the whole text."""
    tokenizer = Tokenizer.from_file(str(model_folder.locate(model_folder.BUNDLED).path / "tokenizer.json"))
    calls = RecordedCalls(tokenizer)
    tokens = TextTokenizer(calls, max_tokens=1000)  # type: ignore[arg-type]
    bounded = tokens.encode([LONG[kind]], truncation)
    if kind != "few tokens":
        assert max(calls.characters) <= 2 * 16_384
    whole = tokenizer.encode(LONG[kind], add_special_tokens=False).ids
    kept = whole[:1000] if truncation is Truncation.END else whole[-1000:]
    assert bounded.batch.ids.tolist() == kept
    assert bounded.truncated_rows == ((0,) if len(whole) > 1000 else ())


def test_the_error_of_a_long_text_has_a_lower_bound_of_its_tokens() -> None:
    """If only a piece of the text was tokenized, the error says that it has at least that many tokens."""
    tokenizer = Tokenizer.from_file(str(model_folder.locate(model_folder.BUNDLED).path / "tokenizer.json"))
    fault = TextTokenizer(tokenizer, max_tokens=1000).encode(["7" * 40_000], Truncation.ERROR).row_errors[0]
    assert "at least" in fault.message
    assert int(fault.figures["actual"]) > 1000


def test_the_space_depends_on_weights_and_tokenizer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A copy of a folder has the same space; other weights or another tokenizer have another one."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)
    assert load(copy).card.space_id == load(folder).card.space_id
    save_file({"embedding.weight": np.ones((5, 3), np.float16)}, copy / "model.safetensors")
    assert load(copy).card.space_id != load(folder).card.space_id


def test_the_bundled_model_has_the_properties_of_its_card() -> None:
    """The bundled model has languages, licence and Matryoshka dimensions, its own dimensions first."""
    folder = model_folder.locate(model_folder.BUNDLED)
    card = static.load(folder).card
    table = load_file(folder.path / "model.safetensors")["embedding.weight"]
    assert card.dimensions[0] == table.shape[1]
    assert card.license == "Apache-2.0"
    assert {"ar", "zh", "en", "fr", "de", "hi", "it", "pt", "es"} <= set(card.languages)


def damage_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no file model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no file tokenizer.json"),
    "no modules": (lambda f: (f / "modules.json").unlink(), "has no file modules.json"),
    "modules no JSON": (lambda f: (f / "modules.json").write_text("["), "modules.json is damaged"),
    "modules no list": (lambda f: (f / "modules.json").write_text('{"a": 1}'), "must hold a list"),
    "other module": (lambda f: (f / "modules.json").write_text('[{"type": "a.Transformer"}]'), "Transformer"),
    "short weights": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 20), "is damaged"),
    "tokenizer no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "is not a tokenizer"),
    "flipped bit": (damage_weights, "its sha256 is"),
    "other tensors": (lambda f: save_file({"w": np.ones((5, 3))}, f / "model.safetensors"), "only embedding.weight"),
    "flat table": (lambda f: save_file({"embeddings": np.ones(5)}, f / "model.safetensors"), "two dimensions"),
    "small table": (lambda f: save_file({"embeddings": np.ones((4, 3))}, f / "model.safetensors"), "4 rows"),
    "NaN table": (lambda f: save_file({"embeddings": np.full((5, 3), np.nan)}, f / "model.safetensors"), "finite"),
    "card no card": (lambda f: (f / "isogloss.json").write_text('{"licence": "x"}'), "licence"),
    "dimensions": (
        lambda f: (f / "isogloss.json").write_text('{"dimensions": [7]}'),
        "invalid dimensions (7,); its vectors have 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_error_names_the_damaged_file(folder: Path, damage: str) -> None:
    """For a missing or damaged file, the error is one line that names it."""
    harm, expected = DAMAGES[damage]
    if damage == "flipped bit":
        digest = model_folder.locate(str(folder)).digest("model.safetensors")
        (folder / "isogloss.json").write_text(json.dumps({"files": {"model.safetensors": digest}}))
    harm(folder)
    with pytest.raises(ModelFilesError) as raised:
        load(folder)
    assert expected in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "config_sentence_transformers.json"])
def test_the_limit_of_model2vec_is_that_of_its_configuration(folder: Path, name: str) -> None:
    """`max_length` wins over the tokenizer's own limit, which the library replaces; another limit is another space."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.save(str(folder / "tokenizer.json"))
    own = load(folder)
    (folder / name).write_text('{"max_length": 2}')
    assert load(folder).card == own.card
    (folder / name).write_text('{"max_length": 3}')
    three = load(folder)
    assert three.card.max_tokens == 3
    assert three.tokenizer.encode(["one two three one"], Truncation.END).batch.ids.tolist() == [1, 2, 3]
    (folder / name).write_text('{"max_length": null}')
    unlimited = load(folder)
    assert unlimited.card.max_tokens == static.MAX_TOKENS
    assert len({loaded.card.space_id for loaded in (own, three, unlimited)}) == 3


@pytest.mark.parametrize("limit", ["0", "-1", "2.5", '"many"', "true"])
def test_an_invalid_limit_is_an_error(folder: Path, limit: str) -> None:
    """The error names the file and the value."""
    (folder / "config.json").write_text(f'{{"max_length": {limit}}}')
    with pytest.raises(ModelFilesError, match=r"config\.json: max_length must be an integer from 1"):
        load(folder)


def test_a_table_of_bfloat16_is_read(folder: Path) -> None:
    """Numpy has no such type; its numbers are the upper halves of those in float32."""
    table = np.arange(15, dtype=np.float32).reshape(5, 3)
    header = json.dumps({"embedding.weight": {"dtype": "BF16", "shape": [5, 3], "data_offsets": [0, 30]}}).encode()
    content = len(header).to_bytes(8, "little") + header + table.view(np.uint16)[:, 1::2].tobytes()
    (folder / "model.safetensors").write_bytes(content)
    parts = load(folder)
    batch = parts.tokenizer.encode(["two"], Truncation.END).batch
    np.testing.assert_array_equal(parts.model.forward(batch), [[6, 7, 8]])
