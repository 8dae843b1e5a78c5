"""Tokenizing texts with special tokens around them, and with prompts."""

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


def test_special_tokens_surround_each_text() -> None:
    """A text within the limit is between the special tokens, and is not truncated."""
    tokens = TextTokenizer(tokenizer(), max_tokens=4, special=True)
    tokenized = tokens.encode(["one two", "three four five"], Truncation.END)
    assert tokenized.batch.lengths.tolist() == [4, 4]
    assert tokenized.truncated_rows == (1,)
    assert words(tokens, "one two", Truncation.END) == ["<s>", "one", "two", "</s>"]


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [(Truncation.END, ["query", ":", "one"]), (Truncation.START, ["query", ":", "five"])],
)
def test_truncation_keeps_the_prompt(truncation: Truncation, kept: list[str]) -> None:
    """At whichever end a long text is truncated, its prompt stays before the rest."""
    tokens = TextTokenizer(tokenizer(), max_tokens=5, special=True)
    assert words(tokens, "one two three four five", truncation, "query: ") == ["<s>", *kept, "</s>"]


def test_a_prompt_over_the_limit_does_not_affect_other_texts() -> None:
    """If a prompt fills the limit, its tokens stay between the special tokens of its own text."""
    tokens = TextTokenizer(tokenizer(), max_tokens=3, special=True)
    batch = tokens.encode_with_prompt("query: ", ["one two", "three"], Truncation.START).batch
    assert [WORDS[number] for number in batch.ids] == ["<s>", "query", "</s>"] * 2


def test_the_error_of_a_long_text_counts_special_tokens() -> None:
    """The error counts special tokens, as the limit does."""
    fault = (
        TextTokenizer(tokenizer(), max_tokens=4, special=True).encode(["one two three"], Truncation.ERROR).row_errors[0]
    )
    assert fault.figures == {"actual": "5", "limit": "4"}


def test_a_text_without_tokens_is_an_error_with_a_prompt_too() -> None:
    """A text without tokens is a row error, also after a prompt."""
    tokens = TextTokenizer(tokenizer(), max_tokens=9, special=True)
    assert list(tokens.encode_with_prompt("query: ", ["one", "!!!", "two"], Truncation.END).row_errors) == [1]


def test_a_limit_without_room_for_text_is_rejected() -> None:
    """A model whose limit is used up by special tokens is rejected."""
    with pytest.raises(ModelFilesError, match="invalid limit of 2 tokens: special tokens leave no room"):
        TextTokenizer(tokenizer(), max_tokens=2, special=True)


def test_a_tokenizer_with_unknown_special_tokens_is_rejected() -> None:
    """If the special tokens around a text cannot be determined, the tokenizer is rejected."""
    odd = tokenizer()
    odd.normalizer = normalizers.Replace("a", "")  # the text that special tokens are determined with
    with pytest.raises(UnsupportedModelError, match="does more than add tokens before and after a text"):
        TextTokenizer(odd, max_tokens=9, special=True)


def test_the_vocabulary_size_covers_the_highest_id() -> None:
    """The size of a vocabulary with gaps is its highest id and one, not its number of tokens."""
    gaps = Tokenizer(models.WordLevel({"a": 0, "one": 7}))
    gaps.pre_tokenizer = pre_tokenizers.Whitespace()
    assert TextTokenizer(gaps, max_tokens=9).vocabulary_size == 8
