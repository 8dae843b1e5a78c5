"""What a FakeServer can be told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from isogloss.enums import ServingStatus

MEBIBYTE = 2**20


@dataclass(kw_only=True, eq=False)
class Settings:
    """What the fake server serves. Every attribute may be changed while it runs, and holds from the next call on.

    Attributes:
        translations: Groups of texts whose vectors lie near each other.
        dimensions: Numbers of a vector; several are what a request may ask for, the model's own first.
        model: The name of the only model.
        space_id: The space of its vectors. Vectors of another space are other vectors.
        status: How the model fares, as Health tells it; calls are answered all the same.
        max_tokens: Tokens that the model reads of one text. A token is a word, by white space.
        max_texts: Texts of one request.
        max_request_bytes: Bytes of texts and vectors of one request.
        max_response_bytes: Bytes of one answer.
        max_pairs: Queries times candidates of one Similarity.
    """

    translations: Iterable[Sequence[str]] = ()
    dimensions: int | Sequence[int] = 256
    model: str = "fake"
    space_id: str = "fake-space"
    status: ServingStatus = ServingStatus.SERVING
    max_tokens: int = 512
    max_texts: int = 1000
    max_request_bytes: int = 4 * MEBIBYTE
    max_response_bytes: int = 16 * MEBIBYTE
    max_pairs: int = 4 * MEBIBYTE

    @property
    def offered_dimensions(self) -> tuple[int, ...]:
        """What a request may ask for, the model's own first."""
        return (self.dimensions,) if isinstance(self.dimensions, int) else tuple(self.dimensions)

    def add_translations(self, *texts: str) -> None:
        """Lets the vectors of `texts` lie near each other, and near all that already did to one of them."""
        self.translations = [*self.translations, texts]

    def kin(self) -> dict[str, str]:
        """Returns for each text that is listed the text that its group's vectors lie around."""
        heads: dict[str, str] = {}
        for group in self.translations:
            if isinstance(group, str):
                raise TypeError(f"translations are groups of texts, not a single text: {group!r}")
            found = {heads[text] for text in group if text in heads}
            known = [head for head in dict.fromkeys(heads.values()) if head in found]  # the earliest group's first
            head = next(iter([*known, *group]), "")
            if len(known) > 1:  # a group that joins others
                heads |= {text: head for text, other in heads.items() if other in known}
            heads |= dict.fromkeys(group, head)
        return heads

    def __post_init__(self) -> None:
        self.translations = list(self.translations)  # an iterator could be read only once
        self.kin()  # says at once what is wrong with them
