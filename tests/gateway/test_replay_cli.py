"""`tiergate policy replay | diff` on the command line."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.kept import seen
from gateway.policy import load_policy

TEXT = """\
schema: 1
tiers:
  flash: {model: f, replicas: ["${FLASH_URL:-http://h}"], price: {output_per_m: 1}}
  pro: {model: p, replicas: ["http://h"], price: {output_per_m: 10}}
triage: {threshold: 0.5}
rules:
  - {id: tiny, when: {characters: {max: 10}}, route: flash}
  - {id: triaged, route: {simple: flash, complex: pro}}
callers: {default: {plan: gold}, plans: {gold: {may: [pro]}}}
"""
SEEN = msgspec.to_builtins(seen(load_policy(TEXT, {})))


def run(*arguments: str) -> Result:
    env = {"NO_COLOR": "1", "COLUMNS": "40", "FLASH_URL": "http://x"}
    return CliRunner().invoke(app, ["policy", *arguments], env=env, color=True)  # it strips no escapes


def line(at: int) -> str:
    p = at / 100
    tier = "pro" if p >= 0.5 else "flash"
    facts = {"model": "auto", "caller": "ann", "plan": "gold", "characters": 50, "context": 10}
    verdict = {"label": "complex" if p >= 0.5 else "simple", "p_complex": p}
    used = {"prompt": 10, "cached": 0, "completion": 100}
    outcome = {"quality": 1.0 if tier == "pro" else 0.5}
    return json.dumps(
        {"v": 1, "id": f"r{at}", "caller": "k", "facts": facts, "seen": SEEN, "verdict": verdict, "tier": tier}
        | {"route": {"tier": tier, "rule": "triaged"}, "used": used, "outcome": outcome}
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {
        "a.yaml": TEXT,
        "b.yaml": TEXT.replace("threshold: 0.5", "threshold: 0.3").replace(
            "  - {id: triaged", "  - {id: long, when: {characters: {min: 9000}}, route: pro}\n  - {id: triaged"
        ),
        "cheap.yaml": TEXT.replace("complex: pro", "complex: flash"),
        "header.yaml": TEXT.replace("when: {characters: {max: 10}}", "when: {header: {x-phase: plan}}"),
        "broken.yaml": TEXT.replace("route: flash", "route: nobody"),
        "records": "".join(line(at) + "\n" for at in range(100)),
        "bad": "{\n",
        "negative": line(1).replace('"rule": "triaged"', '"chances": {"flash": -0.5, "pro": 1.5}'),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {name: str(tmp_path / name) for name in texts}


def test_replay_tells_moves_shares_cost_quality_and_controls(files: dict[str, str]) -> None:
    found = run("replay", "--policy", files["b.yaml"], "--records", files["records"])
    assert found.exit_code == 0
    for told in ("20 go elsewhere", "flash -> pro", "r30", "70.0%", "50.0%", "shuffle", "all flash", "had no chance"):
        assert told in found.stdout


def test_each_figure_and_each_move_is_a_line_however_narrow_the_terminal_is(files: dict[str, str]) -> None:
    given = "--records", files["records"]
    for told in (
        run("replay", "--policy", files["b.yaml"], *given),
        run("diff", files["a.yaml"], files["b.yaml"], *given),
    ):
        assert "\n20  flash -> pro  triaged  r30, r31, r32, r33, r34\n" in told.stdout
    figures = run("replay", "--policy", files["b.yaml"], *given).stdout.splitlines()
    assert "candidate  70.0% (53.3% - 85.9%)    0.073000  73%      not known" in figures
    assert "recorded   quality by 100 effective outcomes" in figures


def test_a_gain_that_is_not_sure_fails_where_it_must_be(files: dict[str, str]) -> None:
    lines = [json.loads(line(at)) for at in range(100)]
    for one in lines:
        one["outcome"] = {"quality": 0.9, "tiers": {"flash": 0.5, "pro": 1.0}}
    Path(files["records"]).write_text("".join(json.dumps(one) + "\n" for one in lines))
    replay = "replay", "--policy", files["b.yaml"], "--records", files["records"]
    shown = run(*replay).stdout
    assert "+0.100 (+0.0" in shown
    candidate = [row for row in shown.splitlines() if row.startswith("candidate")]
    assert len(candidate) == 2
    assert "(+" not in "".join(candidate), "than itself it is no better"
    assert [run(*replay, "--fail-if", condition).exit_code for condition in ("gain_low < 0", "gain_low < 0.1")] == [
        0,
        1,
    ]


STEERING = "x\x1b]0;x\x07[/]\x9b"  # sets a terminal's title; to rich it is the end of a style that nobody began


def test_nothing_in_a_record_steers_a_terminal(files: dict[str, str]) -> None:
    made = json.loads(line(90)) | {"id": STEERING, "tier": STEERING, "route": {"tier": STEERING}}
    Path(files["records"]).write_text(json.dumps(made))
    found = run("replay", "--policy", files["cheap.yaml"], "--records", files["records"])
    assert found.stdout.count("x\\x1b]0;x\\x07[/]\\x9b") == 2
    refused = run("replay", "--policy", files["header.yaml"], "--records", files["records"])
    assert not set(found.output + refused.output) & {"\x1b", "\x07", "\x9b"}


def test_replay_as_json_has_every_figure(files: dict[str, str]) -> None:
    told = run("replay", "--policy", files["b.yaml"], "--records", files["records"], "--format", "json").stdout
    found = json.loads(told)
    assert found["figures"] | {"pro_share": 0.7, "share.pro": 0.7, "moved": 0.2, "quality": None} == found["figures"]
    assert found["arms"]["recorded"]["quality"]["value"] == pytest.approx(0.75)
    assert found["arms"]["recorded"]["behind"] is None, "where nothing was explored nobody knows the candidate"
    assert found["figures"]["cost_ratio"] == pytest.approx((30 * 1 + 70 * 10) / (50 * 1 + 50 * 10))


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["pro_share > 0.7"], 0),
        (["pro_share >= 0.7"], 1),
        (["share.pro>0.3"], 1),
        (["cost_usd > 1", "moved != 0"], 1),
        (["cost_ratio <= 1"], 0),
        (["undecided == 0"], 1),
        (["quality < 0.5"], 2),
        (["gain_low < -0.02"], 2),
        (["nobody > 1"], 2),
        (["pro_share > 0.3", "nobody > 1"], 2),
        (["pro_share"], 2),
        (["pro_share > 0.3 or 1"], 2),
        (["__import__('os') > 1"], 2),
        (["pro_share > nan"], 2),
    ],
)
def test_a_condition_sets_the_exit_status(files: dict[str, str], conditions: list[str], status: int) -> None:
    given = [part for condition in conditions for part in ("--fail-if", condition)]
    found = run("replay", "--policy", files["b.yaml"], "--records", files["records"], *given)
    assert found.exit_code == status
    assert bool(found.stderr) == bool(status)


def test_a_tier_that_nothing_goes_to_has_a_share_of_none(files: dict[str, str]) -> None:
    replay = "replay", "--policy", files["cheap.yaml"], "--records", files["records"]
    assert [run(*replay, "--fail-if", f"share.pro {sign} 0").exit_code for sign in (">", "<=")] == [0, 1]


def test_a_figure_that_is_not_known_is_told_apart_from_one_that_there_is_not(files: dict[str, str]) -> None:
    replay = "replay", "--policy", files["b.yaml"], "--records", files["records"]
    for name, told in (("quality", "not known here\n"), ("nobody", "no such figure: pro_share, ")):
        assert run(*replay, "--fail-if", f"{name} > 1").stderr.startswith(f"{name}: {told}")


@pytest.mark.parametrize(
    ("policy", "records", "told"),
    [
        ("header.yaml", "records", "rule tiny looks at header.x-phase, which record r0"),
        ("a.yaml", "bad", "bad:1: "),
        ("a.yaml", "negative", "`$.route.chances[...]`"),
        ("broken.yaml", "records", "no tier is named"),
        ("none.yaml", "records", "cannot be read"),
    ],
)
def test_what_cannot_be_replayed_is_said_with_status_2(
    files: dict[str, str], policy: str, records: str, told: str
) -> None:
    for command in (("replay", "--policy"), ("diff", files["a.yaml"])):
        found = run(*command, files.get(policy, policy), "--records", files[records])
        assert (found.exit_code, found.stdout) == (2, "")
        assert told in found.stderr


def test_diff_tells_what_the_files_say_differently_and_who_moves(files: dict[str, str]) -> None:
    found = run("diff", files["a.yaml"], files["b.yaml"], "--records", files["records"]).stdout
    assert found.splitlines()[:4] == [
        'rules: ["tiny", "triaged"] -> ["tiny", "long", "triaged"]',
        'rules.long.id: not given -> "long"',
        'rules.long.route: not given -> "pro"',
        "rules.long.when.characters.min: not given -> 9000",
    ]
    assert "triage.threshold: 0.5 -> 0.3" in found
    assert "20 of 100 requests move, 0 undecided" in found


def test_diff_of_a_file_with_itself_is_empty(files: dict[str, str]) -> None:
    assert run("diff", files["a.yaml"], files["a.yaml"]).stdout == "the files say the same\n"
    found = run("diff", files["a.yaml"], files["a.yaml"], "--records", files["records"], "--format", "json").stdout
    assert json.loads(found) == {"changes": [], "records": 100, "undecided": 0, "moves": []}


def test_diff_tells_of_a_file_that_both_name_and_that_is_another(files: dict[str, str], tmp_path: Path) -> None:
    for folder, more in (("x", ""), ("y", "# changed\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.yaml").write_text(TEXT + "candidate: {policy: next.yaml}\n")
        (tmp_path / folder / "next.yaml").write_text(TEXT + more)
    told = run("diff", str(tmp_path / "x" / "p.yaml"), str(tmp_path / "y" / "p.yaml")).stdout
    assert re.fullmatch(r'file next\.yaml: "[0-9a-f]{12}" -> "[0-9a-f]{12}"\n', told)


def test_diff_tells_calibrations_of_one_name_apart(files: dict[str, str]) -> None:
    layer = {"intercept": 0.0, "weights": {"score": 1.0}, "means": {"score": 0.0}, "scales": {"score": 1.0}}
    here = Path(files["a.yaml"]).parent
    for name, edge in (("one", 0.4), ("other", 0.6)):
        (here / name).mkdir()
        (here / name / "calibration.json").write_text(json.dumps({"schema": 1, "layer": layer, "edges": [edge]}))
        (here / name / "p.yaml").write_text(TEXT.replace("threshold: 0.5", "calibration: calibration.json"))
    one, other = (str(here / name / "p.yaml") for name in ("one", "other"))
    told = run("diff", one, other).stdout
    assert re.fullmatch(r'file calibration\.json: "[0-9a-f]{12}" -> "[0-9a-f]{12}"\n', told)
    assert run("diff", one, one).stdout == "the files say the same\n"


def test_diff_does_not_show_what_the_environment_holds(files: dict[str, str]) -> None:
    changed = Path(files["a.yaml"]).with_name("c.yaml")
    changed.write_text(TEXT.replace('["${FLASH_URL:-http://h}"]', '["http://h"]'), encoding="utf-8")
    told = run("diff", files["a.yaml"], str(changed)).stdout
    assert told == 'tiers.flash.replicas: "(from the environment)" -> ["http://h"]\n'
