"""Do all names in a policy file refer to something?   Works on plain data of any shape, before it is validated."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from gateway.policy.load import Document
from gateway.policy.model import LOCAL
from gateway.policy.patterns import regex_problem
from gateway.policy.problems import Path, suggestion
from gateway.policy.prompts import BUILT_IN
from gateway.policy.rules import ASKING
from gateway.types import BARE

ANY = "*"  # in a pattern
# Where tiers are named, where they are keys, and where plans are named.
TIERS: tuple[Path, ...] = (
    ("triage", "tier"), ("holdback", "tiers"), ("holdback", "to"), ("record", "shadow", "tier"),
    ("failover", "tiers", ANY), ("callers", "plans", ANY, "may"), ("callers", "plans", ANY, "min_tier"),
    ("rules", ANY, "when", "session", "tier"), ("tests", ANY, "expect", "tier"), ("tests", ANY, "session", "tier"),
)  # fmt: skip
BY_TIER: tuple[Path, ...] = (
    ("failover", "tiers"), ("rules", ANY, "when", "load"), ("tests", ANY, "load"), ("tests", ANY, "waiting"),
)  # fmt: skip
PLANS: tuple[Path, ...] = (
    ("callers", "default", "plan"), ("rules", ANY, "when", "caller", "plan"), ("tests", ANY, "caller", "plan"),
)  # fmt: skip
WISHES = ("auto", "auto:fast", "auto:best")
RESERVED = {"auto", "fast", "best", LOCAL}
EACH = ("model", "stream", "stream_options", "n", "messages", "prompt", "input")  # what a request says, or we do for it


def mapping(data: object, *keys: str | int) -> dict[str, Any]:
    """The mapping at `keys`; empty when something else is there."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def children(data: object) -> dict[int | str, Any]:
    """What a mapping or a list holds, by key or index."""
    if isinstance(data, list):
        return dict(enumerate(data))
    return data if isinstance(data, dict) else {}


def fitting(data: object, pattern: Path, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The places in `data`, which is at `path`, that fit the pattern, and what is there."""
    if not pattern:
        yield path, data
        return
    held = children(data)
    for step in held if pattern[0] == ANY else held.keys() & {pattern[0]}:
        yield from fitting(held[step], pattern[1:], (*path, step))


def places(document: Document, *patterns: Path) -> Iterator[tuple[Path, Any]]:
    """The places that fit one of the patterns, in which ANY stands for each key and each index; and what is there."""
    return chain.from_iterable(fitting(document.data, pattern) for pattern in patterns)


def named(document: Document, *patterns: Path) -> Iterator[tuple[Path, str]]:
    """The names at the places that fit one of the patterns."""
    for path, value in places(document, *patterns):
        yield from names(value, path)


def names(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    """The names in one name, a list, or {not: names}, with their places."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        yield from (((*path, at), item) for at, item in enumerate(value) if isinstance(item, str))
    elif isinstance(value, dict):
        yield from names(value.get("not"), (*path, "not"))


def check(document: Document) -> None:
    """Notes what is wrong in `document.problems`."""
    check_tiers(document)
    check_plans(document)
    check_prices(document)
    check_signals(document)
    check_prompts(document)
    check_holdback(document)
    check_shadow(document)
    check_aliases(document)
    check_sessions(document)
    check_rules(document)


def known(document: Document, what: str, found: Iterable[tuple[Path, str]], allowed: Iterable[str]) -> None:
    names = list(allowed)
    for path, name in found:
        if name not in names:
            document.blame(path, f'no {what} is named "{name}"; {suggestion(name, names)}')


def tier_names(document: Document) -> Iterator[tuple[Path, str]]:
    """Every tier's name that is a value, with its path."""
    yield from named(document, *TIERS)
    yield from (one for one in named(document, ("triage", "otherwise", ANY)) if one[1] != LOCAL)
    for path, route in places(document, ("rules", ANY, "route")):
        yield from routed(route, path)


def routed(route: object, path: Path) -> Iterator[tuple[Path, str]]:
    """The tiers of a rule's route."""
    yield from names(route if isinstance(route, str) else None, path)
    for key, tier in mapping(route).items():
        inner = (*path, key)
        yield from routed(tier, inner) if isinstance(tier, dict) else names(tier, inner)


def tier_keys(document: Document) -> Iterator[Path]:
    """Every tier's name that is a key, as its path."""
    for path, value in places(document, *BY_TIER):
        yield from ((*path, tier) for tier in mapping(value))


def check_tiers(document: Document) -> None:
    tiers = mapping(document.data, "tiers")
    known(document, "tier", tier_names(document), tiers)
    for path in tier_keys(document):
        if path[-1] not in tiers:
            document.blame(path, f'no tier is named "{path[-1]}"; {suggestion(str(path[-1]), tiers)}', key=True)
    for tier in RESERVED & tiers.keys():
        document.blame(("tiers", tier), f'"{tier}" is a word of its own: choose another', key=True)
    for path, url in named(document, ("tiers", ANY, "replicas")):
        if wrong := url_problem(url):
            document.blame(path, wrong)
    for tier, given in tiers.items():
        for member in mapping(given, "set").keys() & EACH:
            told = "cannot be a default: callers say it in each request, or the gateway does"
            document.blame(("tiers", tier, "set", member), told, key=True)


def url_problem(url: str) -> str | None:
    """Why `url` cannot be a replica. Never repeats it: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "not a URL: expected http(s)://host[:port][/prefix]"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "expected http(s)://host[:port][/prefix]"
    if parts.username is not None or parts.password is not None:
        return "a URL may hold no credentials: name their variable in api_key_env"
    if parts.query or parts.fragment or re.search(r"[\s\x00-\x1f]", url):
        return "a URL ends with its prefix: no ?query, #fragment or blank"
    if re.search(r"/(v1|chat|completions|models)(/|$)", parts.path):
        return "give the URL without /v1 and what follows: the gateway adds the path"
    return None


def check_plans(document: Document) -> None:
    callers = document.data.get("callers")
    plans = list(mapping(callers, "plans")) if callers is not None else ["default"]
    known(document, "plan", named(document, *PLANS), plans)
    check_floors(document, list(mapping(document.data, "tiers")))


def check_floors(document: Document, tiers: list[str]) -> None:
    """Notes plans whose `min_tier` is above the highest tier that they may reach."""
    for plan, given in mapping(document.data, "callers", "plans").items():
        low, path = mapping(given).get("min_tier"), ("callers", "plans", plan, "min_tier")
        may = [tier for _, tier in names(mapping(given).get("may"), path) if tier in tiers]
        if low in tiers and tiers.index(low) > max(map(tiers.index, may), default=0):
            document.blame(path, f"{low} is above what the plan may reach: name it in `may`")


def check_prices(document: Document) -> None:
    """Notes budgets that nothing is ever booked on."""
    if any(price for tier in mapping(document.data, "tiers").values() for price in mapping(tier, "price").values()):
        return
    for path, budget in places(document, ("budget",), ("callers", "plans", ANY, "budget")):
        if mapping(budget):
            document.blame(path, "no tier has a price, so nothing is ever spent", key=True)


def check_signals(document: Document) -> None:
    signals = mapping(document.data, "signals")
    for name, pattern in signals.items():
        if isinstance(pattern, str) and (wrong := regex_problem(pattern)):
            document.blame(("signals", name), wrong)
    known(document, "signal", named(document, ("rules", ANY, "when", "signals")), signals)


def check_prompts(document: Document) -> None:
    triage, place = mapping(document.data, "triage"), ("triage", "prompts")
    own = {name: f"{name}.{mapping(given).get('version')}" for name, given in mapping(triage, "prompts").items()}
    for name, full in own.items():
        if full in BUILT_IN:
            document.blame((*place, name), f'"{full}" is built in: choose another name or version', key=True)
    asked = triage.get("prompt")
    known(document, "prompt", named(document, ("triage", "prompt")), [*BUILT_IN, *own.values()])
    thoughtful = [full for full, prompt in BUILT_IN.items() if prompt.before]
    thoughtful += [full for name, full in own.items() if mapping(triage, "prompts", name).get("before")]
    if asked in thoughtful and triage.get("strategy") in BARE:
        told = f"{asked} writes before its label: ask it by auto, json_logprobs or json"
        document.blame(("triage", "strategy"), told)


def check_holdback(document: Document) -> None:
    to, ranks = mapping(document.data, "holdback").get("to"), list(mapping(document.data, "tiers"))
    for path, name in named(document, ("holdback", "tiers")):
        if to in ranks and name in ranks and ranks.index(name) >= ranks.index(to):
            document.blame(path, f'"{name}" does not rank below "{to}", which is to answer in its place')
    for path, pattern in named(document, ("holdback", "escalate_when", "refusal_words")):
        if wrong := regex_problem(pattern):
            document.blame(path, wrong)


def check_shadow(document: Document) -> None:
    to, path = mapping(document.data, "record", "shadow").get("tier"), ("record", "shadow", "tier")
    if to is not None and to == next(iter(mapping(document.data, "tiers")), None):
        document.blame(path, f'no tier ranks below "{to}": there is no answer to compare its own with')


def check_aliases(document: Document) -> None:
    tiers = mapping(document.data, "tiers")
    taken = {*WISHES, *tiers, *(str(mapping(tier).get("model")).lower() for tier in tiers.values())}
    known(document, "tier", named(document, ("aliases", ANY)), [*WISHES, *tiers])
    for alias in mapping(document.data, "aliases"):
        if "*" in alias[:-1]:
            document.blame(("aliases", alias), "a * stands at the end only, for all names that begin so", key=True)
        if alias.lower() in taken:
            document.blame(("aliases", alias), f'"{alias}" is a model name already', key=True)
        taken.add(alias.lower())  # callers may write a name in any case


def check_sessions(document: Document) -> None:
    if document.data.get("sessions") is not None:
        return
    for path, session in places(document, ("rules", ANY, "when", "session"), ("tests", ANY, "session")):
        if mapping(session):
            document.blame(path, "this policy has no `sessions`: no conversation is known", key=True)


def check_rules(document: Document) -> None:
    rules = [(path, rule) for path, rule in places(document, ("rules", ANY)) if isinstance(rule, dict)]
    first: dict[str, int] = {}
    for path, rule in rules:
        line, name = document.values[path][0], rule.get("id")
        if isinstance(name, str) and name in first:
            document.blame((*path, "id"), f'"{name}" is the id of the rule on line {first[name]}, too')
        elif isinstance(name, str):
            first[name] = line
        check_bands(document, mapping(rule, "route", "p_complex"), (*path, "route", "p_complex"))
    for path, wanted in places(document, *(("rules", ANY, "when", *(ANY,) * depth) for depth in (1, 2, 3, 4))):
        if wanted is None:  # whose value was taken out or moved: without it the rule would match more
            document.blame(path, "has no value: give it one, or leave it out")
    known(document, "rule", named(document, ("tests", ANY, "expect", "rule")), [*first, "caller"])
    if rules and all(rule.get("when") is not None for _, rule in rules):
        document.blame(rules[-1][0], "the last rule must match every request: add one without `when`")


def check_bands(document: Document, bands: dict[str, Any], path: Path) -> None:
    """Notes bands that are not in rising order or cannot be reached, and a last one that is not `else`."""
    if bands and list(bands)[-1] != "else":
        document.blame(path, "the last band must be else, for what is above all others")
    end = 0.0
    for key in bands:
        if not ASKING.fullmatch(key):
            continue  # else, or a key that its own check refuses
        high = float(key[1:])
        if high <= end:
            below = f"all below {end:g} is in a band before it" if end else "no probability is below 0"
            document.blame((*path, key), f"never reached: {below}", key=True)
        elif high >= 1:
            document.blame((*path, key), "leaves nothing for else: no probability is above 1", key=True)
        end = max(end, high)
