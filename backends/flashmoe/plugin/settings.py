"""What is skipped in which layer?   Read from one environment variable.

FLASHMOE_VLLM is JSON or, where no layer differs, names and values: `mode=top-k,k=4,hash_layers=exact`.

- `mode`: `off` skips nothing but counts; `top-k` takes `k`, `share` takes `share`, `threshold` takes `threshold`;
  `batch-aware` takes `k` (each token's best k, and experts that other tokens of the step keep) or `experts` (the most
  distinct experts of a step, but for the best of a token that is left with none).
- `layers`: {"0-2": {"mode": "off"}, "7": {"mode": "top-k", "k": 3}}; layers that are not named have the mode above.
- `hash_layers`: `exact` skips nothing in hash-routed layers; `skip`, the default, treats them as the others.
- `renormalise`: whether the kept router weights are scaled up to the sum of all; false.
- `requests`: whether a request may set its own k for the tokens it generates (see `own`); false.
- `guard`: the mean of tokens' relative errors in a layer above which nothing is skipped any more; null: no guard.
  `every`: steps from one comparison to the next; 64.
- `decisions`: whether vLLM's decisions endpoint, which does not support DeepSeek V4, is enabled for it; false.
- `log_s`: seconds between two log lines with the counts; 60. With 0 nothing is counted.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.flashmoe.policy import Budget, Piggyback, Policy, Ratio, Share, TopK

VARIABLE = "FLASHMOE_VLLM"
NEEDS = {"off": (), "top-k": ("k",), "share": ("share",), "threshold": ("threshold",), "batch-aware": ("k", "experts")}
BOUNDS = {"k": (1, 1024), "experts": (1, 65_536), "share": (0, 1), "threshold": (0, 1), "log_s": (0, 86_400),
          "guard": (0.0001, 1), "every": (1, 1_000_000)}  # fmt: skip
WHOLE = {"k", "experts", "every"}
LAYERS = 1024  # more than any model has
SWITCHES = ("renormalise", "requests", "decisions")
DEFAULTS: dict[str, Any] = {
    "layers": {},
    "hash_layers": "skip",
    "guard": None,
    "every": 64,
    "log_s": 60,
    **dict.fromkeys(SWITCHES, False),
}
Plan = tuple[Policy, ...]


@dataclass(frozen=True, slots=True)
class Looks:
    """The guard's settings: the bound on the relative error, the steps between comparisons."""

    bound: float
    every: int


@dataclass(frozen=True, slots=True)
class Settings:
    """FLASHMOE_VLLM, parsed; its keys are explained at the top of this file."""

    plan: Plan
    layers: Mapping[int, Plan]
    hash_layers: bool  # whether they skip as the others
    renormalise: bool
    requests: bool
    decisions: bool
    looks: Looks | None
    log_s: float

    def at(self, layer: int, hashed: bool) -> Plan:
        """The policies of a layer, in order; () skips nothing. `hashed`: the layer is hash-routed."""
        if hashed and not self.hash_layers:
            return ()
        return self.layers.get(layer, self.plan)

    def takes_own(self, layer: int, hashed: bool) -> bool:
        """Whether a request's k applies in a layer: not where `layers` turns it off, nor in exact hash-routed ones."""
        alone = (hashed and not self.hash_layers) or self.layers.get(layer) == ()
        return self.requests and not alone


def parse(text: str) -> Settings | None:
    """The settings in the variable's text; None for an empty one. Raises ValueError with a message of one line."""
    if not text.strip():
        return None
    try:
        return _settings(entries(text))
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def entries(text: str) -> dict[str, Any]:
    """The names and values in either form, JSON or name=value. Raises ValueError."""
    if text.lstrip().startswith("{"):
        found: dict[str, Any] = json.loads(text)
        return found
    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{wrong[0]!r} is no name=value, nor is the whole a JSON object")
    return {name.strip(): _value(value.strip()) for name, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _settings(given: dict[str, Any]) -> Settings:
    known = {**DEFAULTS, **{name: value for name, value in given.items() if name in DEFAULTS}}
    if known["hash_layers"] not in ("skip", "exact"):
        raise ValueError(f"hash_layers must be skip or exact, not {known['hash_layers']!r}")
    if wrong := [name for name in SWITCHES if not isinstance(known[name], bool)]:
        raise ValueError(f"{wrong[0]} must be true or false, not {known[wrong[0]]!r}")
    every = int(_number("", "every", known["every"]))
    return Settings(
        plan=_plan({name: value for name, value in given.items() if name not in DEFAULTS}, ""),
        layers=_layers(known["layers"]),
        hash_layers=known["hash_layers"] == "skip",
        renormalise=known["renormalise"],
        requests=known["requests"],
        decisions=known["decisions"],
        looks=None if known["guard"] is None else Looks(_number("", "guard", known["guard"]), every),
        log_s=_number("", "log_s", known["log_s"]),
    )


def _layers(entries: Any) -> dict[int, Plan]:
    if not isinstance(entries, dict) or not all(isinstance(each, dict) for each in entries.values()):
        raise ValueError('layers must be like {"0-2": {"mode": "off"}}')
    return {at: _plan(each, f"layers {span}: ") for span, each in entries.items() for at in _span(span)}


def _span(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()) or not int(first) <= int(last or first) < LAYERS:
        raise ValueError(f'layers: "{text}" is no layer and no range of layers like "3-7"')
    return range(int(first), int(last or first) + 1)


def _plan(entries: Mapping[str, Any], where: str) -> Plan:
    mode = entries.get("mode")
    if not isinstance(mode, str) or mode not in NEEDS:
        raise ValueError(f"{where}mode must be one of {', '.join(NEEDS)}, not {mode!r}")
    given = [name for name in entries if name != "mode"]
    if strange := [name for name in given if name not in NEEDS[mode]]:
        raise ValueError(f"{where}mode {mode} takes no {strange[0]!r}")
    if NEEDS[mode] and len(given) != 1:
        raise ValueError(f"{where}mode {mode} needs {' or '.join(NEEDS[mode])}")
    return _policies(mode, {name: _number(where, name, entries[name]) for name in given})


def _policies(mode: str, values: Mapping[str, float]) -> Plan:
    match mode:
        case "top-k":
            return (TopK(int(values["k"])),)
        case "share":
            return (Share(values["share"]),)
        case "threshold":
            return (Ratio(values["threshold"]),)
        case "batch-aware":
            return (TopK(int(values["k"])), Piggyback()) if "k" in values else (Budget(int(values["experts"])),)
    return ()


def _number(where: str, name: str, value: Any) -> float:
    low, high = BOUNDS[name]
    kinds = int if name in WHOLE else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        whole = "whole " if name in WHOLE else ""
        raise ValueError(f"{where}{name} must be a {whole}number from {low} to {high}, not {value!r}")
    return value
