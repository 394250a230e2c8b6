"""How is a part of the policy's file written as a class?"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from pydantic import BeforeValidator

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def section(found: type[T]) -> type[T]:
    """The class as a frozen dataclass, for which unknown keys are errors."""
    found.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, slots=True)(found)


def listed(value: object) -> object:
    """One name stands for a list of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


LISTED = BeforeValidator(listed, json_schema_input_type=tuple[str, ...])
