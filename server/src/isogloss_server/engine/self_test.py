"""Self-test of a model before it serves: compares its vectors with known vectors, and alone with in a batch."""

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
    """Runs a first batch, and checks its vectors.

    Args:
        encode: Tokenizes texts.
        forward: Computes vectors, float32 [n, d].
        probes: Texts with their known vectors.
        tolerance: The allowed deviations.

    Raises:
        ModelFilesError: A vector is not finite, all zeros, not the known one, or depends on its batch, or texts with
            different tokens all have the same vector.
    """
    texts = [*(text for text, _ in probes), *WARM_UP_TEXTS]
    together = forward(encode(texts))
    lengths = np.linalg.norm(together, axis=1, keepdims=True)
    if not np.isfinite(together).all() or not lengths.all():
        raise ModelFilesError("the model is damaged: it computes vectors that are not finite, or all zeros")
    known = [np.asarray(vector, dtype=np.float32) for _, vector in probes]
    if any(vector.shape != row.shape for vector, row in zip(known, together, strict=False)):
        raise ModelFilesError("the model is damaged: its vectors and the known vectors differ in dimensions")
    alone = np.concatenate([forward(encode([text])) for text in texts])
    references = (
        ("the known vectors", known, tolerance.known),
        ("the vectors of the same texts alone", list(alone), tolerance.batch_invariance),
    )
    for name, expected, allowed in references:
        if expected and np.abs((together[: len(expected)] - expected) / lengths[: len(expected)]).max() > allowed:
            raise ModelFilesError(f"the model is damaged: its vectors differ from {name}")
    texts_differ = any(set(encode([text]).ids.tolist()) != set(encode(texts[:1]).ids.tolist()) for text in texts)
    if texts_differ and np.abs((together - together[0]) / lengths).max() <= tolerance.known:
        raise ModelFilesError("the model is damaged: different texts have the same vector")
