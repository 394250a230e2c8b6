"""`tiergate policy check | explain | schema` on the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.policy import app
from gateway.policy import packaged, schema

POLICIES = Path(__file__).parents[2] / "policies"
DEFAULT = str(POLICIES / "default.yaml")
HARD = "Prove that there are infinitely many primes."
HOUSE = """\
schema: 1
name: house
revision: r1
tiers:
  flash: {model: f, replicas: ["http://h"], price: {output_per_m: 1}}
  pro: {model: p, replicas: ["http://h"], price: {output_per_m: 10}}
  deep: {model: d, replicas: ["http://h"], price: {output_per_m: 30}}
triage: {otherwise: {timeout: local, parse: pro}, calibration: found.json}
rules:
  - {id: tiny, when: {characters: {max: 5}}, route: flash}
  - {id: code, when: {tools: true}, route: {p_complex: {"<0.3": flash, "<0.6": pro, else: deep}}}
  - {id: triaged, route: {simple: flash, complex: pro}}
failover: {tiers: {flash: [pro, deep]}}
"""
LAYER = {"intercept": 0, "weights": {"p_complex": 1}, "means": {"p_complex": 0.5}, "scales": {"p_complex": 1}}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "120"})


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "broken.yaml"
    path.write_text(
        "schema: 1\ntiers: {a: {model: m, replicas: ['http://h']}}\nrules: [{id: x, route: b}]\n", encoding="utf-8"
    )
    return str(path)


@pytest.fixture
def house(tmp_path: Path) -> str:
    """A policy with bands, and with a calibration that makes less of a probability."""
    path = tmp_path / "house.yaml"
    path.write_text(HOUSE, encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps({"schema": 1, "layer": LAYER, "edges": [0.6]}))
    return str(path)


def test_the_packaged_default_is_found() -> None:
    assert packaged() == POLICIES / "default.yaml"


def test_check_says_what_it_checked() -> None:
    found = run("check", DEFAULT)
    assert found.exit_code == 0
    assert "3 tiers, 3 rules" in found.stdout
    assert "4 tests passed" in found.stdout
    assert run("check").stdout == found.stdout


@pytest.mark.parametrize("policy", ["default.yaml", "hosted.yaml"])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("hi", "tiny-chitchat"),
        ("Good morning!", "tiny-chitchat"),
        ("who are you?", "tiny-chitchat"),
        ("早上好！", "tiny-chitchat"),
        ("안녕하세요", "tiny-chitchat"),
        ("Prove Fermat", "triaged"),
        ("Solve x^3+y^3=z^3", "triaged"),
        ("用C++实现一个无锁队列并证明其线性一致性", "triaged"),
        ("페르마의 정리를 증명해줘", "triaged"),
    ],
)
def test_a_short_text_goes_without_a_verdict_only_where_it_looks_simple(policy: str, text: str, rule: str) -> None:
    found = run("explain", str(POLICIES / policy), "-m", text, "--json")
    assert json.loads(found.stdout)["route"].get("rule", "triaged") == rule


def test_check_tells_problems_on_stderr_and_exits_with_1(broken: str) -> None:
    found = run("check", broken)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.splitlines() == [f'{broken}:3:24: rules.0.route: no tier is named "b"; known: a', "1 problem"]


def test_check_as_json_is_data(broken: str) -> None:
    assert json.loads(run("check", DEFAULT, "--format", "json").stdout)["ok"]
    found = json.loads(run("check", broken, "--format", "json").stdout)
    assert (found["ok"], found["problems"][0]["line"], found["problems"][0]["column"]) == (False, 3, 24)


def test_check_for_github_is_an_annotation(broken: str) -> None:
    found = run("check", broken, "--format", "github").stdout
    assert found == f'::error file={broken},line=3,col=24::rules.0.route: no tier is named "b"; known: a\n'


def test_an_annotation_names_any_file_and_of_the_whole_file_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a,b:c.yaml"
    path.write_text("")
    found = run("check", str(path), "--format", "github").stdout
    assert (
        found == f"::error file={tmp_path}/a%2Cb%3Ac.yaml,line=1,col=1::empty: a policy needs schema, tiers and rules\n"
    )


def test_a_name_that_the_terminal_cannot_show_is_spelt_out_and_json_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    tests = "tests: [{name: 日é😀, request: {prompt: hi}, expect: {tier: a}}]\n"
    path.write_text(
        f"schema: 1\ntiers: {{a: {{model: m, replicas: ['http://h']}}}}\nrules: [{{id: x, route: a}}]\n{tests}",
        encoding="utf-8",
    )
    command, terminal = [sys.executable, "-m", "gateway", "policy", "test", str(path)], {"PYTHONIOENCODING": "ascii"}

    def told(*more: str) -> str:
        ran = subprocess.run(
            [*command, *more], env=os.environ | terminal, stdout=subprocess.PIPE, text=True, check=True, timeout=60
        )
        return ran.stdout

    assert told() == "passes  \\u65e5\\u00e9\\ud83d\\ude00  ->  a (x: rule)\n"
    assert json.loads(told("--json"))["tests"][0]["name"] == "日é😀"


def test_several_problems_are_counted_and_each_is_one_annotation_whatever_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "100%.yaml"
    path.write_text('schema: 1\n"x\\n::error ::y": 1\n"z\\r%": 1\n' + HOUSE.partition("\n")[2])
    found = run("check", str(path), "--format", "github").stdout.splitlines()
    assert found[0].startswith(f"::error file={tmp_path}/100%25.yaml,line=2,col=1::x%0A::error ::y: unknown key")
    assert "z%0D%25: unknown key" in found[1]
    told = run("check", str(path))
    assert told.stderr.splitlines()[-1] == f"{len(found)} problems"
    assert json.loads(run("check", str(path), "--json").stdout)["file"] == str(path)


def test_test_tells_each_test_and_where_it_went() -> None:
    found = run("test", DEFAULT)
    assert found.exit_code == 0
    assert "passes  hard maths goes to pro  ->  pro (triaged: complex)" in found.stdout
    assert len(found.stdout.splitlines()) == 4


def test_test_tells_what_fails_and_exits_with_1(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text((POLICIES / "default.yaml").read_text().replace("{tier: pro, rule: triaged, ", "{tier: flash, "))
    found = run("test", str(path))
    assert found.exit_code == 1
    assert [line.split()[0] for line in found.stdout.splitlines()] == ["passes", "fails", "passes", "passes"]
    assert '"hard maths goes to pro" fails: expected flash, got pro' in found.stderr
    told = json.loads(run("test", str(path), "--json").stdout)
    assert (told["ok"], [bool(test["problems"]) for test in told["tests"]]) == (False, [False, True, False, False])
    assert run("test", str(path), "--format", "github").stdout.startswith(f"::error file={path},line=")
    assert run("test", broken).exit_code == 1


def test_check_and_test_take_json_by_its_short_name(broken: str) -> None:
    assert run("check", broken, "--json").stdout == run("check", broken, "--format", "json").stdout


def test_explain_shows_both_sides_without_a_verdict() -> None:
    found = run("explain", DEFAULT, "-m", HARD)
    assert found.exit_code == 0
    assert "characters is 44, wanted max 24" in found.stdout
    assert "if simple" in found.stdout
    assert "if complex" in found.stdout
    assert "\x1b[" not in found.stdout


def test_explain_takes_a_verdict_a_plan_and_headers() -> None:
    found = run("explain", "-m", HARD, "--verdict", "0.8").stdout
    assert "p_complex 0.8, threshold 0.5, margin +0.3" in found
    assert "route   pro" in found
    assert "failed: parse" in run("explain", "-m", HARD, "--verdict", "parse").stdout
    assert "complex, without a probability" in run("explain", "-m", HARD, "--verdict", "complex").stdout
    assert "both ways flash" in run("explain", "-m", HARD, "--plan", "batch").stdout
    assert "asked for by header" in run("explain", "-m", HARD, "--header", "x-route-tier=pro").stdout
    assert (
        "refused with status 403"
        in run("explain", "-m", HARD, "--header", "x-route-tier=pro", "--plan", "batch").stdout
    )


DECIDED = """\
score   0.511  (task, length, depth)
rule              why not
tiny     no       characters is 17, wanted max 5
code     no       tools is false, wanted true
triaged  decides
verdict complex: p_complex 0.708125 (said 0.8, calibrated), threshold 0.6, margin +0.108125
route   pro  (rule triaged: complex)
  flash, then pro, deep  if simple, timeout, truncated, empty, overloaded, error
  pro                    if complex, parse
instead flash (simple) would cost $0.004500 less
cost    flash $0.000500, pro $0.005000, deep $0.015000 for 5 tokens in, 500 out (assumed), nothing cached
"""


def test_explain_tells_people_the_whole_decision(house: str) -> None:
    found = run("explain", house, "-m", "Prove it, please.", "--verdict", "0.8").stdout
    shown = [line.rstrip() for line in found.splitlines()]
    assert shown[0].startswith("policy  house r1 (")
    assert shown[1] == (
        "facts   model auto, caller test, plan default, api chat, characters 17, turns 1, context 5, chance 1.0"
    )
    assert shown[2:] == DECIDED.splitlines()


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize(
    ("text", "more", "verdict", "told"),
    [
        ("hi", {}, "", ["tiny     decides", "code     no", "triaged  matches", "verdict not wanted: nobody is asked",
                        "route   flash, then pro, deep  (rule tiny: rule)"]),
        (HARD, {}, "", ["verdict wanted; both sides follow", "route   rule triaged asks first; draft on flash"]),
        (HARD, {}, "timeout", ["verdict simple: by the local score, for timeout: 0.5, threshold 0.6, margin -0.1",
                               "instead pro (complex) would cost $0.004500 more"]),
        (HARD, {}, "parse", ["verdict failed: parse", "route   pro  (rule triaged: parse)"]),
        (HARD, {"tools": TOOLS, "max_tokens": 100}, "", ["  pro                    if <0.6, timeout, parse",
                                                         "  deep                   if else", "100 out (max_tokens)"]),
        (HARD, {"tools": TOOLS}, "0.45", ["verdict <0.6: p_complex 0.331664 (said 0.45, calibrated), threshold 0.3",
                                          "instead flash (<0.3) would cost $0.004500 less"]),
    ],
)  # fmt: skip
def test_explain_says_in_a_line_what_the_classifier_has_to_do_with_it(
    house: str, tmp_path: Path, text: str, more: dict[str, Any], verdict: str, told: list[str]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"messages": [{"role": "user", "content": text}], **more}))
    words = ("--verdict", verdict) if verdict else ()
    shown = run("explain", house, "--request", str(request), *words).stdout
    assert [line for line in told if line not in shown] == []


def test_explain_refuses_a_request_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    found = run("explain", DEFAULT, "--request", str(tmp_path / "list.json"))
    words = " ".join(found.stderr.replace("│", " ").split())
    assert (found.exit_code, found.stdout, "expected a JSON object" in words) == (2, "", True)


def test_explain_takes_a_request_file_and_gives_json(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"model": "pro", "messages": [{"role": "user", "content": "hi"}]}), encoding="utf-8")
    found = json.loads(run("explain", DEFAULT, "--request", str(path), "--json").stdout)
    assert found["route"]["tier"] == "pro"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-m", "x", "--request", str(POLICIES / "schema.json")),
        ("--request", "none.json"),
        ("-m", "x", "--plan", "none"),
        ("-m", "x", "--header", "none"),
        ("-m", "x", "--verdict", "1.5"),
        ("-m", "x", "--verdict", "nan"),
    ],
)
def test_explain_refuses_arguments_that_mean_nothing(arguments: tuple[str, ...]) -> None:
    found = run("explain", DEFAULT, *arguments)
    assert (found.exit_code, found.stdout) == (2, "")


def test_no_text_of_a_file_steers_a_terminal(tmp_path: Path) -> None:
    wrong, own = tmp_path / "wrong.yaml", tmp_path / "own.yaml"
    wrong.write_text(HOUSE + '"x\\e[2J": 1\n', encoding="utf-8")
    test = '{name: "x\\e[2J", request: {messages: [{role: user, content: hi}]}, expect: {tier: flash}}'
    own.write_text(f"{HOUSE.replace(', calibration: found.json', '')}tests: [{test}]\n", encoding="utf-8")
    for told, status in ((run("check", str(wrong)), 1), (run("test", str(own)), 0)):
        assert (told.exit_code, "x\\x1b[2J" in told.output, "\x1b" in told.output) == (status, True, False)


def test_explain_refuses_a_request_that_is_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"a":' * 5000)
    found = run("explain", DEFAULT, "--request", str(path))
    assert (found.exit_code, found.stdout) == (2, "")


def test_explain_of_an_unknown_model_says_so(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text('{"model": "nope"}', encoding="utf-8")
    found = run("explain", "--request", str(path))
    assert found.exit_code == 1
    assert "does not exist" in found.stderr


def test_explain_of_a_broken_policy_tells_its_problems(broken: str) -> None:
    found = run("explain", broken, "-m", "x")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "no tier is named" in found.stderr


def test_schema_is_json() -> None:
    assert json.loads(run("schema").stdout) == schema()
