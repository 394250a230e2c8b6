"""What limits come to while the store does not answer: denied, shared out, or let go."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace
from valkey import Valkey

from gateway.embedded import embedded
from gateway.errors import Overloaded
from gateway.store import Admitted, Bound, Limits, Line, Money, Outage, Portion, open_store
from gateway.store.valkey import RedisStore
from loadtest.servers import Sim
from tests.gateway.serving import body, eventually, gateway
from tests.stores import at_once
from tests.tiers import policy_for

WIDE = Limits(1_000_000, 100_000, 60.0)
PAID = replace(WIDE, money=Money(1_000_000, 86400.0, degrade=True))
COSTLY = Bound("pro", "flash", prompt=10, completion=90, money=100_000, cheap=100)
SECONDS = "?socket_timeout=0.4"  # for the server to answer; a busy machine may take more than the usual 0.1
USED = [Line("pro", "answer", False, 8, 4, 20, 300)]


@asynccontextmanager
async def of_process() -> AsyncIterator[tuple[str, int]]:
    """A server, and the process that can be stopped."""
    async with embedded() as url:
        with Valkey.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        yield url, pid


def frozen(scenario: Callable[[RedisStore, RedisStore], Awaitable[None]]) -> None:
    """`scenario` on two stores that shared a server, which stands still now."""

    async def main() -> None:
        async with of_process() as (url, pid):
            one, two = RedisStore(url + SECONDS), RedisStore(url + SECONDS)
            for store in (one, two):
                await store.admit("bob", WIDE, None)
                await store.secret()
            assert two.processes == 2
            os.kill(pid, signal.SIGSTOP)
            try:
                await scenario(one, two)
            finally:
                os.kill(pid, signal.SIGCONT)
                await one.close()
                await two.close()

    asyncio.run(main())


async def burst(store: RedisStore, limits: Limits, caller: str = "ann") -> list[Admitted]:
    return list(await asyncio.gather(*(store.admit(caller, limits, None, COSTLY) for _ in range(40))))


async def refused(answer: Awaitable[Admitted]) -> None:
    with pytest.raises(Overloaded) as refusal:
        await answer
    assert (refusal.value.status, refusal.value.code) == (503, "store_unavailable")
    assert refusal.value.retry_after


def test_a_denied_budget_refuses_at_once_and_who_has_none_does_not_notice() -> None:
    async def main(store: RedisStore, _: RedisStore) -> None:
        def asked(limits: Limits) -> Awaitable[Admitted]:
            return store.admit("ann", limits, None, COSTLY)

        await refused(asked(PAID))
        for limits in [PAID] * 20:
            await refused(at_once(asked(limits)))
        for limits in (WIDE, replace(WIDE, outage=Outage(share="deny"))):
            assert (await at_once(asked(limits))).allowed
        await refused(at_once(asked(replace(WIDE, outage=Outage(requests="deny")))))
        await refused(at_once(asked(replace(WIDE, tokens_per_minute=5, outage=Outage(tokens="deny")))))

    frozen(main)


def test_of_two_processes_each_keeps_half_of_a_local_limit_and_tells_it() -> None:
    async def main(_: RedisStore, store: RedisStore) -> None:
        local = Outage(money="local")
        assert sum(answer.allowed for answer in await burst(store, replace(WIDE, concurrency=9))) == 5
        answers = await burst(store, replace(WIDE, requests_per_minute=25), "eve")  # who has asked for nothing yet
        assert sum(answer.allowed for answer in answers) == 13
        assert answers[0].limits.requests_per_minute == 13
        spent = await store.admit("carl", replace(PAID, outage=local), None, COSTLY)
        assert spent.limits.money == Money(500_000, 86400.0, degrade=True)
        tokens = [await store.admit("dora", replace(WIDE, tokens_per_minute=399), None, COSTLY) for _ in range(3)]
        assert [answer.allowed for answer in tokens] == [True, True, False]
        shared = await burst(store, replace(WIDE, share=Portion(0.25, 86400.0)), "fay")  # a part of what each is asked
        assert sum(not answer.capped for answer in shared) == 10

    frozen(main)


def test_a_limit_that_is_let_go_admits_and_a_denied_share_keeps_to_the_first_tier() -> None:
    async def main(store: RedisStore, _: RedisStore) -> None:
        free = Outage("allow", "allow", "allow", "allow", "deny")
        tight = Limits(1, 1, 60.0, 1, Money(1, 86400.0, degrade=False), Portion(1.0, 60.0), free)
        answers = await burst(store, tight)
        assert all(answer.allowed for answer in answers)
        assert {answer.capped for answer in answers} == {"share"}
        freed = await burst(store, replace(tight, outage=replace(free, share="allow")))
        assert {answer.capped for answer in freed} == {None}

    frozen(main)


async def test_an_answer_that_was_admitted_in_an_outage_is_booked_once_though_the_servers_word_was_lost() -> None:
    async with of_process() as (url, pid):
        store = RedisStore(url + SECONDS)
        await store.secret()
        os.kill(pid, signal.SIGSTOP)
        held = await store.admit("ann", WIDE, None, COSTLY)
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: store.state == "ok" and not len(store._owed))
        os.kill(pid, signal.SIGSTOP)
        await store.settle("ann", held.lease or "", USED)
        assert len(store._owed) == 1
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: not len(store._owed))
        (line,) = await store.ledger("ann")
        assert (line.requests, line.money) == (1, 300)
        await store.close()


async def test_however_long_an_outage_what_was_used_in_it_is_kept_as_sums_and_booked_whole() -> None:
    async with of_process() as (url, pid):
        store = RedisStore(url + SECONDS)
        await store.secret()
        os.kill(pid, signal.SIGSTOP)
        triage = Line("flash", "triage", False, 5, 0, 1, 10)
        for caller in ["ann", "bob"] * 50:
            held = await store.admit(caller, WIDE, None, COSTLY)
            await store.settle(caller, held.lease or "", [*USED, triage])
        assert len(store._owed) <= 3, "the two callers, and the admission that may have been heard"
        os.kill(pid, signal.SIGCONT)
        await eventually(lambda: store.state == "ok" and not len(store._owed))
        for caller in ("ann", "bob"):
            booked = [
                (one.kind, one.requests, one.prompt, one.cached, one.completion, one.money)
                for one in await store.ledger(caller)
            ]
            assert booked == [("triage", 50, 250, 0, 50, 500), ("answer", 50, 400, 200, 1000, 15_000)]
        await store.close()


async def test_a_gateway_tells_how_its_limits_are_kept(flash: Sim, pro: Sim) -> None:
    callers = {"plans": {"usual": {"budget": {"usd": 1.0}}}, "on_store_failure": {"tokens": "allow"}}
    store = open_store("redis://127.0.0.1:1")
    priced = {"pro": {"price": {"output_per_m": 1.0}}}
    async with gateway(policy_for(flash, pro, tiers=priced, callers=callers), store) as gate:
        refusal = await gate.ask(body())
        assert (refusal.status, refusal.json()["error"]["code"]) == (503, "store_unavailable")
        assert int(refusal.headers["retry-after"]) >= 1
        ready = (await gate.get("/ready")).json()
        assert ready["store"] == "down"
        assert ready["limits"]["budget"] == "deny"
        assert ready["limits"]["tokens"] == "allow"
        assert 'gateway_limits{kept="deny",limit="budget"} 1.0' in (await gate.get("/metrics")).data.decode()
