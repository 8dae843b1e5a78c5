"""How one knob is declared."""

from typing import Any

from pydantic import Field


def knob(
    default: Any, help_text: str, *, section: str, unit: str, ge: float | None = None, le: float | None = None
) -> Any:
    """Declares one knob; `section` is its place in the help, `unit` what stands for its value there."""
    return Field(default, description=help_text, ge=ge, le=le, json_schema_extra={"section": section, "unit": unit})
