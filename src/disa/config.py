"""The base of every stage's configuration model."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class StageConfig(BaseModel):
    """Frozen settings of one stage: unknown keys fail, docstrings under the fields document them.

    A change to a field invalidates the stage's finished output and everything downstream, unless
    the field is declared with :func:`speed_only`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that determine the stage's result, as plain JSON values."""
        speed = {n for n, f in type(self).model_fields.items() if (f.json_schema_extra or {}).get("speed_only")}
        return self.model_dump(mode="json", exclude=speed)


def speed_only(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast or how visibly a stage runs, but never its result."""
    return Field(default, json_schema_extra={"speed_only": True}, **constraints)
