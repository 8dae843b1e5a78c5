"""What calls return: immutable, with numpy inside."""

from isogloss.results.comparisons import Neighbor, Neighbors, PairScores, Scores
from isogloss.results.embeddings import Embeddings, RowError, Timings, Vectors
from isogloss.results.server import HealthReport, ModelHealth, ModelInfo

__all__ = [
    "Embeddings",
    "HealthReport",
    "ModelHealth",
    "ModelInfo",
    "Neighbor",
    "Neighbors",
    "PairScores",
    "RowError",
    "Scores",
    "Timings",
    "Vectors",
]
