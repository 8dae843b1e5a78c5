"""What calls return: immutable, with numpy inside."""

from isogloss.results.comparisons import Neighbor, Neighbors, PairScores, Scores
from isogloss.results.embeddings import EmbeddedChunk, Embeddings, RowError, Timings, Vectors
from isogloss.results.server import HealthReport, ModelHealth, ModelInfo

__all__ = [
    "EmbeddedChunk",
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
