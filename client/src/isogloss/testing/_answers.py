"""Requests -> responses, without gRPC: what the fake server answers. Refusals are raised as isogloss.errors."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray

from isogloss import __version__
from isogloss._messages.words import number
from isogloss.enums import ElementType, InputType, Priority, ServingStatus, Truncation
from isogloss.errors import InvalidArgumentError
from isogloss.testing import _checks as checks
from isogloss.testing._errors import to_status
from isogloss.testing._settings import Settings
from isogloss.testing._vectors import raw_rows, shaped, to_matrix
from isogloss.v1 import embedding_pb2 as pb


@dataclass(frozen=True, slots=True)
class Read:
    """Texts as the model reads them: raw rows int64 [n, d], tokens read, rows cut, and what is wrong with which row."""

    raw: NDArray[np.int64]
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]
    faults: dict[int, InvalidArgumentError]


class Answers:
    """Answers each method as the settings say at that moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started_s = time.monotonic()
        self._embedded_texts = 0

    def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the vectors of the request's texts."""
        settings, texts = self._settings, request.texts
        checks.word(InputType.SIMILARITY, request.input_type, "input_type")
        checks.word(Priority.INTERACTIVE, request.priority, "priority")
        element_type = checks.word(ElementType.FLOAT32, request.element_type, "element_type")
        truncation = checks.word(Truncation.END, request.truncation, "truncation")
        checks.check_model(settings, request.model)
        checks.check_texts(settings, texts, "texts")
        checks.check_request_bytes(settings, checks.utf8_bytes(texts), "texts")
        if request.space_id:
            checks.check_space(settings, request.space_id, "space_id")
        columns = checks.columns_of(settings, request.dimensions)
        checks.check_response_bytes(settings, checks.answer_bytes(len(texts), columns, element_type), "texts")
        read = self.read(texts, columns, truncation, "texts")
        if read.faults and not request.allow_partial:
            raise checks.merged(read.faults)
        normalize = request.normalize if request.HasField("normalize") else True
        return pb.EmbedResponse(
            embeddings=to_matrix(shaped(read.raw, normalize=normalize), element_type),
            model=settings.model,
            space_id=settings.space_id,
            token_counts=read.token_counts,
            truncated_rows=read.truncated,
            row_errors=[pb.RowError(row=row, status=to_status(fault)) for row, fault in read.faults.items()],
            total_tokens=sum(read.token_counts),
            per_text_counts=True,
        )

    def read(self, texts: Sequence[str], columns: int, truncation: Truncation, path: str) -> Read:
        """Returns `texts` as the model reads them; rows that cannot be embedded are zeros."""
        settings, most = self._settings, self._settings.max_tokens
        words = [text.split() for text in texts]
        counts = [len(found) for found in words]
        faults = checks.text_faults(texts, counts, truncation, most, path)
        truncated = [row for row, count in enumerate(counts) if count > most and row not in faults]
        cut = {row: words[row][-most:] if truncation is Truncation.START else words[row][:most] for row in truncated}
        seen = [" ".join(cut[row]) if row in cut else text for row, text in enumerate(texts)]
        raw = raw_rows(seen, settings.kin(), settings.space_id, columns)
        raw[list(faults)] = 0
        tokens = tuple(0 if row in faults else min(count, most) for row, count in enumerate(counts))
        self._embedded_texts += len(texts) - len(faults)
        return Read(raw, tokens, tuple(truncated), faults)

    def health(self, request: pb.HealthRequest) -> pb.HealthResponse:
        """Returns the status that the settings name."""
        settings = self._settings
        checks.check_model(settings, request.model)
        status = number(ServingStatus(settings.status))
        uptime = duration_pb2.Duration()
        uptime.FromNanoseconds(round((time.monotonic() - self._started_s) * 1e9))
        model = pb.ModelHealth(model=settings.model, status=status, embedded_texts=self._embedded_texts)
        return pb.HealthResponse(status=status, version=__version__, uptime=uptime, models=[model])

    def models(self, _request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Returns the one model, with its limits."""
        settings = self._settings
        model = pb.ModelInfo(
            name=settings.model,
            space_id=settings.space_id,
            backend="fake",
            dimensions=settings.offered_dimensions,
            max_tokens=settings.max_tokens,
            max_texts=settings.max_texts,
            max_request_bytes=settings.max_request_bytes,
            max_response_bytes=settings.max_response_bytes,
            max_pairs=settings.max_pairs,
            truncations=[number(truncation) for truncation in Truncation],
            license="Apache-2.0",
        )
        return pb.ListModelsResponse(models=[model])
