"""The fault figures in a short form; `make faults` takes them in full."""

import asyncio

from loadtest.faults import freeze, isolation, limits, money
from loadtest.faults.leavers import PHASES, cancellations, servers


def test_a_caller_who_leaves_stops_the_model_server_within_half_a_second_in_every_phase() -> None:
    with servers() as (flash, url):
        found = asyncio.run(cancellations(flash, url, rounds=4))
    assert found.keys() == PHASES.keys()
    for phase, times in found.items():
        assert len(times) == 4
        assert max(times) <= 0.5, phase


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
    assert found.peak <= found.budget
    assert found.ends["refused"] == 60 - 36
    assert found.ends.keys() == {"whole", "left", "killed", "refused"}
    assert found.true <= found.spent <= found.true + found.estimated
    assert found.spent <= found.budget
    assert found.held == 0


def test_no_answer_reaches_another_caller_or_another_prompt_while_half_of_all_callers_leave() -> None:
    found = isolation.measure(callers=10, prompts=5, operations=1500)
    assert found.shared == 0
    assert found.answers >= 50
    assert min(found.ends[end] for end in ("hit", "miss", "given up")) > 0
    assert not [end for end in found.ends if end.startswith("status")]
