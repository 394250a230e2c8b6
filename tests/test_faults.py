"""The fault figures in a short form; `make faults` takes them in full."""

import asyncio
import shutil
import statistics

import pytest

from loadtest.faults import (
    arithmetic,
    deadlines,
    drain,
    fidelity,
    freeze,
    isolation,
    limits,
    money,
    overload,
    reload,
    revocation,
    slow,
    truth,
)
from loadtest.faults.leavers import PHASES, QUEUE, cancellations, servers


def test_a_caller_who_leaves_stops_the_model_server_within_half_a_second_in_every_phase() -> None:
    with servers() as (flash, url):
        found = asyncio.run(cancellations(flash, url, rounds=4))
    assert found.keys() == {*PHASES, QUEUE}
    for phase, times in found.items():
        assert len(times) == 4
        assert max(times) <= 0.5, phase


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler (apt-get install gcc): no process gets a wrong clock")
def test_processes_on_one_store_admit_what_the_limit_says_whatever_their_clocks_say() -> None:
    admitted, refused, failed, allowed = limits.measure(requests=200, limit=30)
    assert failed == 0
    assert 30 <= admitted <= allowed
    assert admitted + refused == 200


def test_a_store_that_stands_still_fails_no_request_and_slows_the_first_ones_only() -> None:
    found = freeze.measure(seconds=1.5, rate=40)
    assert [one.status for outcomes in found for one in outcomes if one.status != 200] == []
    assert max(one.seconds for one in found.frozen[:20]) < 0.5
    assert max(one.seconds for one in found.frozen[20:]) < 0.25


def test_a_budget_holds_through_leavers_and_a_kill_and_the_ledger_is_true_afterwards() -> None:
    found = money.measure(streams=60, covered=36, tokens=24)
    assert 0 < found.peak <= found.budget
    assert found.ends["refused"] > 0
    assert found.ends.keys() == {"whole", "left", "killed", "refused"}
    assert found.true <= found.spent <= found.true + found.estimated
    assert found.spent <= found.budget
    assert found.held == 0


LOADS = [overload.Load(3, 10), overload.Load(10, 20), overload.Load(10, 20, spread=0)]


@pytest.mark.parametrize("load", LOADS)
def test_a_line_that_knows_its_places_keeps_its_promises_at_ten_times_the_load(load: overload.Load) -> None:
    found = arithmetic.measure(load, seconds=12)
    assert found.goodput >= 0.9 * found.peak
    assert {one.status for one in found.gold} == {200}
    assert overload.late(found.gold) <= 2 * overload.late(found.calm)
    assert statistics.quantiles(found.refusals, n=100)[-1] <= 0.1


@pytest.mark.parametrize("way", ["by the queue", "by first bytes"])
@pytest.mark.parametrize("times", [3, 10])
def test_a_line_that_must_learn_its_places_keeps_them_once_it_has(times: float, way: str) -> None:
    found = arithmetic.measure(overload.Load(times, 20, way), seconds=20)
    begun = min(one.started for one in found.gold)
    later = [one for one in found.gold if one.started > begun + overload.LEARNED]
    assert found.goodput >= 0.9 * found.peak
    assert {one.status for one in later} == {200}
    assert overload.late(later) <= 2 * overload.late(found.calm)


def test_no_answer_reaches_another_caller_or_another_prompt_while_half_of_all_callers_leave() -> None:
    found = isolation.measure(callers=10, prompts=5, operations=1500)
    assert found.shared == 0
    assert found.answers >= 50
    assert min(found.ends[end] for end in ("hit", "miss", "given up")) > 0
    assert not [end for end in found.ends if end.startswith("status")]


def test_a_revoked_key_is_refused_everywhere_within_a_second() -> None:
    for name, times in revocation.measure(rounds=1).items():
        assert len(times) == 2
        assert max(times) < 1.5, name  # half a second for a busy machine


def test_under_ten_times_its_load_a_tier_answers_on_and_gold_goes_first() -> None:
    found = overload.measure(overload.Load(times=10, gold=20), seconds=2.5)
    assert {one.status for one in found.gold + found.bulk} == {200, 503}
    assert found.goodput >= 0.6 * found.peak
    gold, bulk = (sum(one.status == 200 for one in part) / len(part) for part in (found.gold, found.bulk))
    assert gold > 0.9
    assert bulk < 0.3
    assert statistics.median(found.refusals) < 0.1


def test_a_deadline_ends_every_wait_in_time() -> None:
    for name, (outcomes, running) in deadlines.measure(10, deadline=0.2).items():
        assert {one.status for one in outcomes} <= {200, 504}, name
        assert max(one.seconds for one in outcomes) < 0.2 + 0.25, name
        assert running == 0, name


def test_bodies_and_streams_go_through_byte_for_byte() -> None:
    found = fidelity.measure(bodies=200, streams=20)
    assert (found.bodies_changed, found.streams_changed) == (0, 0)


def test_an_answer_that_breaks_off_anywhere_is_never_said_to_be_finished() -> None:
    assert not any(truth.measure(count=12).values())


def test_slow_callers_are_closed_and_the_others_are_served() -> None:
    found = slow.measure(slow.Many(20, spread=0.1), asked=20, REQUEST_TIMEOUT="0.5")
    assert max(seconds for times in found.closed.values() for seconds in times) < 5
    assert len(found.meanwhile) == 20


def test_a_policy_that_is_written_again_and_again_often_wrongly_fails_no_request() -> None:
    found = reload.measure(writes=40, seconds=2.5)
    assert [one.status for one in found.answers if one.status != 200] == []
    assert len(found.answers) > 50
    assert {one.revision for one in found.answers} <= found.written.keys(), "no wrong one decided"
    assert len({one.revision for one in found.answers}) > 3
    assert (found.ready["revision"], found.ready["problems"]) == ("r40", [])


def test_every_stream_that_is_under_way_at_sigterm_ends_well() -> None:
    found = drain.measure(count=20)
    assert (found.whole, found.told, found.cut) == (20, 0, 0)
