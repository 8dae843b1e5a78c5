"""What a row is kept under: a digest of its text and of all that a row depends on, from which no text can be read."""

from collections.abc import Sequence
from hashlib import blake2b

from isogloss_server.models.base import ModelCard, Role, Truncation

KEY_BYTES = 32


def keys_of(texts: Sequence[str], card: ModelCard, role: Role, truncation: Truncation) -> list[bytes]:
    """Returns the key of each text, of KEY_BYTES bytes.

    The runtime is part of it beside the space: bf16 and f32 share a space, but whoever chose f32 wants no row of a
    bf16 server. The role is, where the model has roles.
    """
    manner = (card.backend, card.space_id, role.value if card.has_roles else "", truncation.value)
    begun = blake2b("".join(f"{word}\0" for word in manner).encode(), digest_size=KEY_BYTES)
    keys = []
    for text in texts:
        digest = begun.copy()  # half the time of a new one
        digest.update(text.encode())
        keys.append(digest.digest())
    return keys
