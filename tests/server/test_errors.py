"""The tree of errors and the table of statuses are complete."""

from collections.abc import Iterator

import pytest
from isogloss_server import errors
from isogloss_server.errors import DomainError, merge_row_errors
from isogloss_server.rpc.status import CODES, code_of, to_status


def leaves(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    children = kind.__subclasses__()
    if children:
        for child in children:
            yield from leaves(child)
    else:
        yield kind


LEAVES = list(leaves(DomainError))


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_has_a_reason_and_a_status(kind: type[DomainError]) -> None:
    """Each error has an upper-case reason of its own, and the status of its kind."""
    error = kind("what happened", field="texts", limit=3)
    assert error.reason.isupper()
    assert [other for other in LEAVES if other.reason == error.reason] == [kind]
    assert code_of(error) in CODES.values()
    assert kind.__name__ in (errors.__doc__ or "")


def test_details_stay_under_4_kib() -> None:
    """However long figures, messages and fields are, the details have at most 4 KiB and 16 violations."""
    faults = [errors.EmptyTextError("ä" * 5000, **{f"figure{i}": "x" * 5000 for i in range(3)}) for _ in range(40)]
    status = to_status(merge_row_errors("queries.texts.texts", dict(enumerate(faults))))
    assert status.proto.ByteSize() <= 4096
    assert len(status.proto.message) <= 300


def test_merge_keeps_errors_of_one_reason_together() -> None:
    """The merged error is the first one, with the rows of all errors of the same reason."""
    empty, long = errors.EmptyTextError("empty"), errors.TextTooLongError("long")
    merged = merge_row_errors("texts", {1: empty, 2: long, 5: empty})
    assert [violation.field for violation in merged.violations] == ["texts[1]", "texts[5]"]
    assert empty.violations == ()  # the errors themselves are not changed
