"""The fault figures in a short form; `make faults` takes them in full."""

import asyncio

from loadtest.faults import PHASES, cancellations, servers


def test_a_caller_who_leaves_stops_the_model_server_within_half_a_second_in_every_phase() -> None:
    with servers() as (flash, url):
        found = asyncio.run(cancellations(flash, url, rounds=4))
    assert found.keys() == PHASES.keys()
    for phase, times in found.items():
        assert len(times) == 4
        assert max(times) <= 0.5, phase
