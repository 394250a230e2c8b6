"""Which JSON value is valid under a schema?"""

import math
import random
from typing import Any

JSON = dict[str, Any]
_DEPTH = 8
_NODES = 2000
_EXACT = 2**53


def fit(schema: Any, rng: random.Random, words: list[str]) -> Any:
    """A random value valid under a JSON schema; null below 16 levels and after 2,000 nodes.

    Free strings are made of `words`. Supports $ref to local definitions, const, enum, anyOf/oneOf/allOf, type lists and
    the usual bounds; ignores `pattern` and unknown keywords.
    """
    return _Fitter(schema, rng, words).value(schema, _DEPTH)


def label_field(schema: Any, labels: tuple[str, ...]) -> str | None:
    """Name of the top-level property whose enum holds all `labels`, or None."""
    root = schema if isinstance(schema, dict) else {}
    properties = root.get("properties")
    for name, field in properties.items() if isinstance(properties, dict) else ():
        target = resolve(root, field)
        if set(labels) <= set(_strings(target.get("enum"))):
            return str(name)
    return None


def resolve(root: Any, schema: Any) -> JSON:
    """`schema` with local $refs resolved; {} for one that is no object or cannot be resolved."""
    for _ in range(_DEPTH):
        if not isinstance(schema, dict):
            return {}
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            return schema
        schema = _pointer(root, ref)
    return {}


def _pointer(root: Any, ref: str) -> Any:
    node = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        if part and isinstance(node, dict):
            node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node


def _strings(values: Any) -> list[str]:
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []


def _int(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _figure(value: Any) -> int | float | None:
    """A bound; None for no number, and for one beyond those that a float tells apart."""
    return value if isinstance(value, int | float) and abs(value) < _EXACT else None


class _Fitter:
    def __init__(self, root: Any, rng: random.Random, words: list[str]) -> None:
        self.root, self.rng, self.words = root, rng, words or ["text"]
        self.left = _NODES

    def value(self, schema: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth < -_DEPTH:
            return None
        node = resolve(self.root, schema)
        if "const" in node:
            return node["const"]
        if isinstance(node.get("enum"), list) and node["enum"]:
            return self.rng.choice(node["enum"])
        for key in ("allOf", "anyOf", "oneOf"):
            if isinstance(node.get(key), list) and node[key]:
                parts = node[key] if key == "allOf" else [self._option(node[key], depth)]
                return self.value(self._merged(node, key, parts), depth - 1)
        return self._typed(node, depth)

    def _option(self, options: list[Any], depth: int) -> Any:
        flat = [o for o in options if resolve(self.root, o).get("type") not in ("object", "array")]
        full = [o for o in options if resolve(self.root, o).get("type") != "null"]
        return (flat or options)[0] if depth <= 0 else (full or options)[0]

    def _merged(self, node: JSON, key: str, found: list[Any]) -> JSON:
        """One schema of a node without its `key` and of the parts found there."""
        parts = [{k: v for k, v in node.items() if k != key}, *(resolve(self.root, p) for p in found)]
        merged: JSON = {k: v for part in reversed(parts) for k, v in part.items()}
        properties = [p["properties"] for p in parts if isinstance(p.get("properties"), dict)]
        if properties:
            merged["properties"] = {k: v for part in properties for k, v in part.items()}
        merged["required"] = [name for part in parts for name in _strings(part.get("required"))]
        return merged

    def _typed(self, node: JSON, depth: int) -> Any:
        kind = node.get("type")
        if isinstance(kind, list):
            kind = next((k for k in kind if k != "null"), "null") if depth > 0 or "null" not in kind else "null"
        if kind == "object" or (kind is None and "properties" in node):
            return self._object(node, depth)
        if kind == "array" or (kind is None and "items" in node):
            return self._array(node, depth)
        if kind in ("integer", "number"):
            return self._number(node, kind == "integer")
        if kind == "boolean":
            return self.rng.random() < 0.5
        return None if kind == "null" else self._string(node)

    def _object(self, node: JSON, depth: int) -> JSON:
        properties = node.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        required = _strings(node.get("required"))
        names = list(properties) if depth > 0 else [n for n in properties if n in required]
        made = {name: self.value(properties[name], depth - 1) for name in names}
        for name in required:
            made.setdefault(name, self.value(node.get("additionalProperties"), depth - 1))
        return made

    def _array(self, node: JSON, depth: int) -> list[Any]:
        prefix = node.get("prefixItems")
        if isinstance(prefix, list):
            return [self.value(item, depth - 1) for item in prefix]
        least = min(_int(node.get("minItems"), 0), 64)
        count = max(least, min(2 if depth > 0 else 0, _int(node.get("maxItems"), 2)))
        return [self.value(node.get("items"), depth - 1) for _ in range(count)]

    def _number(self, node: JSON, whole: bool) -> int | float:
        low = _figure(node.get("minimum", node.get("exclusiveMinimum")))
        high = _figure(node.get("maximum", node.get("exclusiveMaximum")))
        if low is None:
            low = 0 if high is None else min(0, high - 10)
        high = low + 100 if high is None else high
        step = _figure(node.get("multipleOf")) or 0
        step = step if step > 1 / _EXACT else int(whole)
        if not step:
            return round(low + (high - low) * self.rng.uniform(0.1, 0.9), 6)
        first = math.floor(low / step) + 1 if "exclusiveMinimum" in node else math.ceil(low / step)
        last = math.ceil(high / step) - 1 if "exclusiveMaximum" in node else math.floor(high / step)
        made = self.rng.randint(first, max(first, last)) * step
        return int(made) if whole else made

    def _string(self, node: JSON) -> str:
        formats = {
            "date": "2026-01-15",
            "date-time": "2026-01-15T09:00:00Z",
            "email": "ada@example.com",
            "uri": "https://example.com/",
            "uuid": "00000000-0000-4000-8000-000000000000",
            "time": "09:00:00Z",
        }
        text = formats.get(str(node.get("format"))) or " ".join(self.rng.sample(self.words, min(3, len(self.words))))
        least, most = min(_int(node.get("minLength"), 0), 4096), _int(node.get("maxLength"), 200)
        while len(text) < least:
            text += " " + self.rng.choice(self.words)
        return text[: max(most, 0)]
