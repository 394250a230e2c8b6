"""A policy file does what its own tests say, or is refused at the expectation that fails."""

from pathlib import Path

import pytest

from gateway.policy import PolicyError
from gateway.verify import checked

POLICIES = Path(__file__).parents[2] / "policies"
HEAD = """\
schema: 1
tiers:
  flash: {model: m/flash, replicas: ["http://h"]}
  pro: {model: m/pro, replicas: ["http://h"]}
rules:
  - {id: tiny, when: {characters: {max: 9}}, route: flash}
  - {id: plan, when: {header: {X-Phase: plan}}, route: pro}
  - {id: busy, when: {load: {pro: {inflight: {min: 5}}}}, route: flash}
  - {id: queueing, when: {load: {pro: {waiting: {min: 32}}}}, route: flash}
  - {id: triaged, route: {simple: flash, complex: pro}}
callers: {default: {plan: gold}, plans: {gold: {may: [pro]}, batch: {}}}
tests:
"""
LONG = 'request: {messages: [{role: user, content: "a question of some length"}]}'


def problems(tmp_path: Path, *tests: str, head: str = HEAD) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(head + "".join(f"  - {{name: t, {test}}}\n" for test in tests), encoding="utf-8")
    try:
        checked(path, {})
    except PolicyError as error:
        return [str(problem).removeprefix(f"{path}:") for problem in error.problems]
    return []


@pytest.mark.parametrize("name", ["default.yaml", "reference.yaml", "hosted.yaml"])
def test_shipped_policies_pass_their_own_tests(name: str) -> None:
    assert checked(POLICIES / name, {}).tests


@pytest.mark.parametrize(
    "test",
    [
        "request: {prompt: hi}, expect: {tier: flash, rule: tiny, triaged: false, reason: rule}",
        "request: {prompt: hi}, expect: {rule: tiny}",
        f"{LONG}, verdict: {{p_complex: 0.5}}, expect: {{tier: pro, rule: triaged, triaged: true, reason: complex}}",
        f"{LONG}, verdict: {{label: simple}}, expect: {{tier: flash, reason: simple}}",
        f"{LONG}, verdict: timeout, expect: {{tier: flash, triaged: true, reason: timeout}}",
        f"{LONG}, expect: {{rule: triaged, triaged: true}}",
        f"{LONG}, waiting: {{pro: 32}}, expect: {{rule: queueing, triaged: false}}",
        f"{LONG}, waiting: {{pro: 31}}, expect: {{rule: triaged}}",
        f"{LONG}, headers: {{x-phase: plan}}, expect: {{rule: plan, tier: pro}}",
        f"{LONG}, headers: {{X-Route-Tier: pro}}, expect: {{rule: caller, tier: pro}}",
        f"{LONG}, load: {{pro: 5}}, expect: {{rule: busy}}",
        f"{LONG}, caller: {{plan: batch}}, expect: {{tier: flash, triaged: false}}",
    ],
)
def test_an_expectation_that_holds_passes(tmp_path: Path, test: str) -> None:
    assert problems(tmp_path, test) == []


def test_an_expectation_that_fails_is_told_at_its_place_with_what_came(tmp_path: Path) -> None:
    found = problems(tmp_path, f"{LONG}, verdict: {{p_complex: 0.1}}, expect: {{tier: pro, triaged: false}}")
    assert found == [
        '13:132: tests.0.expect.tier: "t" fails: expected pro, got flash',
        '13:146: tests.0.expect.triaged: "t" fails: expected false, got true',
    ]


def test_a_test_that_lacks_a_verdict_says_so(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, f"{LONG}, expect: {{tier: pro}}")
    assert "give the test a `verdict`" in found


def test_a_request_that_is_refused_is_told_at_the_request(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "request: {model: nope, messages: []}, expect: {tier: pro}")
    assert found.startswith('13:24: tests.0.request: "t" fails: the request was refused: The model')
    (found,) = problems(tmp_path, "request: {model: 3}, expect: {tier: pro}")
    assert "tests.0.request" in found


def test_all_failing_tests_are_told_together(tmp_path: Path) -> None:
    failing = "request: {prompt: hi}, expect: {rule: plan}"
    assert [problem.split(":")[0] for problem in problems(tmp_path, failing, failing)] == ["13", "14"]


def test_a_file_that_is_wrong_runs_no_tests(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "request: {prompt: hi}, expect: {rule: plam}")
    assert "no rule is named" in found


def test_a_test_may_name_the_band(tmp_path: Path) -> None:
    banded = HEAD.replace("{simple: flash, complex: pro}", '{p_complex: {"<0.4": flash, "<0.6": pro, else: pro}}')
    right, wrong = (f"{LONG}, verdict: {{p_complex: 0.5}}, expect: {{band: {key}}}" for key in ('"<0.6"', '"<0.4"'))
    assert problems(tmp_path, right, head=banded) == []
    assert problems(tmp_path, wrong, head=banded)[0].endswith('"t" fails: expected <0.4, got <0.6')
    assert "got none" in problems(tmp_path, right)[0], "its rule has no bands"
    wish = f'{LONG}, headers: {{x-route-tier: flash}}, verdict: {{p_complex: 0.5}}, expect: {{band: "<0.6"}}'
    assert "got none" in problems(tmp_path, wish, head=banded)[0], "its caller's wish asks for no verdict"
    unknown = f'{LONG}, verdict: timeout, expect: {{band: "<0.4"}}'
    assert "got none" in problems(tmp_path, unknown, head=banded)[0], "a verdict without a label falls into none"
