"""Whether a model computes what it should, asked before it serves."""

from collections.abc import Callable, Sequence

import numpy as np

from isogloss_server.errors import ModelFilesError
from isogloss_server.models.interfaces import Rows, TokenBatch, Tolerance

WARM_UP_TEXTS = ("Good morning", "Buenos días", "おはようございます", "صباح الخير", "Where is the station?")


F32_TOLERANCE = Tolerance(known=1e-5, batch_invariance=1e-6)


Probes = Sequence[tuple[str, Sequence[float]]]  # texts, each with its known vector


def verify(
    encode: Callable[[Sequence[str]], TokenBatch],
    forward: Callable[[TokenBatch], Rows],
    probes: Probes,
    tolerance: Tolerance,
) -> None:
    """Runs a first batch, and holds its vectors against known ones, each other, and each text's vector alone.

    Raises:
        ModelFilesError: a vector is not finite, all zeros, not the known one, or depends on its neighbours, or texts
            of different tokens all have one vector.
    """
    texts = [*(text for text, _ in probes), *WARM_UP_TEXTS]
    together = forward(encode(texts))
    lengths = np.linalg.norm(together, axis=1, keepdims=True)
    if not np.isfinite(together).all() or not lengths.all():
        raise ModelFilesError("the model is damaged: it gives vectors that are not finite, or all zeros")
    known = [np.asarray(vector, dtype=np.float32) for _, vector in probes]
    if any(vector.shape != row.shape for vector, row in zip(known, together, strict=False)):
        raise ModelFilesError("the model is damaged: its vectors are not as wide as the known ones")
    alone = np.concatenate([forward(encode([text])) for text in texts])
    held_against = (
        ("known vectors", known, tolerance.known),
        ("vectors of the same texts alone", list(alone), tolerance.batch_invariance),
    )
    for what, others, allowed in held_against:
        if others and np.abs((together[: len(others)] - others) / lengths[: len(others)]).max() > allowed:
            raise ModelFilesError(f"the model is damaged: its vectors differ from the {what}")
    differ = any(set(encode([text]).ids.tolist()) != set(encode(texts[:1]).ids.tolist()) for text in texts)
    if differ and np.abs((together - together[0]) / lengths).max() <= tolerance.known:
        raise ModelFilesError("the model is damaged: it gives different texts the same vector")
