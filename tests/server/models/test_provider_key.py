"""The provider's own messages: in one line, bounded, and without a part of the API key or of a text."""

from typing import Any

import pytest
from isogloss_server.models.providers.errors import (
    MAX_SEARCHED_CHARACTERS,
    MAX_WORDS_CHARACTERS,
    own_words,
    redact_key,
)
from pydantic import SecretStr

KEY = SecretStr("sk-live-abcdefgh12345678")
NESTED: Any = {"error": {"error": {"error": {"error": {"error": "too deep"}}}}}


@pytest.mark.parametrize("quoted", ["sk-live-abcdefgh12345678", "abcdefgh", "12345678", "e-abcdef"])
def test_a_message_that_quotes_the_key_is_dropped(quoted: str) -> None:
    """A provider's message is dropped if it quotes the key, or a part of it."""
    assert redact_key(f"wrong: {quoted}***", KEY) == ""
    assert own_words({"message": f"wrong: {quoted}***"}, KEY, ["text"]) == ""


@pytest.mark.parametrize("message", ["the text is too long", "sk-live", ""])
def test_other_messages_are_passed_on(message: str) -> None:
    """A message without a part of the key is unchanged; so is every message without a key."""
    assert redact_key(message, KEY) == message
    assert redact_key("abcdefgh", SecretStr("")) == "abcdefgh"
    assert redact_key("a short one", SecretStr("xyz")) == "a short one"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"message": "too many texts"}, "too many texts"),
        ({"error": {"message": "no such model", "type": "x", "code": 404}}, "no such model"),
        ({"error": "no such model", "error_type": "validation"}, "no such model"),
        ({"object": "error", "message": "no such model"}, "no such model"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body", "input_type"], "msg": "Field required", "input": {"input": ["secret"]}}]},
         "body.input_type: Field required"),
        ({"title": "Bad Request", "status": 400}, "Bad Request"),
        ("plain words\nof a gateway\x1b[31m", "plain words of a gateway [31m"),
        ("<html><body>502", ""),
        (NESTED, ""),
        ({"message": 5}, ""),
        ([], ""),
        (None, ""),
        ("x" * 5000, "x" * MAX_WORDS_CHARACTERS),
    ],
)  # fmt: skip
def test_the_words_of_every_usual_body_are_found(body: Any, words: str) -> None:
    """The message is found in the bodies of providers and web frameworks, and made one printable line."""
    assert own_words(body, KEY, ["text of a caller"]) == words


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("invalid input: the caller's own words", "see the caller's own words, which are private"),
        ("invalid input: THE CALLER'S   OWN", "see the caller's\nown words, which are private"),
        ("invalid input 'Zoë'", "Zoë"),
        (r"invalid input 'Zo\u00eb and others'", "Zoë and others"),
        ("too long", "word " * MAX_SEARCHED_CHARACTERS),
    ],
)
def test_a_message_that_quotes_a_text_is_dropped(message: str, text: str) -> None:
    """A message with 12 characters of a text, a whole short text, or an escaped one is dropped."""
    assert own_words({"message": message}, KEY, ["another", text]) == ""
    assert own_words({"message": message}, KEY, ["another"]) == ("" if "\\" in message else " ".join(message.split()))
