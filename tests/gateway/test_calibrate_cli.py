"""`tiergate policy calibrate`: what it prints, writes and refuses."""

import hashlib
import json
import math
import os
import re
import resource
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from gateway.calibrate import Example
from gateway.cli import app
from gateway.policy import Bands, load_policy
from gateway.recorded import Chosen, Outcome, Recorded, Seen
from gateway.types import Facts
from tests.gateway.test_calibrate import by_nothing, by_score, traffic


def line(one: Example) -> bytes:
    """The record of a decision that Flash answered, and of which somebody judged Pro's answer, too."""
    facts = Facts("auto", "ann", "gold", score=one.score)
    outcome = Outcome(float(one.flash_ok or False), tiers={"pro": float(one.pro_ok or False)})
    look = Seen({}, (), ("flash", "pro"), "")
    route = Chosen("flash")
    made = Recorded(id=one.id, route=route, facts=msgspec.to_builtins(facts), seen=look, outcome=outcome)
    return msgspec.json.encode(made) + b"\n"


def verdict(record: bytes, question: str, p_complex: float) -> bytes:
    """The record with a verdict."""
    told = json.loads(record)
    told["seen"]["question"], told["verdict"] = question, {"label": "simple", "p_complex": p_complex, "reason": "ok"}
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


POLICY = """\
schema: 1
tiers: {flash: {model: m, replicas: ["http://h"]}, pro: {model: p, replicas: ["http://h"]}}
triage: {calibration: calibration.json}
rules: [{id: triaged, route: {simple: flash, complex: pro}}]
"""


def calibrate(records: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["policy", "calibrate", str(records), *words])


def test_a_calibration_is_reported_and_written(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "calibration.json"
    records.write_bytes(b"".join(map(line, traffic(1000, by_score))))
    ran = calibrate(records, "--target", "pro_share=0.25", "--out", str(out))
    assert ran.exit_code == 0, ran.stderr
    shown = ran.stdout.splitlines()
    heads = ["inputs", "thresholds", "shares", "sources", "lift", "reliability", "Flash fails", f"written to {out}"]
    assert [one.split("  ")[0] for one in shown] == heads
    assert re.search(r" of 500 held out; all records set them to within 0\.02\d \(95 %\)$", shown[2])
    assert "above chance at an equal share" in shown[4]
    assert shown[5].endswith("500 outcomes, 500 effective")
    written = json.loads(out.read_text())
    assert shown[:2] == ["inputs       score", f"thresholds   {written['edges'][0]:.4f}"]
    assert (written["proven"], written["records"]["n"]) == (True, 1000)
    assert written["records"]["sha256"] == hashlib.sha256(records.read_bytes()).hexdigest()
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    assert load_policy(policy, {}).triage.threshold == written["edges"][0]


def test_bands_are_printed_as_a_rule_takes_them(tmp_path: Path) -> None:
    records, policy = tmp_path / "records.jsonl", tmp_path / "policy.yaml"
    records.write_bytes(b"".join(map(line, traffic(1000, by_score))))
    ran = calibrate(records, "--target", "shares=0.5/0.3/0.2", "--out", str(tmp_path / "calibration.json"))
    assert ran.exit_code == 0, ran.stderr
    (told,) = (one for one in ran.stdout.splitlines() if one.startswith("bands"))
    route = told.partition("route: ")[2].partition(": a rule")[0]
    for number, tier in enumerate(("flash", "flash", "pro"), 1):
        route = route.replace(f"TIER{number}", tier)
    policy.write_text(POLICY.replace("{simple: flash, complex: pro}", route))
    (found,) = load_policy(policy, {}).rules
    assert isinstance(found.route, Bands)
    edges = json.loads((tmp_path / "calibration.json").read_text())["edges"]
    assert [step.high for step in found.route.steps] == pytest.approx([*edges, math.inf], abs=1e-4)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_bytes(b"".join(map(line, traffic(600, by_score))))
    ran = calibrate(records, "--target", "pro_share=0.25", "--out", str(tmp_path / "none" / "calibration.json"))
    assert (ran.exit_code, "No such file or directory" in ran.stderr) == (1, True)
    assert isinstance(ran.exception, SystemExit)


def test_what_is_not_proven_is_written_only_when_told_to(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "calibration.json"
    records.write_bytes(b"".join(map(line, traffic(600, by_nothing))))
    ran = calibrate(records, "--target", "pro_share=0.25", "--out", str(out))
    assert (ran.exit_code, out.exists()) == (1, False)
    assert "it is not proven" in ran.stderr
    ran = calibrate(records, "--target", "pro_share=0.25", "--out", str(out), "--anyway", "--json")
    assert (ran.exit_code, ran.stderr) == (0, f"written to {out}\n"), "stdout is for the JSON alone"
    told, written = json.loads(ran.stdout), json.loads(out.read_text())
    assert (told["proven"], told["thresholds"]) == (written["proven"], written["edges"]) == (False, written["edges"])
    assert told["inputs"] == list(written["layer"]["weights"])


def test_a_calibration_is_kept_and_its_thresholds_set_anew_without_outcomes(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "calibration.json"
    records.write_bytes(b"".join(map(line, traffic(300, by_score))))
    assert calibrate(records, "--target", "pro_share=0.25", "--out", str(out)).exit_code == 0
    before = json.loads(out.read_text())
    newer = [replace(one, score=0.5 + one.score / 2) for one in traffic(300, by_score, seed=2)]
    told = (json.loads(line(one)) | {"outcome": None} for one in newer)
    records.write_text("".join(json.dumps(one) + "\n" for one in told))
    ran = calibrate(records, "--target", "pro_share=0.25", "--out", str(out), "--keep", str(out))
    assert (ran.exit_code, "was not judged" in ran.stdout) == (0, True), ran.stderr
    after = json.loads(out.read_text())
    assert (after["layer"], after["proven"], after["edges"] > before["edges"]) == (before["layer"], False, True)
    was, most = out.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
    try:
        ran = calibrate(records, "--target", "pro_share=0.5", "--out", str(out), "--keep", str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert (ran.exit_code, out.read_text() == was, len([*tmp_path.iterdir()])) == (1, True, 2), "no room for it"
    out.write_text("{}")
    for place, why in ((out, "no calibration"), (tmp_path / "none.json", "No such file")):
        ran = calibrate(records, "--target", "pro_share=0.25", "--keep", str(place))
        assert (ran.exit_code, why in ran.stderr) == (1, True), ran.stderr


def test_a_calibration_tells_the_question_and_verdicts_on_several_are_refused(tmp_path: Path) -> None:
    records, out = tmp_path / "records.jsonl", tmp_path / "calibration.json"
    records.write_bytes(b"".join(verdict(line(one), "house.v1", one.score) for one in traffic(1000, by_score)))
    assert calibrate(records, "--target", "pro_share=0.25", "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text())["basis"]["question"] == "house.v1"
    with records.open("ab") as more:
        more.write(verdict(line(traffic(1, by_score)[0]), "house.v2", 0.5).replace(b'"id":"', b'"id":"x'))
    ran = calibrate(records, "--target", "pro_share=0.25")
    assert (ran.exit_code, "'house.v1' (1000), 'house.v2' (1)" in ran.stderr) == (1, True)


def test_records_may_come_through_a_pipe(tmp_path: Path) -> None:
    records, out = tmp_path / "records.pipe", tmp_path / "calibration.json"
    text = b"".join(map(line, traffic(600, by_score)))
    os.mkfifo(records)
    writing = threading.Thread(target=records.write_bytes, args=(text,), daemon=True)
    writing.start()
    assert calibrate(records, "--target", "pro_share=0.25", "--out", str(out)).exit_code == 0
    assert json.loads(out.read_text())["records"]["sha256"] == hashlib.sha256(text).hexdigest()


def test_records_and_targets_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text("{}\n")
    ran = calibrate(records, "--target", "pro_share=0.25")
    assert (ran.exit_code, "records.jsonl:1: " in ran.stderr) == (1, True)
    assert calibrate(records, "--target", "nothing=1").exit_code == 2
