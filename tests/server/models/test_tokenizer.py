"""Tokenizing texts with special tokens around them, and with prompts."""

import pytest
from isogloss.wire.enums import Truncation
from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models.tokenizer import CALL_CHARACTERS, CHARACTERS_PER_TOKEN, TextTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.support.recorded_calls import RecordedCalls

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


def recorded(*, max_tokens: int) -> tuple[TextTokenizer, RecordedCalls]:
    """Returns a tokenizer for which any other word is one unknown token, however long."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    made.normalizer = normalizers.Replace("!", "")
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    calls = RecordedCalls(made)
    tokens = TextTokenizer(calls, max_tokens=max_tokens)  # type: ignore[arg-type]
    calls.clear()
    return tokens, calls


HUGE = "0123456789abcdef" * (1 << 18)  # 4 MiB without white space


@pytest.mark.parametrize(
    "texts",
    [["one"], ["one two"] * 8, ["three " * 300], ["four"] * 5000, ["five " * 40_000], [HUGE], [HUGE, "one", HUGE]],
)
@pytest.mark.parametrize("truncation", Truncation)
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_the_interpreter_is_released_at_every_size(texts: list[str], truncation: Truncation, prompt: str) -> None:
    """Each call into the library is the one that releases the interpreter, and gets a bounded number of characters."""
    tokens, calls = recorded(max_tokens=300)
    tokens.encode_with_prompt(prompt, texts, truncation)
    assert set(calls.names) == {"encode_batch_fast"}
    assert max(calls.characters) <= 2 * CALL_CHARACTERS


def test_few_characters_never_wait_for_the_threads_of_the_library() -> None:
    """The library computes a list of texts on its threads, and a single text on the calling one."""
    tokens, calls = recorded(max_tokens=300)
    tokens.encode(["one two"] * 100, Truncation.END)
    assert calls.characters == [len("one two")] * 100
    calls.clear()
    tokens.encode(["one two"] * 1000, Truncation.END)
    assert calls.characters == [1000 * len("one two")]


@pytest.mark.parametrize(("truncation", "kept"), [(Truncation.END, "one"), (Truncation.START, "two")])
def test_a_text_of_few_tokens_is_read_up_to_a_number_of_characters(truncation: Truncation, kept: str) -> None:
    """Of a text with hardly any tokens, a piece at the kept end is read, and its row is reported as truncated."""
    tokens, _ = recorded(max_tokens=10)
    tokenized = tokens.encode([f"one {HUGE} two"], truncation)
    assert sorted(WORDS[number] for number in tokenized.batch.ids) == sorted([kept, "a"])
    assert tokenized.truncated_rows == (0,)


def test_the_error_of_a_text_of_few_tokens_counts_characters() -> None:
    """Without truncation, a text that is too long to be read whole is an error with the limit in characters."""
    tokens, _ = recorded(max_tokens=1 << 13)
    error = tokens.encode([HUGE], Truncation.ERROR).row_errors[0]
    limit = CHARACTERS_PER_TOKEN << 13
    assert (error.reason, error.figures) == ("TEXT_TOO_LONG", {"actual": str(len(HUGE)), "limit": str(limit)})
    assert f"has {len(HUGE)} characters, of which the model reads at most {limit}" in error.message


@pytest.mark.parametrize("truncation", Truncation)
def test_a_long_text_whose_read_characters_have_no_tokens_is_too_long(truncation: Truncation) -> None:
    """The error does not state that the whole text has no tokens, since a part of it was never read."""
    tokens, _ = recorded(max_tokens=10)
    text = "!" * len(HUGE)
    assert tokens.encode([text], truncation).row_errors[0].reason == "TEXT_TOO_LONG"


def test_a_prompt_stays_within_the_tokens_of_its_text() -> None:
    """A prompt with more tokens than the kept part of its text does not change the next text."""
    tokens, _ = recorded(max_tokens=10)
    batch = tokens.encode_with_prompt("query : " * 4, [HUGE, "three"], Truncation.START).batch
    assert [WORDS[number] for number in batch.ids[-1:]] == ["three"]
    assert [WORDS[number] for number in batch.ids[batch.lengths[0] :]] == ["query", ":"] * 4 + ["three"]
