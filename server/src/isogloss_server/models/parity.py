"""Compares a model's vectors with those that sentence-transformers computes from the same folder."""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server.errors import ModelFilesError, first_line
from isogloss_server.models.interfaces import Rows
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder

LIBRARY = "sentence_transformers"

# Lowest minimum and mean cosine of a faithful model: by precision, which the backend's name ends in, else float32's.
GATES = {"bf16": (0.9995, 0.9999)}
F32_GATE = (0.99999, 0.99999)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The similarity of n rows to those of sentence-transformers.

    Attributes:
        prompt: The prompt before each text.
        min_cosine: The lowest cosine of a row.
        mean_cosine: The mean cosine of the rows.
        difference: The largest difference of a number, as a share of the vector's length.
        is_faithful: True if both cosines are within the precision of the backend.
    """

    prompt: str
    min_cosine: float
    mean_cosine: float
    difference: float
    is_faithful: bool

    def __str__(self) -> str:
        verdict = "within its precision" if self.is_faithful else "NOT within its precision"
        prompt = f"prompt {self.prompt!r}" if self.prompt else "no prompt"
        return (
            f"{prompt}: minimum cosine {self.min_cosine:.7f}, mean {self.mean_cosine:.7f}, "
            f"largest difference {self.difference:.1e}: {verdict}"
        )


def is_available() -> bool:
    """Returns True if sentence-transformers is installed."""
    return importlib.util.find_spec(LIBRARY) is not None


def compare(folder: ModelFolder, loaded: LoadedModel) -> Iterator[Comparison]:
    """Yields one comparison for each distinct prompt, the empty one of input types without a prompt included.

    Raises:
        ModelFilesError: sentence-transformers cannot load or run the folder.
    """
    texts = sentences()
    prompts = dict.fromkeys(loaded.prompts.get(input_type, "") for input_type in InputType)
    try:
        theirs = _library_rows(folder, texts, prompts)
    except Exception as error:  # the library raises exceptions of many packages
        raise ModelFilesError(
            f"sentence-transformers cannot run {folder.path}: {type(error).__name__}: {first_line(error)}"
        ) from error
    for prompt, rows in theirs.items():
        batch = loaded.tokenizer.encode([prompt + text for text in texts], Truncation.END).batch
        yield compare_rows(prompt, loaded.model.forward(batch), rows, loaded.card.backend)


def _library_rows(folder: ModelFolder, texts: list[str], prompts: Iterable[str]) -> dict[str, Rows]:
    """Returns the rows of sentence-transformers by prompt, float32 [n, d]."""
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    with folder.library_copy() as path:
        library = importlib.import_module(LIBRARY).SentenceTransformer(
            str(path),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": "float32"},  # the default is the type in the files
        )
    options = {"normalize_embeddings": False, "show_progress_bar": False}
    return {prompt: np.asarray(library.encode(texts, prompt=prompt, **options), np.float32) for prompt in prompts}


def compare_rows(prompt: str, ours: Rows, theirs: Rows, backend: str) -> Comparison:
    """Compares rows.

    Args:
        prompt: The prompt before each text.
        ours: The rows of the model, float32 [n, d].
        theirs: The rows of sentence-transformers, float32 [n, d].
        backend: The name of the model's backend, which ends in its precision.
    """
    lowest_min, lowest_mean = GATES.get(backend.rpartition("-")[2], F32_GATE)
    lengths = np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1, dtype=np.float64) / (np.linalg.norm(ours, axis=1) * lengths)
    difference = float(np.abs((ours - theirs) / lengths[:, None]).max())
    min_cosine, mean_cosine = float(cosines.min()), float(cosines.mean())
    is_faithful = min_cosine >= lowest_min and mean_cosine >= lowest_mean
    return Comparison(prompt, min_cosine, mean_cosine, difference, is_faithful)


def sentences() -> list[str]:
    """Returns a sentence in forty languages, some unusual texts, and one that most models truncate."""
    text = (resources.files("isogloss_server.models") / "sentences.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    return [*lines, " ".join(lines)]
