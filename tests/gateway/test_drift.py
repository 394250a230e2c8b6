"""What drift is seen, how often it is seen where there is none, and that it only tells."""

import json
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gateway.calibrate import calibrate, dump, parse
from gateway.calibration import Layer
from gateway.drift import CHI, JUDGED, MOST, WINDOW, Drift, Z, miscalibrated, psi, spread
from gateway.kept import to_keep
from gateway.policy import Candidate, Policy, load_policy
from gateway.recorded import RETRY, SHADOW, Outcome, Recorded
from gateway.records import Records
from gateway.store import MemoryStore
from gateway.telemetry import Telemetry
from gateway.types import Caller, Decision, Facts, Route, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import gateway
from tests.gateway.test_calibrate import by_score, traffic
from tests.gateway.test_records import ended
from tests.tiers import policy_for

LOOKS = 3000
FALSE_ALARMS = 0.001  # the probability that CHI and Z are exceeded with on unchanged traffic
LAST_DIGIT = bytes(at % 10 for at in range(256))
ANN = Caller("k1", "ann", "default", "")


@cache
def calibration(target: str, agree: float | None) -> str:
    records = [replace(one, measures={}, pro_ok=None, agree=agree) for one in traffic(2000, by_score)]
    return dump(calibrate(records, parse(target)), "", 2000, 0.0)


def calibrated(folder: Path, text: str, target: str = "pro_share=0.25", agree: float | None = None) -> Policy:
    """A policy with a calibration on traffic whose score is even from 0 to 1."""
    (folder / "calibration.json").write_text(calibration(target, agree))
    (folder / "policy.json").write_text(text)
    return load_policy(folder / "policy.json", {})


POLICY = json.dumps(
    {
        "schema": 1,
        "tiers": {"flash": {"model": "m", "replicas": ["http://h"]}, "pro": {"model": "p", "replicas": ["http://h"]}},
        "triage": {"calibration": "calibration.json"},
        "rules": [{"id": "triaged", "route": {"simple": "flash", "complex": "pro"}}],
    }
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return calibrated(tmp_path_factory.mktemp("drift"), POLICY)


def other(policy: Policy, **basis: Any) -> Policy:
    """A policy whose calibration says that it was fitted on something else."""
    assert policy.basis
    return replace(policy, basis=replace(policy.basis, **basis))


def decision(score: float | None) -> Decision:
    return Decision(Facts("auto", "ann", "default", score=score), None, Route(("flash",), "triaged", "simple"))


def told(drift: Drift, policy: Policy, what: str) -> tuple[int, bool]:
    found = drift.told(policy)
    assert found
    return found[what]["looks"], found[what]["alarm"]


def evenly(chance: random.Random, size: int) -> list[int]:
    """How many of so many fall into each of ten parts, by chance."""
    drawn = chance.randbytes(2 * size).translate(None, bytes(range(250, 256)))[:size].translate(LAST_DIGIT)
    return [drawn.count(part) for part in range(10)]


def test_traffic_that_stays_the_same_alarms_once_in_a_thousand_looks() -> None:
    chance = random.Random(1)
    alarms = 0
    for _ in range(LOOKS):
        before, now = (evenly(chance, size) for size in (1000, WINDOW))
        alarms += spread(before, now) > CHI[8]
    assert alarms <= 3 * LOOKS * FALSE_ALARMS


def test_outcomes_that_are_as_stated_alarm_about_as_seldom() -> None:
    chance = random.Random(2)
    alarms = 0
    for _ in range(LOOKS):
        fitted = sum(chance.random() < 0.3 for _ in range(150)) / 150
        judged = [(fitted, chance.random() < 0.3) for _ in range(JUDGED)]
        alarms += abs(miscalibrated(judged, 150)[1]) > Z
    assert alarms <= 4 * LOOKS * FALSE_ALARMS


def test_how_far_outcomes_are_off_is_told_in_deviations_of_what_came_and_of_what_was_fitted_on() -> None:
    judged = [(0.5, at < 60) for at in range(100)]
    assert miscalibrated(judged, 10**9) == pytest.approx((0.1, 2.0))
    assert miscalibrated(judged, 100) == pytest.approx((0.1, 2.0 / 2**0.5))


def test_bands_are_compared_with_as_many_degrees_of_freedom_as_there_are_less_one(policy: Policy) -> None:
    assert policy.basis
    halves = other(policy, edges=policy.basis.edges[4:5], counts=(500, 500))
    for low, alarm in ((210, False), (200, True)):  # 8.6 and 13.4; above 10.8 is one in a thousand
        drift = Drift(Telemetry(log=False))
        for at in range(WINDOW):
            drift.decided(decision(0.0 if at < low else 1.0), halves)
        assert told(drift, halves, "scores") == (1, alarm)


def test_the_stability_index_of_shares_that_moved_is_the_one_of_the_books() -> None:
    assert psi([8000, 2000], [5000, 5000]) == pytest.approx(0.3 * math.log(8 / 5) + 0.3 * math.log(5 / 2), abs=0.001)
    assert psi([8000, 2000], [800, 200]) == pytest.approx(0.0, abs=0.001)


def test_scores_that_moved_are_told_and_so_is_their_return(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    drift, chance = Drift(Telemetry(log=False)), random.Random(3)
    for turn, shift in enumerate((0.0, 0.3, 0.3, 0.0)):
        for _ in range(WINDOW):
            drift.decided(decision(min(1.0, chance.random() + shift)), policy)
        assert told(drift, policy, "scores") == (turn + 1, shift > 0)
    assert [line.split(" ")[1] for line in caplog.messages] == ["p", "scores"], "one line each, not one a look"


def test_a_candidate_on_trial_does_not_disturb_what_is_watched(policy: Policy) -> None:
    drift, candidate = Drift(Telemetry(log=False)), other(policy, agree=0.5)
    for at in range(WINDOW):
        for made in (policy, candidate, replace(policy, basis=None)):
            drift.decided(decision(at / WINDOW), made)
    assert (told(drift, policy, "scores"), told(drift, candidate, "scores")) == ((1, False), (1, False))
    for outcomes in range(MOST):
        drift.told(other(policy, outcomes=outcomes))
    assert told(drift, policy, "scores") == (0, False), "the newest ones alone are kept"


def test_an_alarm_is_shown_for_the_policy_that_it_is_about_while_that_is_in_use(policy: Policy) -> None:
    telemetry = Telemetry(log=False)
    drift, candidate = Drift(telemetry), other(policy, agree=0.5)
    for _ in range(WINDOW):
        drift.decided(decision(0.99), candidate)

    def shown(used: Policy) -> list[str]:
        drift.use(used)
        lines = [line.split(" ") for line in telemetry.render().decode().splitlines() if 'what="scores"' in line]
        return [labels.split('"')[1] for labels, value in lines if float(value)]

    assert shown(replace(policy, candidate=Candidate(candidate, 0.1, 0.0))) == ["candidate"]
    assert shown(candidate) == ["in_force"]
    assert shown(policy) == []


async def test_outcomes_that_are_worse_than_stated_are_told(policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    drift = Drift(Telemetry(log=False))
    kept = Records(MemoryStore(), watch=drift)
    chance = random.Random(4)
    for turn, worse in enumerate((0.0, 0.4)):
        for at in range(JUDGED):
            score, name = chance.random(), f"{turn}-{at}"
            kept.keep(ended(name, score=score), policy)
            bad = chance.random() < by_score(score, 0) + worse
            await kept.judge(ANN, name, Outcome(0.0, RETRY), policy)
            for _ in range(2):
                await kept.judge(ANN, name, Outcome(float(not bad)), policy)
            kept.keep(ended("other", score=score), policy)
            await kept.judge(ANN, "other", Outcome(0.0, SHADOW), policy)
        assert told(drift, policy, "outcomes") == (turn + 1, worse > 0), "each request counts once"
    assert len(caplog.messages) == 1


def test_where_verdicts_decide_p_is_by_them_and_what_has_none_is_not_looked_at(policy: Policy) -> None:
    drift, said = Drift(Telemetry(log=False)), {"p_complex": 0.0}
    layer = Layer(0.0, {"p_complex": 1.0}, said, {"p_complex": 1.0})
    asked = replace(other(policy, asked=True, edges=(0.5,), counts=(500, 500)), calibration=layer)
    for at in range(WINDOW):
        drift.decided(decision(0.01), asked)
        drift.judged(outcome_of(f"{at}", policy), asked)
        verdict, route = Verdict("simple", (at + 0.5) / WINDOW), decision(0.5).route
        drift.decided(Decision(decision(0.5).facts, verdict, route), asked)
        drift.decided(Decision(decision(None).facts, verdict, route), asked)
    assert (told(drift, asked, "scores"), told(drift, asked, "outcomes")) == ((1, False), (0, False))


def outcome_of(name: str, policy: Policy, quality: float = 0.0, source: str = "caller", **tiers: float) -> Recorded:
    """A decision with its outcome."""
    whole = ended(name, score=0.5)
    assert whole.decision
    one = to_keep(whole, ANN, whole.decision, policy).recorded()
    one.outcome = Outcome(quality, source, tiers)
    return one


def test_a_calibration_on_agreements_is_held_against_agreements(policy: Policy) -> None:
    drift, agreeing = Drift(Telemetry(log=False)), other(policy, judged=False, agree=0.9)
    for at in range(JUDGED):
        for source in (SHADOW, "caller"):
            drift.judged(outcome_of(f"{at}", policy, 0.8, source), agreeing)
    found = drift.told(agreeing)
    assert found
    assert found["outcomes"]["looks"] == 1
    assert found["outcomes"]["last"] > 0, "0.8 is not good enough"


@pytest.mark.parametrize(("label", "share"), [("needed", 0.0), ("failed", 1.0)])
def test_outcomes_count_for_what_the_calibration_counts(policy: Policy, label: str, share: float) -> None:
    drift, made = Drift(Telemetry(log=False)), other(policy, label=label)
    made = replace(made, calibration=Layer(0.0, {}, {}, {}))
    for at in range(JUDGED):
        drift.judged(outcome_of(f"{at}", policy, pro=0.0), made)
    found = drift.told(made)
    assert found
    assert found["outcomes"]["last"] == share - 0.5


@pytest.mark.parametrize("asked", ["never", "where Flash failed", "always"])
def test_outcomes_are_as_stated_whether_they_tell_of_pro_or_not(policy: Policy, asked: str) -> None:
    drift, even = Drift(Telemetry(log=False)), Layer(0.0, {}, {}, {})
    made = replace(policy, calibration=replace(even, saved=even))
    for at in range(JUDGED):
        good, saved = at % 2, {"pro": at // 2 % 2}
        told_of = asked == "always" or (asked == "where Flash failed" and not good)
        drift.judged(outcome_of(f"{at}", policy, good, "caller", **(saved if told_of else {})), made)
    found = drift.told(made)
    assert found
    assert found["outcomes"] == {"looks": 1, "last": 0.0, "alarm": False}


def test_a_policy_whose_calibration_does_not_say_is_not_watched(policy: Policy) -> None:
    drift = Drift(Telemetry(log=False))
    without = replace(policy, basis=None)
    for _ in range(WINDOW):
        drift.decided(decision(0.9), without)
    assert drift.told(without) is None
    assert told(drift, policy, "scores") == (0, False)


def test_the_distance_is_none_for_the_same_and_grows() -> None:
    same, other, far = psi([50] * 10, [50] * 10), psi([50] * 10, [60, 40] * 5), psi([50] * 10, [100, 0] * 5)
    assert same == pytest.approx(0.0)
    assert same < other < far


async def test_a_gateway_tells_it_of_the_policy_in_force_and_changes_nothing(
    flash: Sim, pro: Sim, tmp_path: Path
) -> None:
    rules = json.loads(POLICY)
    rules["tiers"]["flash"]["replicas"], rules["tiers"]["pro"]["replicas"] = [flash.url], [pro.url]
    policy = calibrated(tmp_path, json.dumps(rules))
    candidate = other(policy, agree=0.5)
    async with gateway(policy) as gate:
        for at in range(WINDOW):
            gate.front.doors.records.keep(ended(f"{at}", score=0.99), policy)
        gate.front.doors.records.keep(ended("on trial", score=0.5), candidate)
        ready = (await gate.get("/ready")).json()
        assert ready["drift"]["scores"]["alarm"] is True
        assert ready["drift"]["scores"]["last"] > 1
        assert ready["drift"]["outcomes"] == {"looks": 0, "last": None, "alarm": False}
        metrics = (await gate.get("/metrics")).data.decode()
        for labels, shown in (('policy="in_force"', 1), ('policy="candidate"', 0)):
            assert f'gateway_drift{{{labels},what="scores"}} {shown}.0' in metrics
            assert f'gateway_drift{{{labels},what="outcomes"}} 0.0' in metrics
        assert "gateway_drift_psi_count 1.0" in metrics
        assert ready["policy"]["digest"] == policy.digest
    async with gateway(policy_for(flash, pro)) as gate:
        assert (await gate.get("/ready")).json()["drift"] is None
        assert b'gateway_drift{policy="in_force",what="scores"} 0.0' in (await gate.get("/metrics")).data
