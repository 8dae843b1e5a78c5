"""The enums of `isogloss.wire` match those of the generated contract."""

import pickle
from typing import Any

import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import (
    ContractEnum,
    ElementType,
    InputType,
    Metric,
    Priority,
    ServingStatus,
    Truncation,
    to_number,
)

KINDS: list[tuple[type[ContractEnum], Any, str]] = [
    (ElementType, pb.ElementType, "ELEMENT_TYPE_"),
    (InputType, pb.InputType, "INPUT_TYPE_"),
    (Metric, pb.Metric, "METRIC_"),
    (Priority, pb.Priority, "PRIORITY_"),
    (ServingStatus, pb.ServingStatus, "SERVING_STATUS_"),
    (Truncation, pb.Truncation, "TRUNCATION_"),
]


@pytest.mark.parametrize(("kind", "generated", "prefix"), KINDS)
def test_names_and_numbers_are_those_of_the_contract(kind: type[ContractEnum], generated: Any, prefix: str) -> None:
    """Every value of the contract but UNSPECIFIED has a member with the same name and number, and no other exists."""
    ours = {member.name: member.number for member in kind if member.number}
    assert ours == {name.removeprefix(prefix): number for name, number in generated.items() if number}


@pytest.mark.parametrize("kind", [kind for kind, *_ in KINDS])
def test_members_survive_conversion_and_pickling(kind: type[ContractEnum]) -> None:
    """Number, lower-case value and pickle each lead back to the same member."""
    for member in kind:
        assert member == member.name.lower()
        assert kind.from_number(member.number) is kind(member.value) is pickle.loads(pickle.dumps(member)) is member


def test_unknown_numbers_have_no_member() -> None:
    """A number of a newer contract becomes None, and None becomes the number of the server's default."""
    assert Truncation.from_number(99) is Truncation.from_number(0) is None
    assert to_number(None) == pb.TRUNCATION_UNSPECIFIED
