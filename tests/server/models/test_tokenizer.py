"""Texts to tokens where special ones stand around each text."""

import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models.tokenizer import TextTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["<s>", "</s>", "query", ":", "one", "two", "three", "four", "five", "a"]


def tokenizer(template: str = "<s> $A </s>") -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}))
    made.normalizer = normalizers.Replace("!", "")
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


def words(tokens: TextTokenizer, text: str, truncation: Truncation, prompt: str = "") -> list[str]:
    return [WORDS[number] for number in tokens.encode_with_prompt(prompt, [text], truncation).batch.ids]


def test_special_tokens_stand_around_each_text() -> None:
    """A text that fits stands between the special tokens, and is not called truncated."""
    tokens = TextTokenizer(tokenizer(), max_tokens=4, special=True)
    tokenized = tokens.encode(["one two", "three four five"], Truncation.END)
    assert tokenized.batch.lengths.tolist() == [4, 4]
    assert tokenized.truncated_rows == (1,)
    assert words(tokens, "one two", Truncation.END) == ["<s>", "one", "two", "</s>"]


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [(Truncation.END, ["query", ":", "one"]), (Truncation.START, ["query", ":", "five"])],
)
def test_a_prompt_is_never_cut_off(truncation: Truncation, kept: list[str]) -> None:
    """Whichever end of a long text is cut, its prompt stays before what is left."""
    tokens = TextTokenizer(tokenizer(), max_tokens=5, special=True)
    assert words(tokens, "one two three four five", truncation, "query: ") == ["<s>", *kept, "</s>"]


def test_a_prompt_longer_than_the_room_harms_no_other_text() -> None:
    """Where a prompt fills all that the model reads, its tokens stay between the special ones of its own text."""
    tokens = TextTokenizer(tokenizer(), max_tokens=3, special=True)
    batch = tokens.encode_with_prompt("query: ", ["one two", "three"], Truncation.START).batch
    assert [WORDS[number] for number in batch.ids] == ["<s>", "query", "</s>"] * 2


def test_a_text_too_long_is_told_with_its_special_tokens() -> None:
    """The error counts as the limit does: special tokens included."""
    fault = (
        TextTokenizer(tokenizer(), max_tokens=4, special=True).encode(["one two three"], Truncation.ERROR).row_errors[0]
    )
    assert fault.figures == {"actual": "5", "limit": "4"}


def test_a_prompt_stands_in_for_no_text() -> None:
    """A text that leaves no token is at fault behind a prompt as well."""
    tokens = TextTokenizer(tokenizer(), max_tokens=9, special=True)
    assert list(tokens.encode_with_prompt("query: ", ["one", "!!!", "two"], Truncation.END).row_errors) == [1]


def test_a_limit_without_room_is_refused() -> None:
    """A model that reads nothing but special tokens is no model."""
    with pytest.raises(ModelFilesError, match="reads 2 tokens has no room"):
        TextTokenizer(tokenizer(), max_tokens=2, special=True)


def test_a_tokenizer_that_cannot_be_understood_is_refused() -> None:
    """Where what stands around a text cannot be told, nothing is made up."""
    odd = tokenizer()
    odd.normalizer = normalizers.Replace("a", "")  # the probe that shows what stands around it
    with pytest.raises(UnsupportedModelError, match="more to a text"):
        TextTokenizer(odd, max_tokens=9, special=True)


def test_the_vocabulary_reaches_to_the_highest_id() -> None:
    """A vocabulary with gaps needs a table up to its highest id, not as long as it has tokens."""
    gaps = Tokenizer(models.WordLevel({"a": 0, "one": 7}))
    gaps.pre_tokenizer = pre_tokenizers.Whitespace()
    assert TextTokenizer(gaps, max_tokens=9).vocabulary_size == 8
