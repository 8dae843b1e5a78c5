"""The enums of arguments and results. An argument accepts a member or its lower-case value."""

from isogloss.wire.enums import ElementType, InputType, Metric, Priority, ServingStatus, Truncation

__all__ = ["ElementType", "InputType", "Metric", "Priority", "ServingStatus", "Truncation"]
