"""Results: immutable, and decoded as the contract defines."""

import copy
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from isogloss import Client, ElementType, Embeddings, Neighbor, ServingStatus, Truncation, Vectors, __version__
from isogloss._arguments import embed_arguments
from isogloss._messages import read_embed, read_health, read_models
from isogloss.testing import FakeServer
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake import SPACE, set_limits


def decoded(kind: str, data: bytes, columns: int, scales: tuple[float, ...] = ()) -> Embeddings:
    """Returns a response of two rows, decoded by the client."""
    number = pb.ElementType.Value(f"ELEMENT_TYPE_{kind}")
    matrix = pb.Matrix(data=data, rows=2, columns=columns, element_type=number, row_scales=scales)
    arguments = embed_arguments(
        model="",
        input_type="query",
        dimensions=0,
        element_type=kind.lower(),
        truncation=None,
        normalize=False,
        priority="bulk",
        allow_partial=False,
        space_id="",
    )
    return read_embed(pb.EmbedResponse(embeddings=matrix, model="m", space_id="s"), arguments, 2)


@pytest.mark.parametrize(
    ("kind", "elements", "scales", "expected"),
    [
        ("FLOAT32", np.array([[0.1, -2], [3, 4]], "<f4"), (), [[np.float32(0.1), -2], [3, 4]]),
        ("FLOAT16", np.array([[0.1, -2], [3, 4]], "<f2"), (), [[np.float32(np.float16(0.1)), -2], [3, 4]]),
        ("INT8", np.array([[-127, 2], [3, 127]], "i1"), (0.5, 2), [[-63.5, 1], [6, 254]]),
        ("UINT8", np.array([[1, 130], [128, 255]], "u1"), (0.5, 2), [[-63.5, 1], [0, 254]]),
    ],
)
def test_numbers_are_decoded_exactly(
    kind: str, elements: np.ndarray, scales: tuple[float, ...], expected: list[list[float]]
) -> None:
    """Each element type is decoded as the contract defines, and `elements` keeps the numbers as received."""
    found = decoded(kind, elements.tobytes(), 2, scales)
    assert found.element_type == ElementType[kind]
    assert found.elements.dtype == elements.dtype
    assert np.array_equal(found.elements, elements)
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, np.array(expected, np.float32))


def test_bits_are_decoded_exactly() -> None:
    """The first column is the high bit, padding bits are dropped, and BINARY is UBINARY minus 128."""
    signs = np.array([[1, -1, -1, 1, 1, 1, -1, -1, 1, -1], [-1] * 10], np.float32)
    packed = np.packbits(signs > 0, axis=1)
    unsigned = decoded("UBINARY", packed.tobytes(), 10)
    signed = decoded("BINARY", (packed.astype(int) - 128).astype("i1").tobytes(), 10)
    assert (unsigned.elements.dtype, signed.elements.dtype) == (np.uint8, np.int8)
    assert unsigned.elements.shape == signed.elements.shape == (2, 2)
    assert np.array_equal(unsigned.vectors, signs)
    assert np.array_equal(signed.vectors, signs)


def test_results_are_immutable(client: Client, server: FakeServer) -> None:
    """Attributes cannot be set, and arrays are read-only, split or not."""
    for limit in (0, 1):
        set_limits(server, max_texts=limit, max_pairs=limit)
        with Client(server.target) as used:
            embeddings = used.embed(["a", "b"])
            scores = used.similarity(["a", "b"])
            pairs = used.pairwise(["a", "b"], ["c", "d"])
            neighbors = used.nearest("a", ["b", "c"])
        arrays = [embeddings.vectors, embeddings.elements, embeddings.row_scales, scores.values, pairs.values]
        for array in [*arrays, neighbors.rows, neighbors.scores]:
            assert not array.flags.writeable
        for result in (embeddings, scores, pairs, neighbors):
            with pytest.raises(dataclasses.FrozenInstanceError):
                result.model = "other"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_copies_and_pickles_are_immutable_too(client: Client, copied: Any) -> None:
    """A copy or an unpickled result has the values of the original, in read-only arrays."""
    embeddings = client.embed(["a", "b"], element_type="int8")
    expected = embeddings.vectors
    stored = Vectors(expected, SPACE)
    chunk = next(client.embed_many(["a", "b"]))
    results = [embeddings, stored, chunk.embeddings, client.similarity(stored), client.nearest("a", ["b"])]
    for result in [*results, client.pairwise(["a"], ["b"])]:
        twin = copied(result)
        assert type(twin) is type(result)
        for name, value in vars(result).items():
            if name != "vectors" and not isinstance(value, np.ndarray):
                assert getattr(twin, name) == value
        for array in [value for value in vars(twin).values() if isinstance(value, np.ndarray)]:
            assert not array.flags.writeable
    assert np.array_equal(copied(embeddings).vectors, expected)
    assert not copied(chunk).embeddings.vectors.flags.writeable


def test_pickles_hold_the_vectors_once(client: Client) -> None:
    """The float32 vectors of other element types are computed again rather than pickled."""
    embeddings = client.embed(["a"] * 100, element_type="int8")
    before = len(pickle.dumps(embeddings))
    assert embeddings.vectors.shape == (100, 16)
    assert len(pickle.dumps(embeddings)) == before


def test_neighbors_behave_like_a_list(client: Client) -> None:
    """Length, items, slices, equality and repr are those of a list of Neighbor; rows and scores are arrays too."""
    found = client.nearest("a", ["b", "a", "c"], k=2)
    assert found[0] == Neighbor(1, "a", 1.0)
    assert (len(found), list(found)) == (2, [found[0], found[-1]])
    assert found[1:] == [found[1]]
    assert found == list(found)
    assert found != [found[0]]
    assert hash(found) == hash(client.nearest("a", ["b", "a", "c"], k=2))
    assert repr(found) == repr(list(found))
    assert repr(found[0]) == "Neighbor(row=1, text='a', score=1.0)"
    assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float32)
    assert (found.model, found.space_id) == ("default", SPACE)


def test_reprs_do_not_contain_the_numbers(client: Client) -> None:
    """The repr of a result has its shape, model and space."""
    assert repr(client.embed(["a"])) == "Embeddings(1 x 16 float32, model='default', space_id='space-1')"


def test_health_is_decoded(client: Client, server: FakeServer) -> None:
    """Status, version and models become plain values."""
    server.status, server.status_detail = ServingStatus.DEGRADED, "slow"
    client.embed(["a", "b"])
    report = client.health()
    assert (report.status, report.version) == (ServingStatus.DEGRADED, __version__)
    assert report.uptime_s > 0
    assert (report.models[0].model, report.models[0].detail, report.models[0].embedded_texts) == ("default", "slow", 2)


def test_unknown_enum_values_of_a_newer_server_are_tolerated() -> None:
    """An unknown status becomes UNKNOWN, and an unknown truncation is left out."""
    health = pb.HealthResponse(status=99, models=[pb.ModelHealth(model="default", status=99)])  # type: ignore[arg-type]
    model = pb.ModelInfo(name="default", space_id="s", dimensions=[2], truncations=[pb.TRUNCATION_END, 99])  # type: ignore[list-item]
    report = read_health(health, "")
    assert (report.status, report.models[0].status) == (ServingStatus.UNKNOWN, ServingStatus.UNKNOWN)
    assert read_models(pb.ListModelsResponse(models=[model]))[0].truncations == (Truncation.END,)
