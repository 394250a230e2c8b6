"""Who gets a tier's next place, who is sent away at once, and what those leave behind who go."""

import asyncio

import pytest

from gateway.errors import Overloaded
from gateway.policy import TierLimits
from gateway.upstream.places import Places


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def queueing(
    places: Places, limits: TierLimits, *priorities: int, patience: float = 9.0
) -> list["asyncio.Task[None]"]:
    """Tasks that wait, in the order given."""
    tasks = []
    for priority in priorities:
        tasks.append(asyncio.create_task(places.take(limits, priority, patience)))
        await settle()
    return tasks


ONE = TierLimits(max_inflight=1, queue=3, queue_timeout=9.0)


async def test_the_highest_priority_goes_first_and_within_it_who_came_first() -> None:
    places, order = Places("pro"), list[str]()
    assert places.free(ONE)
    tasks = await queueing(places, ONE, 0, 5, 5)
    for name, task in zip(("low", "high 1", "high 2"), tasks, strict=True):
        task.set_name(name)
        task.add_done_callback(lambda task: order.append(task.get_name()))
    for _ in tasks:
        assert (places.taken, places.free(ONE)) == (1, False)
        places.give_back()
        await settle()
    assert order == ["high 1", "high 2", "low"]
    places.give_back()
    assert (places.taken, places.queued) == (0, 0)


async def test_a_full_queue_refuses_at_once_but_makes_room_for_a_higher_priority() -> None:
    places = Places("pro")
    places.free(ONE)
    tasks = await queueing(places, ONE, 0, 0, 0)
    (refused,) = await queueing(places, ONE, 0)
    with pytest.raises(Overloaded) as refusal:
        refused.result()
    assert refusal.value.retry_after == 1.0
    await queueing(places, ONE, 1)
    assert isinstance(tasks[2].exception(), Overloaded), "the last comer of the lowest"
    assert (tasks[0].done(), tasks[1].done(), places.queued) == (False, False, 3)
    (refused,) = await queueing(places, ONE, 0)
    assert isinstance(refused.exception(), Overloaded), "nobody makes room for an equal"
    for _ in range(4):
        places.give_back()
        await settle()
    assert (places.taken, places.queued) == (0, 0)


async def test_who_waits_too_long_is_refused_and_who_comes_then_need_not_wait_to_hear_it() -> None:
    limits = TierLimits(max_inflight=1, queue=100, queue_timeout=0.05)
    places = Places("pro")
    places.free(limits)
    waiting = await queueing(places, limits, *[0] * 10)
    await asyncio.wait(waiting)
    assert all(isinstance(task.exception(), Overloaded) for task in waiting)
    await queueing(places, limits, 0)
    for task in await queueing(places, limits, 0, 0):
        assert isinstance(task.exception(), Overloaded), "the line does not move"
    assert places.queued == 1
    places.give_back()
    await settle()
    assert (places.taken, places.queued) == (1, 0)


async def test_a_waiter_who_leaves_frees_its_place_in_the_queue_and_in_the_tier() -> None:
    for granted_first in (False, True):
        places = Places("pro")
        places.free(ONE)
        left, stays = await queueing(places, ONE, 0, 0)
        if granted_first:
            places.give_back()
        left.cancel()
        if not granted_first:
            places.give_back()
        await settle()
        assert left.cancelled()
        assert stays.done()
        assert (places.taken, places.queued) == (1, 0)


async def test_places_that_a_new_policy_adds_go_to_those_who_wait() -> None:
    places = Places("pro")
    places.free(ONE)
    tasks = await queueing(places, ONE, 0, 0)
    more = TierLimits(max_inflight=9, queue=3, queue_timeout=9.0)
    tasks += await queueing(places, more, 0)
    assert all(task.done() for task in tasks)
    for _ in range(4):
        places.give_back()
    assert (places.taken, places.queued) == (0, 0)
