"""The base of every stage's configuration model."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every library takes as a seed."""

Compute = Literal["checkpoint", "float32", "bfloat16"]
"""Precision in which a frozen model is held and computes: its checkpoint's own, or a stated one."""

_SPEED_ONLY: dict[str, Any] = {"speed_only": True}


class StageConfig(BaseModel):
    """Frozen settings of one stage: unknown keys fail, docstrings under the fields document them.

    A change to a field invalidates the stage's finished output and everything downstream, unless
    the field is declared with :func:`speed_only`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, values: Any) -> Any:
        """Refuse ``steps: true``, which would count as 1."""
        for name, field in cls.model_fields.items():
            types = types_in_annotation(field.annotation)
            if types & {int, float} and not types & {bool, Any} and isinstance(values, dict):
                if found := _truth_values(values.get(name)):
                    raise ValueError(f"{name} is {str(found[0]).lower()}, expected a number")
        return values

    def identity(self) -> dict[str, Any]:
        """The fields that determine the stage's result, as plain JSON values."""
        fields = type(self).model_fields.items()
        kept = {name for name, field in fields if field.json_schema_extra != _SPEED_ONLY}
        inner = {name: value for name in kept if isinstance(value := getattr(self, name), StageConfig)}
        plain = self.model_dump(mode="json", include=kept - inner.keys())
        return plain | {name: value.identity() for name, value in inner.items()}


def speed_only(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast or how visibly a stage runs, but never its result."""
    return Field(default, json_schema_extra=_SPEED_ONLY, **constraints)


def types_in_annotation(annotation: Any) -> set[Any]:
    """Every plain type within a field's annotation."""
    parts = typing.get_args(annotation)
    return set().union(*map(types_in_annotation, parts)) if parts else {annotation}


def _truth_values(value: Any) -> list[bool]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [value] if isinstance(value, bool) else [found for part in inner for found in _truth_values(part)]
