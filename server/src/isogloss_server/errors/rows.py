"""What is wrong with single texts of a call."""

from collections.abc import Mapping, Sequence

from isogloss_server.errors.kinds import DomainError

MAX_VIOLATIONS = 16  # of one error, as the contract says


class RowFaults(Exception):  # noqa: N818 - a finding about some texts, not an error of the call
    """What is wrong with which texts of a call: row -> error."""

    def __init__(self, faults: Mapping[int, DomainError]) -> None:
        super().__init__(f"{len(faults)} texts")
        self.faults = dict(faults)


def merge(faults: Sequence[DomainError]) -> DomainError:
    """Returns the first of `faults`, with the violations of all that have its reason (at most 16)."""
    first, *others = faults
    alike = [fault for fault in others if fault.reason == first.reason]
    violations = [violation for fault in (first, *alike) for violation in fault.violations]
    first.violations = tuple(violations[:MAX_VIOLATIONS])
    return first
