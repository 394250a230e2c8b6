"""Who asks the same again soon after an answer: over sockets, with simulated tiers."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from gateway.keys import identify
from gateway.policy import Policy, PolicyError
from gateway.recorded import Outcome
from gateway.retries import SOON, Answered, name_of
from gateway.store import MemoryStore, open_store
from gateway.types import Caller
from loadtest.servers import Sim
from tests.gateway.serving import SIMPLE, Gateway, asked, body, callers, eventually, gateway
from tests.tiers import JSON, policy_for

EVERYONE = Caller("anonymous", "anonymous", "usual", "")
RETRIED = {"quality": 0.0, "source": "retry"}
READING = SOON * 1.5  # seconds that a person takes; an answer is told to have ended a little after its caller has it


def looking(flash: Sim, pro: Sim, within: str = "60s", **changes: Any) -> Policy:
    return policy_for(flash, pro, record={"retry_within": within, **changes.pop("record", {})}, **changes)


def outcomes(gate: Gateway) -> dict[str, JSON | None]:
    """By request id."""
    lines = [json.loads(line) for line in gate.front.doors.records.recent(1000)]
    return {line["id"]: line["outcome"] for line in lines}


async def retried(gate: Gateway, *names: str) -> None:
    """Waits until so many answers were asked for again; they must be those."""
    await eventually(lambda: len([one for one in outcomes(gate).values() if one]) >= len(names))
    assert {name: told for name, told in outcomes(gate).items() if told} == dict.fromkeys(names, RETRIED)


async def twice(
    gate: Gateway, name: str, first: JSON | None = None, second: JSON | None = None, **headers: str
) -> None:
    """Asks, reads, and asks again; `headers` come with the second request."""
    what = body(f"{SIMPLE} {name}")
    await gate.ask(what | (first or {}), x_request_id=name)
    await asyncio.sleep(READING)
    await gate.ask(what | (second or {}), x_request_id=f"{name}-again", **headers)


@asynccontextmanager
async def nothing_else(gate: Gateway) -> AsyncIterator[None]:
    """Around what takes as long as reading an answer: of all that is asked, one that is asked before and after counts
    as a retry, and by then all the rest was looked at."""
    await gate.ask(body("Both."), x_request_id="before")
    yield
    await gate.ask(body("Both."), x_request_id="after")
    await retried(gate, "before")


async def test_an_answer_has_an_outcome_once_the_same_is_asked_again(flash: Sim, pro: Sim) -> None:
    async with gateway(looking(flash, pro)) as gate:
        asked: dict[str, JSON] = {
            "plain": {},
            "stream": {"stream": True},
            "dearer": {"model": "pro"},
            "other-draw": {"temperature": 0.9, "seed": 7},
            "other-name": {"metadata": {"trace": "2"}},
        }
        await asyncio.gather(*(twice(gate, name, {"stream": True}, second) for name, second in asked.items()))
        await retried(gate, *asked)


OTHERS: dict[str, JSON] = {
    "text": body("Something else."),
    "form": {"response_format": {"type": "json_object"}},
    "length": {"max_tokens": 5},
    "person": {"user": "bob"},
    "account": {"metadata": {"user_id": "bob"}},
}


async def test_something_else_another_conversation_a_library_and_a_loop_are_no_retries(flash: Sim, pro: Sim) -> None:
    async with gateway(looking(flash, pro, sessions={"ttl": "1m"})) as gate, nothing_else(gate):
        for at in range(3):
            await gate.ask(body("A loop."), x_request_id=f"loop-{at}")
        pro.config(only="answer", stall_first=READING)
        await asyncio.gather(
            *(twice(gate, name, None, second) for name, second in OTHERS.items()),
            *(gate.ask(body("At once.", model=tier), x_request_id=f"at-once-{tier}") for tier in ("flash", "pro")),
            twice(gate, "session", x_session_id="s"),
            twice(gate, "library", x_stainless_retry_count="1"),
        )


async def test_who_asks_a_third_time_has_said_it_all(flash: Sim, pro: Sim) -> None:
    async with gateway(looking(flash, pro)) as gate:
        await twice(gate, "watched")
        await asyncio.sleep(READING)
        await gate.ask(body(f"{SIMPLE} watched"), x_request_id="third")
        await eventually(lambda: "third" in outcomes(gate))
        await retried(gate, "watched")


async def test_what_failed_or_was_left_had_no_answer_to_retry(flash: Sim, pro: Sim) -> None:
    async with gateway(looking(flash, pro)) as gate, nothing_else(gate):
        faults: list[JSON] = [{"cut_after": 2}, {"status": 500}, {"status": 429}]
        for at, fault in enumerate(faults):
            flash.config(only="answer", **fault)
            pro.config(only="answer", **fault)
            await gate.ask(body(f"{SIMPLE} {at}", stream=True), x_request_id=f"failed-{at}")
        flash.config(only="answer", stall_after=2)
        line = await gate.open(body(f"{SIMPLE} 3", stream=True), x_request_id="left")
        await line.some()
        await line.leave()
        await eventually(lambda: "left" in outcomes(gate))
        flash.reset()
        pro.reset()
        await asyncio.sleep(READING)
        await asyncio.gather(*(gate.ask(body(f"{SIMPLE} {at}", stream=True)) for at in range(4)))


async def test_the_cache_is_asked_again_as_a_matter_of_course_but_not_by_who_wants_another_answer(
    flash: Sim, pro: Sim
) -> None:
    async with gateway(looking(flash, pro, caching={"ttl": "1m"})) as gate:
        zero: JSON = {"temperature": 0}
        await twice(gate, "cached", zero, zero)
        both = [gate.ask(body(f"{SIMPLE} shared", **zero), x_request_id="shared") for _ in range(2)]
        await asyncio.gather(*both, twice(gate, "afresh", zero, zero, cache_control="no-cache"))
        await gate.ask(body(f"{SIMPLE} shared", **zero), x_request_id="again", cache_control="no-cache")
        await retried(gate, "afresh", "shared")


async def test_an_answer_long_ago_is_not_retried_but_the_next_one_is(flash: Sim, pro: Sim) -> None:
    policy, store = looking(flash, pro, within="60s"), MemoryStore()
    async with gateway(policy, store) as gate:
        caller = await identify(None, gate.front.doors.keys, policy.callers)
        long_ago = msgspec.msgpack.encode(Answered("long-ago", time.time() - 61))
        name = name_of(asked(body(f"{SIMPLE} later"), caller=caller), policy)
        await store.remember(caller.id, name, long_ago, 600.0)
        await twice(gate, "later")
        await retried(gate, "later")


async def test_where_the_policy_does_not_look_nobody_does(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        await gate.ask(body())
        await gate.ask(body())


async def test_no_caller_retries_anothers_answer(flash: Sim, pro: Sim) -> None:
    store = MemoryStore()
    ann, bob = await callers(store, "ann", "bob")
    async with gateway(looking(flash, pro), store, everyone=False) as gate:

        async def ask(name: str, who: Mapping[str, str]) -> None:
            await gate.ask(body(), x_request_id=name, **who)

        await ask("of-ann", ann)
        await asyncio.sleep(READING)
        await ask("of-bob", bob)
        await asyncio.sleep(READING)
        await ask("again", bob)
        await retried(gate, "of-bob")


async def test_a_kept_answer_that_cannot_be_read_troubles_nobody(flash: Sim, pro: Sim) -> None:
    policy, store = looking(flash, pro), MemoryStore()
    async with gateway(policy, store) as gate:
        caller = await identify(None, gate.front.doors.keys, policy.callers)
        name = name_of(asked(body(), caller=caller), policy)
        await store.remember(caller.id, name, b"\x92\xa1\xff\x01", 60.0)
        await gate.ask(body())


async def test_a_judgement_stands_whether_it_comes_before_or_after(flash: Sim, pro: Sim) -> None:
    policy = looking(flash, pro)
    async with gateway(policy) as gate:
        good, judge = Outcome(1.0, "tests"), gate.front.doors.records.judge
        await gate.ask(body(), x_request_id="judged")
        await judge(EVERYONE, "judged", good, policy)
        await asyncio.gather(asyncio.sleep(SOON), twice(gate, "later"))
        await gate.ask(body())
        await eventually(lambda: outcomes(gate)["later"] == RETRIED)
        await judge(EVERYONE, "later", good, policy)
        assert [outcomes(gate)[name] for name in ("judged", "later")] == [{"quality": 1.0, "source": "tests"}] * 2


async def test_a_retry_is_seen_in_another_process_that_shares_store_and_records(
    flash: Sim, pro: Sim, valkey: str
) -> None:
    policy = looking(flash, pro, record={"stream": 100})
    for name in ("r", "again"):
        async with gateway(policy, open_store(valkey)) as gate:
            await gate.ask(body(), x_request_id=name)
            await asyncio.sleep(READING)
    async with gateway(policy, store := open_store(valkey)):
        lines = [json.loads(line) async for step in store.noted() for line in step]
    assert [(line["id"], line.get("outcome")) for line in lines] == [("r", None), ("again", None), ("r", RETRIED)]


def test_nobody_can_ask_to_look_longer_than_outcomes_are_taken(flash: Sim, pro: Sim) -> None:
    with pytest.raises(PolicyError, match="retry_within is longer than feedback"):
        looking(flash, pro, within="2d")
