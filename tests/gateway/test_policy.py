"""Policy files: what is read, what is refused, and where the finger points."""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy import Policy, PolicyError, Problem, Split, load_policy, open_policy, schema, seconds
from gateway.policy.check import check_reach, form
from gateway.policy.load import Document, contents

POLICIES = Path(__file__).parents[2] / "policies"
SHIPPED = ("default.yaml", "reference.yaml", "hosted.yaml")
SMALLEST = """\
schema: 1
tiers:
  flash: {model: org/Flash, replicas: ["http://127.0.0.1:8001"]}
  pro: {model: org/Pro, replicas: ["http://127.0.0.1:8002"]}
rules:
  - {id: triaged, route: {simple: flash, complex: pro}}
"""
REFERENCE = (POLICIES / "reference.yaml").read_text(encoding="utf-8")


def refused(text: str, env: dict[str, str] | None = None) -> list[str]:
    """The problems of a text, one line each, without the file's name."""
    with pytest.raises(PolicyError) as caught:
        load_policy(text, env or {})
    return [str(problem).removeprefix("policy.yaml:") for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in SMALLEST
    return SMALLEST.replace(old, new)


def test_the_smallest_file_has_sensible_defaults() -> None:
    policy = load_policy(SMALLEST, {})
    assert list(policy.tiers) == ["flash", "pro"]
    assert policy.triage.tier == "flash"
    assert set(policy.triage.otherwise.values()) == {"flash"}
    assert policy.callers.default.plan == "default"
    assert policy.permitted == {"default": ("flash", "pro")}
    assert policy.rules[0].route == Split("flash", "pro")
    assert policy.caching is None
    file = 8192  # tokens of a tool's argument, which comes as one event, at 30 a second
    assert policy.tiers["pro"].timeouts.idle >= file / 30


def test_a_verdict_is_wanted_where_a_rule_splits() -> None:
    assert load_policy(SMALLEST, {}).asks
    assert not load_policy(changed("{simple: flash, complex: pro}", "flash"), {}).asks


def test_a_caller_may_write_a_served_name_in_any_case_and_without_its_organisation() -> None:
    names = load_policy(SMALLEST + "aliases: {GPT-4o: pro}\n", {}).names
    wanted = {"flash": "flash", "org/flash": "flash", "pro": "pro", "org/pro": "pro", "gpt-4o": "pro"}
    assert names == {"auto": "auto", "auto:fast": "fast", "auto:best": "best", **wanted}


def test_every_value_is_frozen() -> None:
    policy = load_policy(SMALLEST, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_load(name: str) -> None:
    assert load_policy(POLICIES / name, {}).tests


def test_the_default_file_is_short() -> None:
    assert len((POLICIES / "default.yaml").read_text(encoding="utf-8").splitlines()) <= 60


def test_the_default_file_loads_within_50_ms() -> None:
    load_policy(POLICIES / "default.yaml", {})
    started = time.thread_time()
    load_policy(POLICIES / "default.yaml", {})
    assert time.thread_time() - started < 0.05


def test_the_schema_beside_the_policies_is_current() -> None:
    written = json.loads((POLICIES / "schema.json").read_text(encoding="utf-8")) == schema()
    assert written, "tiergate policy schema > policies/schema.json"


def properties(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for node in (found, *found["$defs"].values()) for item in node["properties"].values()]


def test_every_key_in_the_schema_has_a_description() -> None:
    assert all(item.get("description") for item in properties(schema()))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_follow_the_schema(name: str) -> None:
    document = open_policy(POLICIES / name, {})[1]
    jsonschema.Draft202012Validator(schema()).validate(document.data)


def test_the_schema_knows_extends() -> None:
    tier = schema()["$defs"]["Tier"]
    assert "extends" in tier["properties"]
    assert {"required": ["extends"]} in tier["anyOf"]


def test_the_reference_names_every_key() -> None:
    document = open_policy(POLICIES / "reference.yaml", {})[1]
    named = {path[-1] for path in document.keys}
    keys = {key for node in (schema(), *schema()["$defs"].values()) for key in node["properties"]}
    assert keys - named == set()


def test_the_reference_gives_the_defaults() -> None:
    given, least = load_policy(POLICIES / "reference.yaml", {}), load_policy(SMALLEST, {})
    assert (given.name, given.revision) == (least.name, least.revision)
    assert dataclasses.replace(given.record, shadow=None) == least.record
    assert given.record.shadow == load_policy(SMALLEST + "record: {shadow: {tier: pro}}\n", {}).record.shadow
    assert dataclasses.replace(given.triage, prompts={}, early=None) == dataclasses.replace(least.triage, prompts={})
    assert given.triage.early == load_policy(SMALLEST + "triage: {early: {}}\n", {}).triage.early
    assert given.triage.prompts.keys() - least.triage.prompts.keys() == {"house.v1"}
    assert given.failover.on == least.failover.on
    for name in ("engine", "balance", "limits", "timeouts", "can", "set", "api_key_env"):
        assert getattr(given.tiers["flash"], name) == getattr(least.tiers["flash"], name)
    assert dataclasses.replace(given.tiers["flash"].price, input_per_m=0.0) == least.tiers["flash"].price
    assert given.caching == load_policy(SMALLEST + "caching: {}\n", {}).caching
    assert given.sessions == load_policy(SMALLEST + "sessions: {}\n", {}).sessions
    metered = "{budget: {usd: 5}, pro_share: {max: 1}}"
    plans = f"callers: {{default: {{plan: default}}, plans: {{default: {metered}}}}}\n"
    plain = load_policy(changed("org/Pro,", "org/Pro, price: {output_per_m: 1.0},") + plans, {})
    assert dataclasses.replace(given.callers, user=()) == plain.callers
    bare = load_policy(SMALLEST + "tests: [{name: x, request: {}, expect: {}}]\n", {}).tests[0]
    for name in ("headers", "load"):
        assert getattr(given.tests[0], name) == getattr(bare, name)


OWN = """\
triage:
  prompt: house.v2
  strategy: STRATEGY
  prompts:
    house: {version: v2, question: "Easy?", labels: {easy: simple, hard: complex}, before: BEFORE}
"""


def test_a_policy_brings_prompts_of_its_own_beside_the_built_in_ones() -> None:
    policy = load_policy(SMALLEST + OWN.replace("STRATEGY", "auto").replace("BEFORE", "null"), {})
    assert policy.triage.prompts["house.v2"].labels == {"easy": "simple", "hard": "complex"}
    assert {"complexity.v1", "p_solve.v1", "intent.v1"} < policy.triage.prompts.keys()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("prompt: house.v2", "prompt: house.v1", '8:11: triage.prompt: no prompt is named "house.v1"; did you mean'),
        ("house:", "complexity:", '8:11: triage.prompt: no prompt is named "house.v2"'),
        ("{easy: simple, hard: complex}", "{easy: simple, hard: simple}", "11:12: triage.prompts.house: labels need"),
        ("easy: simple, hard", "easy: simple, easygoing", "11:12: triage.prompts.house: no label may begin with"),
        ("easy: simple", "Easy: simple", "11:54: triage.prompts.house.labels.Easy: a label is one word of lower-case"),
        ("BEFORE", "complexity", "11:12: triage.prompts.house: before and answer are the same member"),
        ("version: v2", "version: 2", "11:22: triage.prompts.house.version: expected text"),
    ],
)
def test_a_prompt_that_could_not_be_read_back_is_refused_at_its_place(old: str, new: str, problem: str) -> None:
    text = OWN.replace(old, new).replace("STRATEGY", "auto").replace("BEFORE", "null")
    assert any(line.startswith(problem) for line in refused(SMALLEST + text))


def test_a_prompt_named_like_a_built_in_one_or_asked_for_a_bare_word_against_its_form_is_refused() -> None:
    text = OWN.replace("house", "complexity").replace("v2", "v1").replace("STRATEGY", "auto").replace("BEFORE", "null")
    assert '11:5: triage.prompts.complexity: "complexity.v1" is built in: choose another name or version' in refused(
        SMALLEST + text
    )
    bare = OWN.replace("STRATEGY", "choice").replace("BEFORE", "plan")
    told = "9:13: triage.strategy: house.v2 writes before its label: ask it by auto, json_logprobs or json"
    assert refused(SMALLEST + bare) == [told]


def test_a_prompt_with_words_before_its_label_is_asked_as_json_and_another_one_in_any_way() -> None:
    own = load_policy(SMALLEST + OWN.replace("STRATEGY", "json").replace("BEFORE", "plan"), {})
    assert (own.triage.strategy, own.triage.prompts["house.v2"].before) == ("json", "plan")
    plain = load_policy(SMALLEST + "triage: {prompt: p_solve.v1, strategy: choice}\n", {})
    assert (plain.triage.prompt, plain.triage.strategy) == ("p_solve.v1", "choice")


def test_every_key_of_triage_is_kept() -> None:
    written = "triage: {tier: pro, cache: null, threshold: 0.4, timeout: 2s, layout: system, speculate: never}\n"
    triage = load_policy(SMALLEST + written, {}).triage
    assert (triage.tier, triage.cache, triage.threshold, triage.timeout) == ("pro", None, 0.4, 2.0)
    assert (triage.layout, triage.speculate) == ("system", "never")


def test_a_tier_takes_from_the_tier_it_extends_key_by_key() -> None:
    more = "  deep: {extends: pro, limits: {max_inflight: 3}, set: {a: {y: 2}}}\n"
    text = SMALLEST.replace('8002"]}\n', '8002"], set: {a: {x: 1}}, can: {vision: true}}\n' + more)
    tier = load_policy(text, {}).tiers["deep"]
    assert tier.model == "org/Pro"
    assert tier.limits.max_inflight == 3
    assert tier.set == {"a": {"x": 1, "y": 2}}
    assert tier.can.vision


def test_extending_leaves_the_other_tier_alone() -> None:
    more = "  deep: {extends: pro, set: {a: {y: 2}}}\n"
    text = SMALLEST.replace('8002"]}\n', '8002"], set: {a: {x: 1}}}\n' + more)
    assert load_policy(text, {}).tiers["pro"].set == {"a": {"x": 1}}


def test_what_tiers_take_from_others_counts_in_how_long_a_file_may_be() -> None:
    wide = "".join(f"k{at}: 1, " for at in range(900))
    more = "".join(f"  t{at}: {{extends: pro}}\n" for at in range(60))
    began = time.process_time()
    (told,) = refused(SMALLEST.replace('8002"]}\n', f'8002"], set: {{{wide}}}}}\n{more}'))
    assert "too long: more than 50000 values with those of `extends`" in told
    assert time.process_time() - began < 2, "not each place for each copied key"


def test_variables_without_an_end_are_refused_soon() -> None:
    began = time.process_time()
    assert "`${` opens no variable" in refused(SMALLEST + "revision: '" + "${A:-" * 20_000 + "'\n")[0]
    assert time.process_time() - began < 2, "not all that follows for each of them"


def test_a_default_that_would_break_each_exchange_is_refused_once_where_it_stands() -> None:
    more = "  deep: {extends: pro}\n"
    wrong = '{top_p: 1, stream: true, "n": 2, model: x, messages: []}'
    told = "cannot be a default: callers say it in each request, or the gateway does"
    assert refused(SMALLEST.replace('8002"]}\n', f'8002"], set: {wrong}}}\n{more}')) == [
        f"4:78: tiers.pro.set.stream: {told}",
        f"4:92: tiers.pro.set.n: {told}",
        f"4:100: tiers.pro.set.model: {told}",
        f"4:110: tiers.pro.set.messages: {told}",
    ]


def test_variables_come_from_the_environment_or_their_default() -> None:
    text = changed("org/Flash", "'${NAME:-org/Flash}$${x}'")
    assert load_policy(text, {}).tiers["flash"].model == "org/Flash${x}"
    assert load_policy(text, {"NAME": ""}).tiers["flash"].model == "org/Flash${x}"
    assert load_policy(text, {"NAME": "other"}).tiers["flash"].model == "other${x}"


def test_a_plain_variable_may_be_a_number() -> None:
    text = SMALLEST + "triage:\n  threshold: ${T:-0.25}\n"
    assert load_policy(text, {}).triage.threshold == 0.25
    assert load_policy(text, {"T": "0.75"}).triage.threshold == 0.75


def test_a_variable_cannot_add_structure() -> None:
    text = changed("org/Flash", '"${NAME}"')
    assert load_policy(text, {"NAME": 'a", set: {b: "c'}).tiers["flash"].model == 'a", set: {b: "c'


def test_the_digest_is_the_hash_of_the_file_and_tells_nothing_of_the_environment() -> None:
    text = changed("org/Flash", '"${NAME}"')
    digests = {load_policy(text, {"NAME": value}).digest for value in ("secret", "other")}
    assert digests == {hashlib.sha256(text.encode()).hexdigest()[:12]}


def test_no_message_repeats_a_value_from_the_environment() -> None:
    text = SMALLEST + 'triage: {tier: "${A}", timeout: "${A}", layout: "${A}", threshold: ${A}}\n'
    text = text.replace('"http://127.0.0.1:8001"', '"${A}"').replace("id: triaged", 'id: "${A}"')
    assert "hunter2" not in "".join(refused(text, {"A": "hunter2 /"}))


@pytest.mark.parametrize(
    ("text", "value"), [("800ms", 0.8), ("2s", 2.0), ("10m", 600.0), ("1.5h", 5400.0), ("7d", 604800.0)]
)
def test_durations_carry_units(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["800", "", "ms", "-1s", "1e3s", "1 s", "²s", 5, None, True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="unit"):
        seconds(text)


@pytest.mark.parametrize("text", ["0s", "0.0009ms", "36526d", "999999999d"])
def test_a_duration_that_is_none_or_that_no_store_can_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at least 1ms, and at most 36525d"):
        seconds(text)


def test_yes_and_no_and_on_are_words_as_keys() -> None:
    policy = load_policy(SMALLEST + "failover: {on: [connect]}\n", {})
    assert policy.failover.on == ("connect",)


WINDOW = 'a duration needs a number and a unit: "800ms", "2s", "10m", "1h", "7d"; or month'
NEAR = 'did you mean "flash"?'
TRAP = 'is a truth value to YAML 1.1 and text to YAML 1.2: write true, or quote it: "{0}"'
ONE_LINE = (
    "{schema: 1, tiers: {a: {model: m, replicas: ['http://h']}}, rules: [{id: x, route: a, when: {tools: true}}, "
)
BAD = {
    "unknown key": (changed("schema: 1", "schema: 1\nrulez: 1"), '2:1: rulez: unknown key; did you mean "rules"?'),
    "a key with a letter of another script": (
        SMALLEST + "triage: {tim\u0435out: 1s}\n",
        """7:10: triage.tim\u0435out: unknown key; did you mean "timeout"? This is 'tim\\u0435out'""",
    ),
    "key of a section": (SMALLEST + "threshold: 0.3\n", "7:1: threshold: unknown key; it belongs to triage"),
    "key of a section, or near another": (
        SMALLEST + "cache: {ttl: 1m}\n",
        '7:1: cache: unknown key; did you mean "caching"? Or it belongs to triage',
    ),
    "key of a later version": (SMALLEST + "shadow: null\n", "7:1: shadow: unknown key"),
    "unknown key inside": (
        changed("model: org/Flash", "model: x, limits: {max_inflght: 2}"),
        '3:30: tiers.flash.limits.max_inflght: unknown key; did you mean "max_inflight"?',
    ),
    "duplicate key": (changed("schema: 1", "schema: 1\nschema: 1"), "2:1: schema: given twice, first on line 1"),
    "wrong type": (SMALLEST + "triage: {threshold: high}\n", '7:21: triage.threshold: expected a number, got "high"'),
    "out of range": (SMALLEST + "triage: {threshold: 2}\n", "7:21: triage.threshold: input should be less than or"),
    "wrong word": (
        SMALLEST + "triage: {layout: suffux}\n",
        "7:18: triage.layout: expected 'suffix' or 'system', got \"suffux\"",
    ),
    "duration": (SMALLEST + "triage: {timeout: 800}\n", "7:19: triage.timeout: a duration needs a number and a unit"),
    "window": (
        changed("model: org/Flash", "model: org/Flash, price: {input_per_m: 1}")
        + "budget: {usd: 1, window: monthly}\n",
        f"7:26: budget.window: {WINDOW}",
    ),
    "missing": (changed("model: org/Flash, ", ""), "3:3: tiers.flash.model: missing"),
    "yes": (changed("model: org/Flash", "model: yes"), "3:18: tiers.flash.model: `yes` " + TRAP.format("yes")),
    "on": (
        changed("id: triaged", "id: a, route: pro, when: {tools: on}}\n  - {id: triaged"),
        "6:39: rules.0.when.tools: `on` " + TRAP.format("on"),
    ),
    "dangling tier": (
        changed("simple: flash", "simple: flsh"),
        f'6:35: rules.0.route.simple: no tier is named "flsh"; {NEAR}',
    ),
    "dangling fixed route": (changed("{simple: flash, complex: pro}", "flsh"), "6:26: rules.0.route: no tier is named"),
    "dangling band": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<0.5": flsh, else: pro}}'),
        f'6:47: rules.0.route.p_complex.<0.5: no tier is named "flsh"; {NEAR}',
    ),
    "dangling failover": (
        SMALLEST + "failover: {tiers: {pro: [flash, fash]}}\n",
        f'7:33: failover.tiers.pro.1: no tier is named "fash"; {NEAR}',
    ),
    "dangling failover key": (
        SMALLEST + "failover: {tiers: {prp: [flash]}}\n",
        "7:20: failover.tiers.prp: no tier is named",
    ),
    "dangling otherwise": (
        SMALLEST + "triage: {otherwise: {parse: fl}}\n",
        "7:29: triage.otherwise.parse: no tier is named",
    ),
    "dangling triage tier": (
        SMALLEST + "triage: {tier: flask}\n",
        f'7:16: triage.tier: no tier is named "flask"; {NEAR}',
    ),
    "dangling may": (
        SMALLEST + "callers: {default: {plan: a}, plans: {a: {may: [prp]}}}\n",
        '7:49: callers.plans.a.may.0: no tier is named "prp"; did you mean "pro"?',
    ),
    "dangling default plan": (
        SMALLEST + "callers: {default: {plan: gold}, plans: {silver: {}}}\n",
        '7:27: callers.default.plan: no plan is named "gold"; known: silver',
    ),
    "dangling plan in a rule": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {caller: {plan: {not: gold}}}}"),
        '6:53: rules.0.when.caller.plan.not: no plan is named "gold"; known: default',
    ),
    "dangling signal": (
        changed("rules:", "signals: {sql: sql}\nrules:\n  - {id: a, route: pro, when: {signals: [sqll]}}"),
        '7:42: rules.0.when.signals.0: no signal is named "sqll"; did you mean "sql"?',
    ),
    "dangling alias": (
        SMALLEST + "aliases: {gpt-4o: atuo}\n",
        '7:19: aliases.gpt-4o: no tier is named "atuo"; did you mean "auto"?',
    ),
    "alias in two cases": (
        SMALLEST + "aliases: {gpt-4o: flash, GPT-4o: pro}\n",
        '7:26: aliases.GPT-4o: "GPT-4o" is a model name already',
    ),
    "hiding alias": (
        SMALLEST + "aliases: {Org/Flash: auto}\n",
        '7:11: aliases.Org/Flash: "Org/Flash" is a model name already',
    ),
    "an alias twice": (
        SMALLEST + "aliases: {Fast: auto, fast: auto}\n",
        '7:23: aliases.fast: "fast" is a model name already',
    ),
    "a star within an alias": (
        SMALLEST + "aliases: {gpt-*-mini: auto}\n",
        "7:11: aliases.gpt-*-mini: a * stands at the end only, for all names that begin so",
    ),
    "a budget without a price": (
        SMALLEST + "budget: {usd: 5}\n",
        "7:1: budget: no tier has a price, so nothing is ever spent",
    ),
    "a plan's budget without a price": (
        changed("org/Pro,", "org/Pro, price: {output_per_m: 0},")
        + "callers: {default: {plan: a}, plans: {a: {budget: {usd: 5}}}}\n",
        "7:43: callers.plans.a.budget: no tier has a price, so nothing is ever spent",
    ),
    "a strategy that is none": (
        SMALLEST + "triage: {strategy: best}\n",
        "7:20: triage.strategy: expected 'auto', 'choice', 'decisions', 'json_logprobs' or 'json', got \"best\"",
    ),
    "a list of tiers as a route": (
        changed("{simple: flash, complex: pro}", "[flash, pro]"),
        "6:26: rules.0.route: expected a tier, {simple: tier, complex: tier}, or {p_complex: bands}, got [",
    ),
    "dangling load": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {load: {por: {inflight: {min: 1}}}}}"),
        '6:39: rules.0.when.load.por: no tier is named "por"; did you mean "pro"?',
    ),
    "a number as a test's verdict": (
        SMALLEST + "tests:\n  - {name: t, request: {}, expect: {}, verdict: 0.9}\n",
        "8:49: tests.0.verdict: expected {p_complex: 0.9}, {label: complex} or how it fails: timeout, parse",
    ),
    "a control character": (SMALLEST + "# \u00e9\x07\n", "7:4: not YAML: control characters are not allowed (#x07)"),
    "dangling rule in a test": (
        SMALLEST + "tests:\n  - {name: t, request: {}, expect: {rule: triage}}\n",
        '8:43: tests.0.expect.rule: no rule is named "triage"; did you mean "triaged"?',
    ),
    "reserved tier": (
        changed("  pro:", "  best:").replace("complex: pro", "complex: best"),
        '4:3: tiers.best: "best" is a word',
    ),
    "circle": (
        changed("rules:", "  a: {extends: b}\n  b: {extends: a}\nrules:"),
        "6:16: tiers.b.extends: goes in a circle: a -> b -> a",
    ),
    "dangling extends": (changed("rules:", "  a: {extends: prp}\nrules:"), "5:16: tiers.a.extends: no tier is named"),
    "bad regex": (SMALLEST + "signals: {a: '('}\n", "7:14: signals.a: bad regular expression: missing )"),
    "slow regex": (SMALLEST + "signals: {a: '(x+)+y'}\n", "7:14: signals.a: can take too long"),
    "empty regex": (SMALLEST + "signals: {a: 'x?'}\n", "7:14: signals.a: matches every text"),
    "after a catch-all": (
        SMALLEST + "  - {id: late, route: pro}\n",
        "7:5: rules.1: never reached: the rule on line 6 matches every request",
    ),
    "same when": (
        changed(
            "rules:",
            "rules:\n  - {id: a, route: pro, when: {tools: true}}\n  - {id: b, route: pro, when: {tools: true}}",
        ),
        "7:31: rules.1.when: never reached: the rule on line 6 matches all that this one does",
    ),
    "same range": (
        changed(
            "rules:",
            "rules:\n  - {id: a, route: pro, when: {characters: {min: 2, max: 9}}}\n"
            "  - {id: b, route: pro, when: {characters: {min: 2, max: 9}, tools: true}}",
        ),
        "7:31: rules.1.when: never reached: the rule on line 6 matches all that this one does",
    ),
    "less than a rule before it": (
        changed(
            "rules:",
            "rules:\n  - {id: a, route: pro, when: {characters: {max: 24}, caller: {plan: {not: gold}}}}\n"
            "  - {id: b, route: pro, when: {characters: {min: 2, max: 10}, caller: {plan: [default]}, tools: true}}",
        ).replace("rules:", "callers: {default: {plan: default}, plans: {default: {}, gold: {}}}\nrules:"),
        "8:31: rules.1.when: never reached: the rule on line 7 matches all that this one does",
    ),
    "all on one line": (
        ONE_LINE + "{id: b, route: a, when: {tools: true}}, {id: c, route: a}]}",
        "1:133: rules.1.when: never reached: the rule on line 1 matches all that this one does",
    ),
    "one id on one line": (
        ONE_LINE + "{id: x, route: a}]}",
        '1:114: rules.1.id: "x" is the id of the rule on line 1, too',
    ),
    "percents": (
        changed("id: triaged", "id: a, route: pro, when: {budget_used: {min: 90}}}\n  - {id: triaged"),
        "6:45: rules.0.when.budget_used: goes from 0 to 1: 0.9 is 90 %",
    ),
    "percents at the upper end": (
        changed("id: triaged", "id: a, route: pro, when: {score: {max: 90}}}\n  - {id: triaged"),
        "6:39: rules.0.when.score: goes from 0 to 1: 0.9 is 90 %",
    ),
    "a shadow of the first tier": (
        SMALLEST + "record: {shadow: {tier: flash}}\n",
        '7:25: record.shadow.tier: no tier ranks below "flash"',
    ),
    "no catch-all": (
        changed("id: triaged", "id: triaged, when: {tools: true}"),
        "6:5: rules.0: the last rule must match every",
    ),
    "same id": (
        changed("rules:", "rules:\n  - {id: triaged, route: pro, when: {tools: true}}"),
        '7:10: rules.1.id: "triaged" is the id of the rule on line 6, too',
    ),
    "never matches": (
        changed("id: triaged", "id: a, route: pro, when: {turns: {min: 3, max: 2}}}\n  - {id: triaged"),
        "6:39: rules.0.when.turns: can never match: min 3 is above max 2",
    ),
    "empty range": (
        changed("id: triaged", "id: a, route: pro, when: {turns: {}}}\n  - {id: triaged"),
        "6:39: rules.0.when.turns: give min, max or both",
    ),
    "empty when": (
        changed("id: triaged", "id: a, route: pro, when: {}}\n  - {id: triaged"),
        "6:31: rules.0.when: is empty",
    ),
    "secret header": (
        changed("id: triaged", "id: a, route: pro, when: {header: {Authorization: x}}}\n  - {id: triaged"),
        "6:41: rules.0.when.header.Authorization: this header carries a secret",
    ),
    "falling bands": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<0.5": pro, "<0.4": pro, else: pro}}'),
        "6:52: rules.0.route.p_complex.<0.4: never reached: all below 0.5 is in a band before it",
    ),
    "the same band twice, written apart": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<0.5": pro, "<.50": pro, else: pro}}'),
        "6:52: rules.0.route.p_complex.<.50: never reached: all below 0.5 is in a band before it",
    ),
    "a band below all": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<0.0": flash, else: pro}}'),
        "6:39: rules.0.route.p_complex.<0.0: never reached: no probability is below 0",
    ),
    "a band above all": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<1": flash, else: pro}}'),
        "6:39: rules.0.route.p_complex.<1: leaves nothing for else: no probability is above 1",
    ),
    "bands without else": (
        changed("{simple: flash, complex: pro}", '{p_complex: {"<0.5": pro, "<0.6": pro}}'),
        "6:38: rules.0.route.p_complex: the last band must be else",
    ),
    "else before the last": (
        changed("{simple: flash, complex: pro}", '{p_complex: {else: pro, "<0.6": pro}}'),
        "6:38: rules.0.route.p_complex: the last band must be else",
    ),
    "a floor above the ceiling": (
        SMALLEST + "callers: {default: {plan: a}, plans: {a: {min_tier: pro}}}\n",
        "7:53: callers.plans.a.min_tier: pro is above what the plan may reach",
    ),
    "a floor that is no tier": (
        SMALLEST + "callers: {default: {plan: a}, plans: {a: {min_tier: prof}}}\n",
        '7:53: callers.plans.a.min_tier: no tier is named "prof"; did you mean "pro"?',
    ),
    "odd band": (
        changed("{simple: flash, complex: pro}", '{p_complex: {">0.5": pro, else: pro}}'),
        "6:39: rules.0.route.p_complex.>0.5: a band is",
    ),
    "half a split": (changed(", complex: pro", ""), "6:19: rules.0.route.complex: missing"),
    "no rules": (
        "schema: 1\ntiers: {a: {model: m, replicas: ['http://h']}}\nrules: []\n",
        "3:8: rules: needs at least 1, got []",
    ),
    "url scheme": (
        changed("http://127.0.0.1:8001", "ftp://h"),
        "3:40: tiers.flash.replicas.0: expected http(s)://host",
    ),
    "url password": (
        changed("http://127.0.0.1:8001", "http://a:b@h"),
        "3:40: tiers.flash.replicas.0: a URL may hold no",
    ),
    "url path": (
        changed("http://127.0.0.1:8001", "http://h/v1"),
        "3:40: tiers.flash.replicas.0: give the URL without /v1",
    ),
    "url query": (
        changed("http://127.0.0.1:8001", "http://h/?a=b"),
        "3:40: tiers.flash.replicas.0: a URL ends with its",
    ),
    "url port": (changed("http://127.0.0.1:8001", "http://h:99999"), "3:40: tiers.flash.replicas.0: not a URL"),
    "missing variable": (
        changed("org/Flash", "'${NOPE}'"),
        "3:18: tiers.flash.model: environment variable NOPE is not set; ${NOPE:-default} gives a default",
    ),
    "broken variable": (changed("org/Flash", "'${1}'"), "3:18: tiers.flash.model: `${` opens no variable"),
    "nothing to explore": (
        SMALLEST.replace("rules:\n", "rules:\n  - {id: all, when: {turns: {max: 1}}, route: pro, explore: 0.1}\n"),
        "6:5: rules.0: a rule with one tier has no other side to explore",
    ),
    "a session without sessions": (
        changed("id: triaged", "id: a, route: pro, when: {session: {tier: pro}}}\n  - {id: triaged"),
        "6:32: rules.0.when.session: this policy has no `sessions`",
    ),
    "a tested session without sessions": (
        SMALLEST + "tests: [{name: x, request: {}, expect: {}, session: {tier: pro}}]\n",
        "7:44: tests.0.session: this policy has no `sessions`",
    ),
    "dangling tier of a session": (
        changed("id: triaged", "id: a, route: pro, when: {session: {tier: {not: flsh}}}}\n  - {id: triaged")
        + "sessions: {}\n",
        f'6:54: rules.0.when.session.tier.not: no tier is named "flsh"; {NEAR}',
    ),
    "dangling tier of a tested session": (
        SMALLEST + "sessions: {}\ntests: [{name: x, request: {}, expect: {}, session: {tier: flsh}}]\n",
        f'8:60: tests.0.session.tier: no tier is named "flsh"; {NEAR}',
    ),
    "empty session": (
        changed("id: triaged", "id: a, route: pro, when: {session: {}}}\n  - {id: triaged") + "sessions: {}\n",
        "6:41: rules.0.when.session: give tier, age, turns or several",
    ),
    "odd key of sessions": (
        SMALLEST + "sessions: {key: [cookie]}\n",
        "7:18: sessions.key.0: this is header:NAME, metadata:NAME or prefix",
    ),
    "secret key of sessions": (
        SMALLEST + "sessions: {key: ['header:Authorization']}\n",
        "7:18: sessions.key.0: this header carries a secret",
    ),
    "secret name of users": (
        SMALLEST + "callers: {default: {plan: a}, plans: {a: {}}, user: 'header:Cookie'}\n",
        "7:53: callers.user: this header carries a secret",
    ),
    "prefix before others": (
        SMALLEST + "sessions: {key: [prefix, 'header:x-session-id']}\n",
        "7:11: sessions: every conversation has a prefix: it must be the last key",
    ),
    "prefix between others": (
        SMALLEST + "sessions: {key: ['header:x-a', prefix, 'header:x-b']}\n",
        "7:11: sessions: every conversation has a prefix: it must be the last key",
    ),
    "stay": (
        SMALLEST + "sessions: {stay: forever}\n",
        "7:18: sessions.stay: expected 'until_escalated', 'turn' or 'always', got \"forever\"",
    ),
    "tag": (changed("org/Flash", "!!python/name:os.system x"), "3:18: tiers.flash.model: a tag"),
    "not YAML": (SMALLEST + "a: [\n", "8:1: not YAML: "),
    "two documents": (
        SMALLEST + "---\na: 1\n",
        "7:1: not YAML: expected a single document in the stream (line 1), but found another document",
    ),
    "an open brace": (
        SMALLEST + "triage: {tier: flash\nname: x\n",
        "8:5: not YAML: while parsing a flow mapping (line 7), did not find expected ',' or '}'",
    ),
    "an indentation": (
        SMALLEST + "triage:\n  tier: flash\n   timeout: 1s\n",
        "9:11: not YAML: mapping values are not allowed in this context; keys of a mapping begin in one column;",
    ),
    "a tab": (
        SMALLEST + "triage:\n\ttier: flash\n",
        "8:1: not YAML: while scanning for the next token (line 8), found character that cannot start any token; in",
    ),
    "a star": (SMALLEST + "aliases: {*: auto}\n", "7:12: not YAML: while scanning an alias (line 7), "),
    "too deep": (SMALLEST + "a: " + 50 * "[" + 50 * "]" + "\n", "7:43: nested too deeply"),
    "too long by aliases": (
        SMALLEST + f"a: &a [{250 * '1, '}]\nb: [{250 * '*a, '}]\n",
        "7:107: b.198.33: too long: more than 50000 values",
    ),
    "a list": ("- 1\n", "1:1: expected a mapping of keys and values"),
    "nothing": ("# to do\n", "1:1: empty: a policy needs schema, tiers and rules"),
    "a number in a mapping's place": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {characters: 24}}"),
        "6:44: rules.0.when.characters: expected a mapping with min, max, got 24",
    ),
    "a condition without a value": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {vision: true, tools: }}"),
        "6:53: rules.0.when.tools: has no value: give it one, or leave it out",
    ),
    "a condition whose part has no value": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {caller: {name: ann, plan: }}}"),
        "6:58: rules.0.when.caller.plan: has no value: give it one, or leave it out",
    ),
    "a condition whose innermost part has no value": (
        changed("rules:", "rules:\n  - {id: a, route: pro, when: {load: {pro: {waiting: {min: 5, max: }}}}}"),
        "6:68: rules.0.when.load.pro.waiting.max: has no value: give it one, or leave it out",
    ),
    "a leading zero": (
        SMALLEST + "triage: {input: {characters: 0200}}\n",
        '7:30: triage.input.characters: expected a whole number, got "0200"',
    ),
    "a name's form": (
        SMALLEST + "signals: {SQL: sql}\n",
        "7:11: signals.SQL: string should match pattern '^[a-z][a-z0-9_-]*$', got \"SQL\"",
    ),
    "a merge": (
        changed("org/Pro,", "org/Pro, <<: {},"),
        "4:25: tiers.pro.<<: unknown key; YAML 1.2 merges nothing; a tier takes the keys of another by `extends`",
    ),
    "near extends": (
        changed("org/Pro,", "org/Pro, extend: flash,"),
        '4:25: tiers.pro.extend: unknown key; did you mean "extends"?',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_refused_at_its_place(case: str) -> None:
    text, expected = BAD[case]
    found = refused(text)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_a_mistake_that_another_tier_inherits_is_told_once_where_it_stands() -> None:
    text = changed("model: org/Pro", "model: org/Pro, limits: {max_inflight: 0}")
    found = refused(text.replace("rules:", "  deep: {extends: pro}\nrules:"))
    assert len(found) == 1
    assert found[0].startswith("4:48: tiers.pro.limits.max_inflight: input should be greater")


def test_a_mistake_in_a_mapping_that_a_tier_takes_in_part_is_told_once_where_it_stands() -> None:
    text = changed("model: org/Pro", "model: org/Pro, limits: {max_inflight: 0}")
    found = refused(text.replace("rules:", "  deep: {extends: pro, limits: {queue: x}}\nrules:"))
    assert [problem.partition(": ")[0] for problem in found] == ["4:48", "5:40"]


def test_a_mistake_in_what_a_tier_adds_is_told_at_that_tier() -> None:
    found = refused(changed("rules:", "  deep: {extends: pro, can: {context: many}}\nrules:"))
    assert found == ['5:39: tiers.deep.can.context: expected a whole number, got "many"']


def test_a_key_that_stands_in_the_place_of_its_variables_name_is_not_shown() -> None:
    found = refused(changed("org/Pro,", "org/Pro, api_key_env: sk-1234567,"))
    assert found == ["4:38: tiers.pro.api_key_env: expected the name of the environment variable that holds the key"]


def test_a_mistake_from_the_environment_that_another_tier_inherits_is_told_once_and_not_shown() -> None:
    text = changed("model: org/Pro", 'model: org/Pro, limits: {max_inflight: "${A}"}')
    found = refused(text.replace("rules:", "  deep: {extends: pro}\nrules:"), {"A": "hunter2"})
    assert found == ["4:48: tiers.pro.limits.max_inflight: expected a whole number, got a variable's value"]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("characters: {max: 24}", "characters: {max: 25}"),
        ("characters: {max: 24}", "turns: {max: 24}"),
        ("characters: {min: 2, max: 24}", "characters: {max: 10}"),
        ("tools: true, vision: true", "tools: true"),
        ("tools: true", "tools: false"),
        ("model: [auto, x]", "model: [x, z]"),
        ("caller: {name: {not: [x, z]}}", "caller: {name: {not: x}}"),
        ("caller: {name: {not: x}}", "caller: {name: [x, z]}"),
        ("caller: {name: x}", "caller: {name: {not: z}}"),
        ("header: {x-a: b}", "header: {x-c: b}"),
        ("load: {flash: {inflight: {min: 2}}}", "load: {pro: {inflight: {min: 3}}}"),
    ],
)
def test_a_rule_that_something_is_left_for_is_taken(earlier: str, later: str) -> None:
    both = f"rules:\n  - {{id: a, route: pro, when: {{{earlier}}}}}\n  - {{id: b, route: pro, when: {{{later}}}}}"
    assert [rule.id for rule in load_policy(changed("rules:", both)).rules] == ["a", "b", "triaged"]


def test_a_rule_is_held_against_those_alone_that_want_what_it_wants() -> None:
    many = [{"id": str(at), "route": "a", "when": {"tools": True, "header": {"x": [str(at)]}}} for at in range(2000)]
    told = {"schema": 1, "tiers": {"a": {"model": "m", "replicas": ["http://h"]}}, "rules": many}
    rules = form().validate_json(json.dumps(told), strict=True).rules
    began = time.process_time()
    check_reach(Document("", ""), rules)
    assert time.process_time() - began < 0.3, "not against each before it: a second"


def test_many_unknown_keys_take_little_longer_to_refuse_than_one() -> None:
    def took(keys: int) -> float:
        began = time.process_time()
        assert len(refused(SMALLEST + "".join(f"key{at}: 1\n" for at in range(keys)))) == keys
        return time.process_time() - began

    took(1)  # the first may read the schema
    assert min(took(50) for _ in range(3)) < 25 * max(took(1) for _ in range(3))


def test_several_mistakes_are_told_together_in_the_order_of_the_file() -> None:
    text = changed("schema: 1", "schema: 2").replace("simple: flash", "simple: flsh") + "triage: {threshold: x}\n"
    assert [problem.split(":")[0] for problem in refused(text)] == ["1", "6", "7"]


def test_a_list_without_an_item_is_told_beside_a_mistake_elsewhere_and_one_with_a_wrong_item_as_that() -> None:
    without = changed("  - {id: triaged, route: {simple: flash, complex: pro}}\n", "  []\n")
    told = [problem.split(":")[2] for problem in refused(without + "triage: {timeout: 800}\n")]
    assert told == [" rules", " triage.timeout"]
    (only,) = refused(changed('"http://127.0.0.1:8001"', "5"))
    assert only.startswith("3:40: tiers.flash.replicas.0: expected text")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (".{1,1000}x", True),
        (".{0,1000}x", False),
        ("x{5000,5009}", True),
        ("a{1,300}b|c{1,300}d|e{1,300}f|g{1,300}h", True),
        ("(?:ab|cd){1,7}e", True),
        ("(?:ab|cd){1,8}e", False),
        ("(?:a{1,20}|b{1,20}){2}c", False),
        ("(?:ab){1000}c", True),
        ("(?:ab){1001}c", False),
        ("x{10000}", True),
        (".{0,30}.{0,30}x{9}", True),
        (".{0,30}.{0,30}x{10000}", False),
        ("(?:x{99}|x{98}|x{97}){6}y", False),
        (r"(?:\w{1,30} ){2}x", True),
        ("(?:){1000000000}x", False),
        ("(" * 60 + "x" + "){1}" * 60, True),
        ("(?:" * 60 + "x" + "){1,2}" * 60, False),
    ],
)
def test_a_signal_may_take_a_thousand_paths_and_ten_thousand_steps_from_one_place(pattern: str, fits: bool) -> None:
    text = f"{SMALLEST}signals: {{a: '{pattern}'}}\n"
    if fits:
        assert load_policy(text, {}).signals["a"].pattern == pattern
    else:
        assert "can take too long" in refused(text)[0]


def test_of_a_file_with_mistakes_without_number_a_hundred_are_told() -> None:
    assert len(refused("".join(f"a{at}: !x yes\n" for at in range(2_000)))) == 100


def test_a_file_that_is_not_there_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")


def test_a_file_that_is_not_utf_8_is_a_policy_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes("# é\nname: é".encode() + b"\xff")
    with pytest.raises(PolicyError, match=r"bad\.yaml:2:8: not UTF-8"):
        load_policy(path)


BRACKETS, DASHES = "[" * 200_000, "- " * 200_000  # composed, they would end the process
HOSTILE = ["&a [*a]", "{a: &a {b: *a}}", "[" * 900, BRACKETS, DASHES, "{a: " * 5000, "a: \ud800", "a: \x00"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:8])
def test_hostile_yaml_is_a_policy_error(text: str) -> None:
    assert refused(text)


def test_an_alias_bomb_is_a_policy_error() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert refused("\n".join(lines))


edits = st.lists(
    st.tuples(
        st.integers(0, len(REFERENCE)), st.integers(0, 12), st.text("{}[]:,-#&*!|>'\"%@` \n\tab01.${}~", max_size=4)
    ),
    min_size=1,
    max_size=3,
)


@given(edits)
@settings(max_examples=150)
def test_a_mutated_file_is_read_or_refused_and_nothing_else(changes: list[tuple[int, int, str]]) -> None:
    text = REFERENCE
    for at, length, put in changes:
        text = text[:at] + put + text[at + length :]
    try:
        assert load_policy(text, {}).tiers
        problems: list[Problem] = []
    except PolicyError as error:
        problems = [problem for problem in error.problems if problem.line < 1 or problem.column < 1]
    assert problems == []


leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.floats()
shapes = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@given(st.sampled_from(["tiers", "rules", "triage", "callers", "failover", "signals", "aliases", "tests"]), shapes)
@settings(max_examples=150)
def test_a_key_with_any_value_is_read_or_refused_and_nothing_else(key: str, value: object) -> None:
    document = {
        "schema": 1,
        "tiers": {"a": {"model": "m", "replicas": ["http://h"]}},
        "rules": [{"id": "x", "route": "a"}],
    }
    with contextlib.suppress(PolicyError):
        load_policy(json.dumps(document | {key: value}), {})


LAYER = {"intercept": 0.0, "weights": {"score": 1.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}}


def calibrated(place: Path, written: object, more: str = "") -> Policy:
    (place / "found.json").write_text(json.dumps(written))
    (place / "policy.yaml").write_text(f"{SMALLEST}triage: {{calibration: found.json{more}}}\n")
    return load_policy(place / "policy.yaml", {})


def test_a_calibration_brings_its_threshold_unless_the_file_has_one(tmp_path: Path) -> None:
    found = {"schema": 1, "layer": LAYER, "edges": [0.3]}
    assert calibrated(tmp_path, found).triage.threshold == 0.3
    assert calibrated(tmp_path, found, ", threshold: 0.5").triage.threshold == 0.5
    assert calibrated(tmp_path, found | {"edges": [0.3, 0.6]}).triage.threshold == 0.5


def test_a_calibration_is_part_of_the_digest(tmp_path: Path) -> None:
    found = {"schema": 1, "layer": LAYER, "edges": [0.3]}
    digests = [calibrated(tmp_path, found | {"edges": [edge]}).digest for edge in (0.3, 0.4, 0.3)]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"schema": 3}, "no calibration: no calibration of schema 2"),
        ([], "no calibration: no calibration of schema 2"),
        (
            {"schema": 1, "layer": LAYER | {"weights": {"mood": 1}, "means": {"mood": 0}}, "edges": []},
            "no calibration: not a whole",
        ),
        (
            {"schema": 1, "layer": {key: {"mood": 1} for key in LAYER} | {"intercept": 0}, "edges": []},
            "looks at what is not measured: mood",
        ),
    ],
)
def test_what_is_no_calibration_is_told_at_its_place(tmp_path: Path, written: object, told: str) -> None:
    with pytest.raises(PolicyError) as error:
        calibrated(tmp_path, written)
    (problem,) = error.value.problems
    assert (problem.column, problem.path) == (23, "triage.calibration")
    assert problem.message.startswith(told)


def test_a_calibration_goes_with_the_question_that_it_was_fitted_on(tmp_path: Path) -> None:
    basis = {"edges": [0.5], "counts": [3, 4], "outcomes": 5, "label": "needed", "judged": True, "agree": None}
    found: dict[str, Any] = {"schema": 1, "layer": LAYER, "edges": [0.3], "basis": basis}
    asked = calibrated(tmp_path, found).question
    assert calibrated(tmp_path, found | {"basis": basis | {"question": asked}}).question == asked
    with pytest.raises(PolicyError, match=r":7:23: triage.calibration: p goes by answers to .*: calibrate anew"):
        calibrated(tmp_path, found | {"basis": basis | {"question": asked}}, ", prompt: p_solve.v1")


def test_a_calibration_that_is_not_there_is_told_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(f"{SMALLEST}triage: {{calibration: none.json}}\n")
    with pytest.raises(PolicyError, match=r"policy.yaml:7:23: triage.calibration: cannot be read: No such file"):
        load_policy(tmp_path / "policy.yaml", {})


def test_a_file_that_became_a_pipe_is_read_as_far_as_it_speaks_and_never_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TimeoutError, match="nothing comes from this pipe"):
        contents(str(pipe), patience=0.01)
    speaking = os.open(pipe, os.O_RDWR)
    os.write(speaking, b"schema: 1")
    with pytest.raises(TimeoutError, match="nothing comes from this pipe"):
        contents(str(pipe), patience=0.01)
    os.close(speaking)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(contents, str(pipe))
        pipe.write_text(SMALLEST)
        assert read.result(20) == SMALLEST.encode()
