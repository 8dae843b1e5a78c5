"""Holds a model's vectors against those that sentence-transformers computes from the same folder."""

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server.models.interfaces import Rows
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder

LIBRARY = "sentence_transformers"


# Precision, as the name of the backend ends -> least and mean cosine of what is faithful; float32's for all others.
GATES = {"bf16": (0.9995, 0.9999)}


F32_GATE = (0.99999, 0.99999)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How near n rows come to those of sentence-transformers."""

    prompt: str
    least_cosine: float
    mean_cosine: float
    difference: float  # largest of any number, as a share of its vector's length
    is_faithful: bool

    def __str__(self) -> str:
        verdict = "as faithful as its precision is" if self.is_faithful else "OFF by more than its precision"
        prompt = f"prompt {self.prompt!r}" if self.prompt else "no prompt"
        return (
            f"{prompt}: cosine at least {self.least_cosine:.7f}, mean {self.mean_cosine:.7f}, "
            f"largest difference {self.difference:.1e}: {verdict}"
        )


def is_available() -> bool:
    """Returns whether sentence-transformers is installed."""
    return importlib.util.find_spec(LIBRARY) is not None


def compare(folder: ModelFolder, parts: LoadedModel) -> Iterator[Comparison]:
    """Yields a comparison for each prompt of an input type, and for no prompt if an input type has none."""
    importlib.import_module("transformers.utils.logging").disable_progress_bar()
    library = importlib.import_module(LIBRARY).SentenceTransformer(
        str(folder.path),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"dtype": "float32"},  # else that of the files
    )
    texts = sentences()
    for prompt in dict.fromkeys(parts.prompts.get(input_type, "") for input_type in InputType):
        theirs = library.encode(texts, prompt=prompt, normalize_embeddings=False, show_progress_bar=False)
        batch = parts.tokenizer.encode([prompt + text for text in texts], Truncation.END).batch
        yield compare_rows(prompt, parts.model.forward(batch), np.asarray(theirs, dtype=np.float32), parts.card.backend)


def compare_rows(prompt: str, ours: Rows, theirs: Rows, backend: str) -> Comparison:
    """Returns how near `ours` come to `theirs`, both float32 [n, d]."""
    least, mean = GATES.get(backend.rpartition("-")[2], F32_GATE)
    lengths = np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1, dtype=np.float64) / (np.linalg.norm(ours, axis=1) * lengths)
    difference = float(np.abs((ours - theirs) / lengths[:, None]).max())
    least_cosine, mean_cosine = float(cosines.min()), float(cosines.mean())
    return Comparison(prompt, least_cosine, mean_cosine, difference, least_cosine >= least and mean_cosine >= mean)


def sentences() -> list[str]:
    """Returns one sentence in forty languages, some awkward texts, and one that most models must cut."""
    text = (resources.files("isogloss_server.models") / "sentences.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    return [*lines, " ".join(lines)]
