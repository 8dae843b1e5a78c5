"""What Cohere and OpenAI answer to a request for embeddings: bodies as their API references and SDK types give them."""

import base64
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # [n, d]


class Refused(Exception):  # noqa: N818 - an answer, not an error of the test
    """The provider takes a request for wrong."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request that the provider takes asks for."""

    model: str
    texts: Sequence[str]
    kind: str  # the provider's word for what the texts are for
    width: int
    as_base64: bool


class Wire(Protocol):
    """One provider's side of the wire."""

    path: str  # the end of it
    max_tokens: int
    messages: Mapping[int, str]  # of errors that no request brings about by itself

    def read(self, body: Mapping[str, Any], widths: Mapping[str, int]) -> Asked:
        """Returns what a body asks for.

        Raises:
            Refused: the provider takes no such request.
        """
        ...

    def write(self, asked: Asked, rows: Rows, order: Sequence[int], tokens: int) -> dict[str, Any]:
        """Returns the body of an answer that gives row i of float32 [n, d] for each i of `order`."""
        ...

    def error(self, refused: Refused) -> dict[str, Any]:
        """Returns the body of an error."""
        ...

    def bad_key(self, key: str) -> Refused:
        """Returns what is said to a key that the provider does not know."""
        ...


def vectors_of(model: str, kind: str, texts: Sequence[str], width: int) -> Rows:
    """Returns float32 [n, width], unit length: each text's vector of that model and kind, ever the same."""
    rows = np.empty((len(texts), width), np.float32)
    for row, text in zip(rows, texts, strict=True):
        digest = hashlib.sha256(f"{model}\0{kind}\0{text}".encode()).digest()
        full = np.random.default_rng(int.from_bytes(digest[:8])).standard_normal(width)
        row[:] = full / np.linalg.norm(full)
    return rows


def tokens_of(text: str) -> int:
    """Returns how many tokens the provider counts: its words."""
    return len(text.split())


def _encoded(row: Rows, *, as_base64: bool) -> str | list[float]:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if as_base64 else row.tolist()


def _width(model: str, widths: Mapping[str, int], message: str, code: str | None = None) -> int:
    if model not in widths:
        raise Refused(404, message.format(model=model), code=code)
    return widths[model]


class CohereWire:
    """POST /v2/embed."""

    path = "/v2/embed"
    max_texts: ClassVar = 96
    max_tokens = 512
    input_types: ClassVar = {"search_document", "search_query", "classification", "clustering"}
    output_dimensions: ClassVar = {256, 512, 1024, 1536}  # of embed-v4.0
    messages: Mapping[int, str] = {
        429: "You are using a Trial key, which is limited to 100 API calls / minute.",
        498: "invalid token",
        500: "internal server error, this has been reported to our developers",
        503: "service unavailable",
    }

    def read(self, body: Mapping[str, Any], widths: Mapping[str, int]) -> Asked:
        """Returns what a body asks for; see `Wire`."""
        missing = "model '{model}' not found, make sure the correct model ID was used"
        width = _width(body["model"], widths, missing)
        texts, types = body["texts"], body["embedding_types"]
        if len(texts) > self.max_texts:
            raise Refused(400, f"invalid request: total number of texts must be at most 96 - received {len(texts)}")
        if not texts or not all(texts):
            raise Refused(400, "invalid request: texts must not be empty")
        if body["input_type"] not in self.input_types:
            raise Refused(400, "invalid request: valid input_type must be specified with the provided model")
        if body.get("truncate", "END") not in {"NONE", "START", "END"}:
            raise Refused(422, "invalid request: truncate must be one of NONE, START, END")
        if body.get("truncate") == "NONE" and any(tokens_of(text) > self.max_tokens for text in texts):
            raise Refused(400, "invalid request: too many tokens, and truncate is NONE")
        if types not in (["base64"], ["float"]):
            raise Refused(422, "invalid request: embedding_types")
        if "output_dimension" in body:
            if body["model"] != "embed-v4.0" or body["output_dimension"] not in self.output_dimensions:
                raise Refused(400, "invalid request: output_dimension is not supported")
            width = body["output_dimension"]
        return Asked(body["model"], texts, body["input_type"], width, types == ["base64"])

    def write(self, asked: Asked, rows: Rows, order: Sequence[int], tokens: int) -> dict[str, Any]:
        """Returns the body of an answer; see `Wire`."""
        kind = "base64" if asked.as_base64 else "float"
        return {
            "id": str(uuid.uuid4()),
            "embeddings": {kind: [_encoded(rows[row], as_base64=asked.as_base64) for row in order]},
            "texts": list(asked.texts),
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
            "response_type": "embeddings_by_type",
        }

    def error(self, refused: Refused) -> dict[str, Any]:
        """Returns the body of an error."""
        return {"id": str(uuid.uuid4()), "message": refused.message}

    def bad_key(self, key: str) -> Refused:
        """Returns what is said to a key that the provider does not know."""
        return Refused(401, "invalid api token" if key else "no api key supplied")


class OpenAIWire:
    """POST /embeddings."""

    path = "/embeddings"
    max_texts: ClassVar = 2048
    max_tokens = 8192
    messages: Mapping[int, str] = {
        429: "Rate limit reached for requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.",
        500: "The server had an error while processing your request. Sorry about that!",
        503: "The engine is currently overloaded, please try again later",
    }

    def read(self, body: Mapping[str, Any], widths: Mapping[str, int]) -> Asked:
        """Returns what a body asks for; see `Wire`."""
        missing = "The model `{model}` does not exist or you do not have access to it."
        width = _width(body["model"], widths, missing, code="model_not_found")
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        if len(texts) > self.max_texts:
            long = f"Expected an array with maximum length 2048, but got an array with length {len(texts)} instead."
            raise Refused(400, f"Invalid 'input': array too long. {long}", code="array_above_max_length", param="input")
        if not texts or not all(texts):
            raise Refused(400, "Invalid 'input': input cannot be an empty string.", param="input")
        if (most := max(map(tokens_of, texts))) > self.max_tokens:
            raise Refused(400, f"This model's maximum context length is 8192 tokens, however you requested {most}")
        if sum(map(tokens_of, texts)) > 300_000:
            raise Refused(400, "Requested more than 300000 tokens", code="max_tokens_per_request", param="input")
        if body.get("encoding_format", "float") not in {"base64", "float"}:
            raise Refused(400, "Invalid value for 'encoding_format'", param="encoding_format")
        if unknown := set(body) - {"input", "model", "encoding_format", "dimensions", "user"}:
            raise Refused(400, f"Unrecognized request arguments supplied: {', '.join(sorted(unknown))}")
        return Asked(body["model"], texts, "", body.get("dimensions", width), body.get("encoding_format") == "base64")

    def write(self, asked: Asked, rows: Rows, order: Sequence[int], tokens: int) -> dict[str, Any]:
        """Returns the body of an answer; see `Wire`."""
        data = [
            {"object": "embedding", "index": row, "embedding": _encoded(rows[row], as_base64=asked.as_base64)}
            for row in order
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": asked.model, "usage": usage}

    def error(self, refused: Refused) -> dict[str, Any]:
        """Returns the body of an error."""
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        return {"error": {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}}

    def bad_key(self, key: str) -> Refused:
        """Returns what is said to a key that the provider does not know: it quotes the beginning and the end."""
        if not key:
            return Refused(401, "You didn't provide an API key.")
        quoted = f"{key[:8]}{'*' * max(0, len(key) - 12)}{key[-4:]}"
        where = "You can find your API key at https://platform.openai.com/account/api-keys."
        return Refused(401, f"Incorrect API key provided: {quoted}. {where}", code="invalid_api_key")
