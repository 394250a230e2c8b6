"""A question that was answered is not asked again, and one that is being asked is asked once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from msgspec import structs

from gateway.cache import Verdicts, verdict_key
from gateway.store import MemoryStore
from gateway.triage import question
from gateway.types import Caller, Verdict
from loadtest.servers import Sim
from tests.gateway.serving import ANN, COMPLEX, SIMPLE, asked, body, eventually, gateway
from tests.tiers import JSON, policy_for

FLASH, PRO = Sim("http://127.0.0.1:1", "flash-model"), Sim("http://127.0.0.1:2", "pro-model")
SURE = Verdict("complex", 0.75, "ok", "triage", 0.2, True, "choice", "p_solve.v1")
BOB = Caller("bob", "bob", "usual", "salt-of-bob")


async def test_a_second_request_is_routed_at_once_without_question_or_draft(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        first, again = [await gate.ask(body(COMPLEX), x_route_explain="1") for _ in range(2)]
        assert len(flash.seen("triage")) == 1
        assert len(flash.seen()) <= 1, "the draft beside the first question, unless the verdict was quicker"
        assert again.headers["x-route-tier"] == "pro"
        told, said = first.json()["route"]["verdict"], again.json()["route"]["verdict"]
        assert (said["source"], said["seconds"]) == ("cache", 0.0)
        assert (said["label"], said["p_complex"]) == (told["label"], told["p_complex"])
        metrics = (await gate.get("/metrics")).data
        for source in (b"triage", b"cache"):
            assert b'gateway_verdicts_total{outcome="complex",source="%s"} 1.0' % source in metrics
        await gate.ask(body(SIMPLE))
        assert len(flash.seen("triage")) == 2


@pytest.mark.parametrize("fault", [{"verdict": "garbage"}, {"status": 503}, {"verdict": "null"}])
async def test_a_failure_is_never_remembered(flash: Sim, pro: Sim, fault: JSON) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        flash.config(only="triage", **fault)
        assert (await gate.ask(body(COMPLEX))).headers["x-route-tier"] == "flash"
        flash.reset()
        assert (await gate.ask(body(COMPLEX))).headers["x-route-tier"] == "pro"


async def test_twenty_same_questions_at_once_are_one_call(flash: Sim, pro: Sim) -> None:
    flash.config(only="triage", stall_first=0.2)
    async with gateway(policy_for(flash, pro)) as gate:
        answers = await asyncio.gather(*(gate.ask(body(COMPLEX), x_route_explain="1") for _ in range(20)))
        assert {answer.headers["x-route-tier"] for answer in answers} == {"pro"}
        sources = [answer.json()["route"]["verdict"]["source"] for answer in answers]
        assert (sources.count("triage"), sources.count("shared")) == (1, 19)
        assert len(flash.seen("triage")) == 1


def test_the_question_is_the_key() -> None:
    policy = policy_for(FLASH, PRO)
    others = [
        policy_for(Sim(FLASH.url, "other"), PRO),
        policy_for(FLASH, PRO, triage={"strategy": "choice"}),
        policy_for(FLASH, PRO, triage={"layout": "system"}),
        policy_for(FLASH, PRO, tiers={"flash": {"can": {"json_schema": False}}}),
    ]
    request = asked(body())
    found = [question(request, one).key for one in (policy, *others)]
    found += [question(asked(body(more)), policy).key for more in ("x", "y")]
    found.append(question(asked(body(tools=[{"type": "function"}])), policy).key)
    assert len(set(found)) == len(found)
    lax = policy_for(FLASH, PRO, triage={"threshold": 0.9}, caching={"ttl": "1m"})
    assert question(request, lax).key == question(request, policy).key, (
        "what is decided with a verdict does not change it"
    )


def judging(scenario: Callable[[Verdicts, MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = MemoryStore()
        verdicts = Verdicts(store)
        await scenario(verdicts, store)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()} and not verdicts._calls)

    asyncio.run(main())


async def sure() -> Verdict:
    return SURE


def test_a_verdict_is_given_again_to_its_caller_only_and_only_whole() -> None:
    async def scenario(verdicts: Verdicts, store: MemoryStore) -> None:
        assert await verdicts.share(ANN, verdict_key(ANN, b"q"), 60.0, sure) == SURE
        await eventually(lambda: store._cache != {})
        assert await verdicts.recall(ANN, verdict_key(ANN, b"q")) == structs.replace(SURE, source="cache", seconds=0.0)
        assert await verdicts.recall(BOB, verdict_key(BOB, b"q")) is None
        assert await verdicts.recall(ANN, verdict_key(ANN, b"p")) is None
        ((name, (until, value)),) = store._cache.items()
        for bad in (value[:-1], value[:-1] + b"x", b""):
            store._cache[name] = (until, bad)
            assert await verdicts.recall(ANN, verdict_key(ANN, b"q")) is None

    judging(scenario)


async def test_switched_off_every_question_is_asked(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro)
    policy = replace(policy, triage=replace(policy.triage, cache=None))
    async with gateway(policy) as gate:
        answers = [await gate.ask(body(COMPLEX), x_route_explain="1") for _ in range(2)]
        assert [answer.json()["route"]["verdict"]["source"] for answer in answers] == ["triage", "triage"]
        assert len(flash.seen("triage")) == 2


def test_who_leaves_disturbs_nobody_and_the_last_one_stops_the_question() -> None:
    async def scenario(verdicts: Verdicts, store: MemoryStore) -> None:
        ended: list[str] = []
        go = asyncio.Event()

        async def slow() -> Verdict:
            try:
                await go.wait()
            except asyncio.CancelledError:
                ended.append("stopped")
                raise
            return SURE

        def ask(text: bytes) -> asyncio.Task[Verdict]:
            return asyncio.create_task(verdicts.share(ANN, verdict_key(ANN, text), 60.0, slow))

        first, second, alone = ask(b"q"), ask(b"q"), ask(b"other")
        await asyncio.sleep(0.01)
        first.cancel()
        alone.cancel()
        await asyncio.wait([first, alone])
        assert ended == ["stopped"]
        go.set()
        assert (await second).label == "complex"

    judging(scenario)


def test_a_bug_while_judging_is_told_to_all() -> None:
    async def scenario(verdicts: Verdicts, store: MemoryStore) -> None:
        async def broken() -> Verdict:
            await asyncio.sleep(0.01)
            raise ZeroDivisionError("a bug")

        both = await asyncio.gather(
            *(verdicts.share(ANN, verdict_key(ANN, b"q"), 60.0, broken) for _ in range(2)), return_exceptions=True
        )
        assert [type(one) for one in both] == [ZeroDivisionError] * 2

    judging(scenario)
