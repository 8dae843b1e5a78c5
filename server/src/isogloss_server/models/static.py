"""Static models, such as the bundled one: a text's vector is the mean of its tokens' vectors, computed with numpy.

The vectors are those of sentence-transformers' module StaticEmbedding, with or without Normalize.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from isogloss_server.errors import ModelFilesError
from isogloss_server.models import layout
from isogloss_server.models.interfaces import Rows, TokenBatch, Tolerance
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFile, ModelFolder, fingerprint, integer
from isogloss_server.models.safetensors_file import Tensors
from isogloss_server.models.tokenizer import TextTokenizer, read_tokenizer

MAX_TOKENS = 32_768  # static models have no limit; this one bounds the memory and time of a text
TOLERANCE = Tolerance(known=1e-5, batch_invariance=0.0)
MODULES = (["StaticEmbedding"], ["StaticEmbedding", "Normalize"])
BLOCK_TOKENS = 16_384  # gathered at a time, which bounds memory


class StaticModel:
    """A model that averages the rows of a table, float32 [vocabulary, d]."""

    def __init__(self, table: NDArray[np.float32], *, normalize: bool = False) -> None:
        self._table = table
        self._normalize = normalize

    @property
    def dimensions(self) -> int:
        """The number of dimensions d of a vector."""
        return int(self._table.shape[1])

    def forward(self, batch: TokenBatch) -> Rows:
        """Averages each text's token vectors.

        Texts of equal length are averaged together, and each text's sum runs over its own tokens in their order: a
        vector is the same, bit for bit, in every batch.

        Returns:
            float32 [n, d], of unit length if the model has a Normalize module; zeros for a text without tokens.
        """
        if len(batch.lengths) == 1 and len(batch.ids):
            return self._normalized(self._table[batch.ids].mean(axis=0)[None])
        starts = np.cumsum(batch.lengths) - batch.lengths
        rows = np.zeros((len(batch.lengths), self.dimensions), dtype=np.float32)
        for length in np.unique(batch.lengths[batch.lengths > 0]):
            texts = np.flatnonzero(batch.lengths == length)
            step = max(1, BLOCK_TOKENS // int(length))
            for block in (texts[first : first + step] for first in range(0, len(texts), step)):
                ids = batch.ids[starts[block, None] + np.arange(length)]
                rows[block] = self._table[ids].mean(axis=1)
        return self._normalized(rows)

    def _normalized(self, rows: Rows) -> Rows:
        if self._normalize:
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


def load(folder: ModelFolder) -> LoadedModel:
    """Loads the static model of a folder.

    Raises:
        ModelFilesError: A file is missing or damaged, or the folder has another kind of model.
    """
    names = layout.module_names(folder)
    if names not in MODULES:
        raise ModelFilesError(
            f"model folder {folder.path}: unsupported modules {', '.join(names) or '(none)'}; "
            "a static model has StaticEmbedding, and optionally Normalize"
        )
    prefix, normalize = layout.module_prefix(folder, 0), names[-1] == "Normalize"
    weights, tokenizer_json = f"{prefix}model.safetensors", f"{prefix}tokenizer.json"
    with ThreadPoolExecutor(2) as pool:  # in parallel: digests, tokenizer and conversion release the GIL
        reading = pool.submit(_read_tokenizer, folder, tokenizer_json)
        table = _table(folder.read(weights))
        tokenizer, limit = reading.result()
    if tokenizer.vocabulary_size > len(table):
        raise ModelFilesError(
            f"model folder {folder.path}: the tokenizer has {tokenizer.vocabulary_size} tokens, "
            f"but the table has {len(table)} rows"
        )
    model = StaticModel(table, normalize=normalize)
    prompts = layout.prompts(folder)
    space_id = fingerprint(
        **({"max_tokens": limit} if limit else {}),
        architecture="static",
        weights=folder.digest(weights),
        tokenizer=folder.digest(tokenizer_json),
        pooling="mean",
        normalize=normalize,
        prompts={input_type.value: prompt for input_type, prompt in prompts.items()},
    )
    card = layout.card(folder, "static", space_id, tokenizer, model.dimensions)
    probes = [(probe.text, probe.vector) for probe in folder.card.probes]
    return LoadedModel(
        model=model, tokenizer=tokenizer, card=card, prompts=prompts, probes=probes, tolerance=TOLERANCE, batched=False
    )


def _read_tokenizer(folder: ModelFolder, name: str) -> tuple[TextTokenizer, int | None]:
    """Returns the tokenizer, and the limit of a text in tokens if a configuration changes that of the tokenizer."""
    tokenizer = read_tokenizer(folder.read(name))
    own = int((tokenizer.truncation or {}).get("max_length") or MAX_TOKENS)
    limit = _configured_limit(folder, own)
    return TextTokenizer(tokenizer, max_tokens=limit), None if limit == own else limit


def _configured_limit(folder: ModelFolder, own: int) -> int:
    """Returns `max_length`, which model2vec saves, and which replaces the tokenizer's `own`; null: MAX_TOKENS."""
    for name in (f"{layout.module_prefix(folder, 0)}config.json", "config.json", layout.CONFIG):
        config = layout.optional_object(folder, name)
        if "max_length" in config:
            if config["max_length"] is None:
                return MAX_TOKENS
            return min(integer(config, "max_length", folder.path / name), MAX_TOKENS)
    return own


def _table(file: ModelFile) -> NDArray[np.float32]:
    """Returns the table of a file: the bytes as read if they are float32, else a copy."""
    tensors = Tensors(file.data, file.path)
    if tensors.names not in (["embedding.weight"], ["embeddings"]):
        raise ModelFilesError(
            f"{file.path} has tensors {', '.join(tensors.names)}; a static model has only embedding.weight"
        )
    table = tensors.find(tensors.names[0]).whole()
    if table.ndim != 2:
        raise ModelFilesError(f"{file.path}: the table must have two dimensions instead of {table.ndim}")
    if not np.isfinite(table).all():
        raise ModelFilesError(f"{file.path} is damaged: the table has numbers that are not finite")
    return table
