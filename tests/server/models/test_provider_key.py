"""The provider's messages never reveal a part of the API key."""

import pytest
from isogloss_server.models.providers.errors import redact_key
from pydantic import SecretStr

KEY = SecretStr("sk-live-abcdefgh12345678")


@pytest.mark.parametrize("quoted", ["sk-live-abcdefgh12345678", "abcdefgh", "12345678", "e-abcdef"])
def test_a_message_that_quotes_the_key_is_dropped(quoted: str) -> None:
    """A provider's message is dropped if it quotes the key, or a part of it."""
    assert redact_key(f"wrong: {quoted}***", KEY) == ""


@pytest.mark.parametrize("message", ["the text is too long", "sk-live", ""])
def test_other_messages_are_passed_on(message: str) -> None:
    """A message without a part of the key is unchanged; so is every message without a key."""
    assert redact_key(message, KEY) == message
    assert redact_key("abcdefgh", SecretStr("")) == "abcdefgh"
    assert redact_key("a short one", SecretStr("xyz")) == "a short one"
