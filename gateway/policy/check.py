"""Is a policy file valid?"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from gateway.policy.assembled import assembled
from gateway.policy.calibrated import CALIBRATION, calibrated, embedded
from gateway.policy.file import Policy, PolicyFile
from gateway.policy.load import MAX_NODES, Document
from gateway.policy.problems import Path, PolicyError, Problem, nearest, suggestion
from gateway.policy.references import check, children, mapping
from gateway.policy.rules import Rule

ABSENT = ("missing", "unexpected_keyword_argument")
ANYWHERE = ("", "")
EXPECTED = {
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "dict_type": "expected a mapping of keys and values",
    "tuple_type": "expected a list",
}


@cache  # a fifth of what importing the policy takes, and most commands read none
def form() -> TypeAdapter[PolicyFile]:
    """What checks the form of a policy file, and describes it."""
    return TypeAdapter(PolicyFile)


def build(document: Document) -> Policy:
    """The policy that `document` describes, without its candidate. Raises PolicyError with all that is wrong in it."""
    inherit_all(document)
    check(document)
    try:
        written = form().validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        note(document, error.errors(include_url=False, include_input=False))
        raise PolicyError(once(document)) from None
    check_reach(document, written.rules)
    found, table = calibrated(document), embedded(document)
    if document.problems:
        raise PolicyError(once(document))
    made = assembled(written, document, found, table)
    if made.basis and made.basis.question not in (None, made.question):
        told = f"p goes by answers to {made.basis.question!r}, and this policy asks {made.question!r}: calibrate anew"
        raise PolicyError([document.problem(CALIBRATION, told)])
    return made


def check_reach(document: Document, rules: tuple[Rule, ...]) -> None:
    """Notes rules that can never decide, because an earlier one matches all that they match."""
    earlier: dict[tuple[str, str], list[int]] = {}
    for at, rule in enumerate(rules):
        asked = {check.key: check.values for check in rule.checks}
        one_of = [(key, next(iter(values))) for key, values in asked.items() if isinstance(values, frozenset)]
        before = (other for place in (ANYWHERE, *one_of) for other in earlier.get(place, ()))
        wider = min((other for other in before if rules[other].covers(asked)), default=None)
        for place in found_by(rule, earlier):
            earlier.setdefault(place, []).append(at)
        if wider is None:
            continue
        line, all_of_it = document.values[("rules", wider)][0], not rules[wider].when
        path: Path = ("rules", at) if all_of_it else ("rules", at, "when")
        what = "every request" if all_of_it else "all that this one does"
        document.blame(path, f"never reached: the rule on line {line} matches {what}")


def found_by(rule: Rule, taken: Mapping[tuple[str, str], Sequence[int]]) -> list[tuple[str, str]]:
    """By which key and value a rule is found that may match all that another one does: it then wants each value that
    the other one wants. Of its keys the one by which fewest are found (`taken`); ANYWHERE where it wants none."""
    found = [
        [(check.key, value) for value in check.values] for check in rule.checks if isinstance(check.values, frozenset)
    ]
    return min(found, key=lambda ways: max(len(taken.get(way, ())) for way in ways), default=[ANYWHERE])


def once(document: Document) -> list[Problem]:
    """The problems without repetitions: tiers that extend another one repeat its problems."""
    found: dict[tuple[int, int, str], Problem] = {}
    for problem in document.problems:
        found.setdefault((problem.line, problem.column, problem.message), problem)
    return list(found.values())


def inherit_all(document: Document) -> None:
    """Fills in what tiers take from the tier that they extend."""
    tiers = mapping(document.data, "tiers")
    for name in tiers:
        inherit(document, tiers, name, ())


def inherit(document: Document, tiers: dict[str, Any], name: str, below: tuple[str, ...]) -> None:
    tier = tiers[name]
    if not isinstance(tier, dict) or "extends" not in tier:
        return
    other, path = tier["extends"], ("tiers", name, "extends")
    if other in (name, *below):
        document.blame(path, f"goes in a circle: {' -> '.join((*below, name, other))}")
    elif not isinstance(other, str) or other not in tiers:
        others = [tier for tier in tiers if tier != name]
        document.blame(path, f'no tier is named "{other}"; {suggestion(str(other), others)}')
    else:
        inherit(document, tiers, other, (*below, name))
        merge(document, tier, tiers[other], ("tiers", name), ("tiers", other))
    tier.pop("extends", None)


def merge(document: Document, into: dict[str, Any], other: object, path: Path, origin: Path) -> None:
    """Adds to `into` the keys that only `other` has, recursively, with their places in the file."""
    for key, value in mapping(other).items():
        if key not in into:
            into[key] = value
            adopt(document, (*path, key), (*origin, key), value)
        elif isinstance(into[key], dict):
            into[key] = dict(into[key])
            merge(document, into[key], value, (*path, key), (*origin, key))


def adopt(document: Document, path: Path, origin: Path, value: object) -> None:
    """What is copied from `origin` to `path`, a value and all in it, keeps its place in the file, for messages. Raises
    PolicyError where copies make the file too long."""
    if len(document.values) > MAX_NODES:
        raise PolicyError([document.problem(path, f"too long: more than {MAX_NODES} values with those of `extends`")])
    for places in (document.values, document.keys):
        if origin in places:
            places[path] = places[origin]
    if origin in document.foreign:
        document.foreign.add(path)
    for step, inner in children(value).items():
        adopt(document, (*path, step), (*origin, step), inner)


def note(document: Document, errors: list[ErrorDetails]) -> None:
    """Notes Pydantic's errors, in our words and at their places in the file."""
    orphans = any(problem.path.endswith(".extends") for problem in document.problems)
    locations = [error["loc"] for error in errors]
    for error in errors:
        loc, kind = error["loc"], error["type"]
        if kind == "too_short" and any(len(other) > len(loc) and other[: len(loc)] == loc for other in locations):
            continue
        path, value = located(document.data, loc, absent=kind in ABSENT)
        of_key = loc[-1:] == ("[key]",)
        if kind == "missing" and orphans and path[:1] == ("tiers",):
            continue
        if kind == "unexpected_keyword_argument":
            document.blame(path, f"unknown key; {meant(path)}", key=True)
        else:
            document.blame(path, worded(document, error, path, path[-1] if of_key else value), key=of_key)


def meant(path: Path) -> str:
    """What the writer of an unknown key may have meant: the same in a section, or another one in its place."""
    key, known = str(path[-1]), known_keys(path[:-1])
    if key == "<<":
        return "YAML 1.2 merges nothing; a tier takes the keys of another by `extends`"
    if path[:1] == ("tiers",) and len(path) == 3:
        known.append("extends")  # taken out before the rest is read
    home = next((section for section in known if len(path) == 1 and key in known_keys((section,))), None)
    if home is None:
        return suggestion(key, known)
    near = nearest(key, known)
    return f'did you mean "{near}"? Or it belongs to {home}' if near else f"it belongs to {home}"


def located(data: object, loc: tuple[int | str, ...], *, absent: bool) -> tuple[Path, object]:
    """The path in `data` that Pydantic's `loc` means (without the tags of unions), and the value there. `absent`: the
    last key is missing or unknown."""
    path: list[int | str] = []
    for at, step in enumerate(loc):
        held = children(data)
        if step in held:
            data = held[step]
            path.append(step)
        elif absent and at == len(loc) - 1:
            return (*path, step), None
    return tuple(path), data


def worded(document: Document, error: ErrorDetails, path: Path, value: object) -> str:
    """The message for one of Pydantic's errors; a value that came from the environment is not shown."""
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if path[-1:] == ("api_key_env",):  # the value may be the key itself
        return "expected the name of the environment variable that holds the key"
    shown = "a variable's value" if path in document.foreign else json.dumps(value, ensure_ascii=False)[:60]
    return f"{expected(error, path)}, got {shown}"


def expected(error: ErrorDetails, path: Path) -> str:
    """What should stand at `path`."""
    kind, told = error["type"], error["msg"]
    if kind == "literal_error":
        return f"expected {error['ctx']['expected']}"
    if kind == "too_short":
        return f"needs at least {error['ctx']['min_length']}"
    if kind == "dataclass_type":
        return f"expected a mapping with {', '.join(known_keys(path))}"
    return EXPECTED.get(kind) or f"{told[:1].lower()}{told[1:]}"


@cache  # 40 ms to make, and a file may have many unknown keys
def shape() -> dict[str, Any]:
    """What a policy file may hold, as JSON Schema."""
    return form().json_schema()


def known_keys(path: Path) -> list[str]:
    """The keys that may stand in the mapping at `path`."""
    root = shape()
    nodes = [root]
    for step in path:
        nodes = [inner for node in nodes for inner in below(root, node, step)]
    return [key for node in nodes for found in alternatives(root, node) for key in found.get("properties", {})]


def alternatives(root: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON Schema node, its reference followed, and all alternatives (anyOf, oneOf) in it."""
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    choices = node.get("anyOf", []) + node.get("oneOf", [])
    return [node, *(found for choice in choices for found in alternatives(root, choice))]


def below(root: dict[str, Any], node: dict[str, Any], step: int | str) -> list[dict[str, Any]]:
    """The nodes that describe what stands at `step`."""
    found: list[dict[str, Any]] = []
    for choice in alternatives(root, node):
        inner = choice.get("items") if isinstance(step, int) else choice.get("properties", {}).get(step)
        others = [inner, choice.get("additionalProperties"), *choice.get("patternProperties", {}).values()]
        found += [other for other in others if isinstance(other, dict)][:1]
    return found
