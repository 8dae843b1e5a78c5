"""How much of a comparison one request may hold."""

from dataclasses import dataclass

from isogloss._arguments import Shape, Side, Sides, TextSide
from isogloss._plans.limits import Limits
from isogloss.results import Vectors


def fits(sides: Sides, shape: Shape, limits: Limits) -> bool:
    """Says whether one request may hold both sides whole."""
    queries, candidates = sides.size
    present = [side for side in (sides.queries, sides.candidates) if side is not None]
    return (
        all(len(side) <= limits.max_texts for side in present if isinstance(side, TextSide))
        and request_bytes(sides) <= limits.max_request_bytes
        and shape.pairs(queries, candidates) <= limits.max_pairs
        and shape.response_bytes(queries, candidates) <= limits.max_response_bytes
    )


@dataclass(frozen=True, slots=True)
class VectorSides:
    """Both sides as vectors, of one space and one length, which may be cut anywhere."""

    queries: Vectors
    candidates: Vectors

    def cut(self, queries: slice, candidates: slice) -> Sides:
        """Returns a block of the comparison."""
        return Sides(_rows(self.queries, queries), _rows(self.candidates, candidates))

    def block(self, shape: Shape, limits: Limits) -> tuple[int, int]:
        """Returns how many queries and candidates one request may hold: near to a square, which sends the least."""
        height, width = len(self.queries), len(self.candidates)
        while height * width > 1 and not fits(self.cut(slice(height), slice(width)), shape, limits):
            if height >= width:
                height = -(-height // 2)
            else:
                width = -(-width // 2)
        return height, width


def request_bytes(sides: Sides) -> int:
    """Returns the bytes of texts and vectors of a comparison, as the server counts them."""
    return sum(_bytes(side) for side in (sides.queries, sides.candidates) if side is not None)


def _bytes(side: Side) -> int:
    return side.array.nbytes if isinstance(side, Vectors) else sum(side.sizes)


def _rows(vectors: Vectors, rows: slice) -> Vectors:
    return Vectors(vectors.array[rows], vectors.space_id)
