"""Samples of a soak to a report: growth after the warm-up, first minute beside last, and whether it held."""

import statistics
from collections.abc import Sequence


def slope(places: Sequence[float], values: Sequence[float]) -> float:
    """Returns by how much a value grows for each step of one, by least squares."""
    found: float = statistics.linear_regression(places, values).slope
    return found
