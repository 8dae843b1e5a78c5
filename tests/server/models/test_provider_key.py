"""No piece of the key is passed on with what a provider says."""

import pytest
from isogloss_server.models.providers.errors import redact_key
from pydantic import SecretStr

KEY = SecretStr("sk-live-abcdefgh12345678")


@pytest.mark.parametrize("quoted", ["sk-live-abcdefgh12345678", "abcdefgh", "12345678", "e-abcdef"])
def test_a_sentence_that_quotes_the_key_is_dropped(quoted: str) -> None:
    """Whether all of the key or a piece of it, a provider that quotes it is not quoted."""
    assert redact_key(f"wrong: {quoted}***", KEY) == ""


@pytest.mark.parametrize("said", ["the text is too long", "sk-live", ""])
def test_other_sentences_are_passed_on(said: str) -> None:
    """What has no piece of the key stays as it is, and so does everything where there is no key."""
    assert redact_key(said, KEY) == said
    assert redact_key("abcdefgh", SecretStr("")) == "abcdefgh"
    assert redact_key("a short one", SecretStr("xyz")) == "a short one"
