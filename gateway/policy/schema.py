"""Which JSON Schema helps an editor with policy files?"""

from typing import Any

from gateway.policy.check import form
from gateway.policy.model import UNITS

EXTENDS = {"type": "string", "description": "another tier, whose keys this one has unless it gives its own"}


def schema() -> dict[str, Any]:
    """JSON Schema of a policy file, with a description for every key."""
    found = form().json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "Tiergate policy"
    tier = found["$defs"]["Tier"]
    tier["properties"]["extends"] = EXTENDS
    tier["anyOf"] = [{"required": tier.pop("required")}, {"required": ["extends"]}]
    items = (item for definition in found["$defs"].values() for item in definition["properties"].values())
    for item in items:
        if item.get("type") == "string" and isinstance(item.get("default"), float):
            item["default"] = spelled(item["default"])
    return found


def spelled(seconds: float) -> str:
    """0.8 -> "800ms", 600.0 -> "10m": the largest unit that gives a whole number."""
    for unit, size in sorted(UNITS.items(), key=lambda unit: -unit[1]):
        if seconds >= size and (seconds / size).is_integer():
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"
