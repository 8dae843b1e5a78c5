"""Static models: a text's vector is the mean of its tokens' vectors. numpy alone; the bundled model is one.

Gives what sentence-transformers gives for the same folder (its StaticEmbedding module, with or without Normalize).
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from isogloss_server.errors import ModelFilesError
from isogloss_server.models import layout
from isogloss_server.models.interfaces import Rows, TokenBatch, Tolerance
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder, fingerprint
from isogloss_server.models.tokenizer import TextTokenizer, read_tokenizer

MAX_TOKENS = 32_768  # a static model has no limit of its own; this one bounds what a single text may take
TOLERANCE = Tolerance(known=1e-5, batch_invariance=0.0)
MODULES = (["StaticEmbedding"], ["StaticEmbedding", "Normalize"])
BLOCK_TOKENS = 16_384  # gathered at a time, so that memory stays bounded


class StaticModel:
    """A table of token vectors, float32 [vocabulary, d]."""

    def __init__(self, table: NDArray[np.float32], *, normalize: bool = False) -> None:
        self._table = table
        self._normalize = normalize

    @property
    def dimensions(self) -> int:
        """The width d of a vector."""
        return int(self._table.shape[1])

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d]: the mean of each text's token vectors, of unit length only where the model says so.

        Texts of equal length are averaged together, and each text's sum runs over its own tokens in their order: a
        vector is the same, bit for bit, in any company.
        """
        if len(batch.lengths) == 1 and len(batch.ids):
            return self._scaled(self._table[batch.ids].mean(axis=0)[None])
        starts = np.cumsum(batch.lengths) - batch.lengths
        rows = np.zeros((len(batch.lengths), self.dimensions), dtype=np.float32)
        for length in np.unique(batch.lengths[batch.lengths > 0]):
            alike = np.flatnonzero(batch.lengths == length)
            step = max(1, BLOCK_TOKENS // int(length))
            for block in (alike[first : first + step] for first in range(0, len(alike), step)):
                ids = batch.ids[starts[block, None] + np.arange(length)]
                rows[block] = self._table[ids].mean(axis=1)
        return self._scaled(rows)

    def _scaled(self, rows: Rows) -> Rows:
        if self._normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


def load(folder: ModelFolder) -> LoadedModel:
    """Returns the static model of a folder in the sentence-transformers layout.

    Raises:
        ModelFilesError: a file is missing, damaged, or the folder holds another kind of model.
    """
    names = layout.module_names(folder)
    if names not in MODULES:
        raise ModelFilesError(
            f"model folder {folder.path} holds modules {', '.join(names) or 'none'}; "
            "a static model is StaticEmbedding, alone or followed by Normalize"
        )
    prefix, normalize = layout.module_prefix(folder, 0), names[-1] == "Normalize"
    weights, tokenizer = f"{prefix}model.safetensors", f"{prefix}tokenizer.json"
    with ThreadPoolExecutor(4) as pool:  # digests and files at once: both release the interpreter
        digests = [pool.submit(folder.digest, name) for name in (weights, tokenizer)]
        tokens_read = pool.submit(_tokens, folder.file(tokenizer))
        table = pool.submit(_table, folder, weights)
        weights_digest, tokenizer_digest = (digest.result() for digest in digests)
        tokens, model = tokens_read.result(), StaticModel(table.result(), normalize=normalize)
    if tokens.vocabulary_size > len(table.result()):
        raise ModelFilesError(
            f"model folder {folder.path}: the tokenizer has {tokens.vocabulary_size} tokens, "
            f"the table {len(table.result())} rows"
        )
    prompts = layout.prompts(folder)
    space_id = fingerprint(
        architecture="static",
        weights=weights_digest,
        tokenizer=tokenizer_digest,
        pooling="mean",
        normalize=normalize,
        prompts={input_type.value: prompt for input_type, prompt in prompts.items()},
    )
    card = layout.card(folder, "static", space_id, tokens, model.dimensions)
    probes = [(probe.text, probe.vector) for probe in folder.card.probes]
    return LoadedModel(
        model=model, tokenizer=tokens, card=card, prompts=prompts, probes=probes, tolerance=TOLERANCE, batched=False
    )


def _tokens(file: Path) -> TextTokenizer:
    tokenizer = read_tokenizer(file)
    limit = (tokenizer.truncation or {}).get("max_length")
    return TextTokenizer(tokenizer, max_tokens=int(limit or MAX_TOKENS))


def _table(folder: ModelFolder, name: str) -> NDArray[np.float32]:
    file = folder.file(name)
    try:
        with safe_open(file, framework="numpy") as tensors:
            names = list(tensors.keys())
            if names not in (["embedding.weight"], ["embeddings"]):
                raise ModelFilesError(f"{file} holds {', '.join(names)}; a static model has embedding.weight alone")
            table = tensors.get_tensor(names[0])
    except (OSError, SafetensorError) as error:
        raise ModelFilesError(f"{file} is damaged: {error}") from error
    if table.ndim != 2 or table.dtype.kind != "f":
        raise ModelFilesError(f"{file}: the table must be floats of two dimensions, not {table.dtype} {table.shape}")
    widened: NDArray[np.float32] = table.astype(np.float32)
    if not np.isfinite(widened).all():
        raise ModelFilesError(f"{file} is damaged: the table holds numbers that are not finite")
    return widened
