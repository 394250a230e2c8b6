"""A budget of all callers together, beside the budget of each."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from valkey import Valkey

from gateway.admission import Admission, admit
from gateway.fields import read
from gateway.policy import Policy, load_policy, serving
from gateway.pricing import limits_of_all
from gateway.standing import OverLimit
from gateway.store import ALL, NANO, Limits, Money, Store
from gateway.types import Bill, Caller, ChatRequest, Usage
from gateway.verify import checked
from loadtest.servers import Sim
from tests.gateway.serving import body, gateway
from tests.stores import on, scripts_known
from tests.tiers import policy_for

TEXT = """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://h"], price: {input_per_m: 0.1, output_per_m: 1.0}}
  pro: {model: p, replicas: ["http://h"], price: {input_per_m: 1.0, output_per_m: 10.0}}
rules: [{id: all, route: pro}]
callers:
  default: {plan: silver}
  plans: {silver: {concurrency: 1000, may: [pro], budget: {usd: 0.05}}}
budget: {usd: 0.1, warn: 0.5, then: refuse}
"""
POLICY = load_policy(TEXT, {})
TALKS = load_policy(TEXT.rpartition("budget:")[0] + "sessions: {}\n", {})
SOFT = load_policy(TEXT.replace("then: refuse", "then: flash_only"), {})
FIT = 9  # calls of a cent and a bit in a budget of ten


def asking(name: str, **fields: Any) -> ChatRequest:
    given = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000, **fields}
    whole, known = read(json.dumps(given).encode())
    return ChatRequest("r", Caller(name, name, "silver", "salt"), "/v1/chat/completions", whole, known, {}, 0.0)


async def burst(store: Store, policy: Any = POLICY, count: int = 40) -> list[Admission | BaseException]:
    """One call each of so many callers, all at once."""
    asked = (admit(asking(f"caller{n}"), None, policy, store) for n in range(count))
    return list(await asyncio.gather(*asked, return_exceptions=True))


async def used(store: Store, account: str) -> int:
    """Nano-dollars spent and held."""
    limits = Limits(1000, 1000, 60.0, money=Money(NANO, 86400.0, degrade=False))
    found = await store.admit(account, limits, None)
    await store.settle(account, found.lease or "")
    return found.money


def test_of_forty_callers_at_once_exactly_those_that_fit_are_admitted_and_the_others_hold_nothing(
    url: str | None,
) -> None:
    async def main(store: Store) -> None:
        found = await burst(store)
        admitted = [one for one in found if isinstance(one, Admission)]
        refused = [one for one in found if isinstance(one, OverLimit)]
        assert (len(admitted), len(refused)) == (FIT, 40 - FIT)
        assert {(one.code, one.status) for one in refused} == {("insufficient_quota", 429)}
        assert "all callers together" in refused[0].message
        held = [await used(store, f"caller{n}") for n in range(40)]
        assert sum(amount > 0 for amount in held) == FIT
        assert await used(store, ALL) == sum(held)
        await scripts_known(store)
        for one in admitted:
            one.close()
        assert await used(store, ALL) == 0
        assert sum(isinstance(one, Admission) for one in await burst(store)) == FIT

    on(url, main)


def test_who_is_refused_by_its_own_budget_takes_nothing_of_that_of_all(url: str | None) -> None:
    async def main(store: Store) -> None:
        asked = [admit(asking("ann"), None, SOFT, store) for _ in range(60)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(one, OverLimit) and "this API key" in one.message for one in found)
        await scripts_known(store)
        for one in found:
            if isinstance(one, Admission):
                one.close()
        assert [await used(store, account) for account in ("ann", ALL)] == [0, 0]

    on(url, main)


def test_when_the_budget_of_all_degrades_everyone_goes_to_the_first_tier_and_is_told_whose_it_was() -> None:
    async def main(store: Store) -> None:
        found = [one for one in await burst(store, SOFT) if isinstance(one, Admission)]
        assert [one.standing.capped for one in found[: FIT + 1]] == [None] * FIT + ["budget"]
        told = found[FIT].limits.split(b"\r\n")
        assert {b"x-budget: flash_only", b"x-budget-of: all"} < set(told)
        assert b"x-budget-of: all" in found[FIT - 1].limits.split(b"\r\n")
        assert found[0].standing.budget is None

    on(None, main)


def test_of_two_budgets_the_one_from_which_more_follows_is_told() -> None:
    async def main(store: Store) -> list[tuple[str | None, str | None]]:
        found = [(await admit(asking("ann"), None, SOFT, store)).standing for _ in range(5)]
        return [(standing.budget, standing.budget_of) for standing in found]

    assert on(None, main)[-2:] == [("warn", "caller"), ("flash_only", "caller")]


def test_a_share_that_is_used_up_caps_also_where_the_budget_of_all_only_warns() -> None:
    shared = TEXT.replace("budget: {usd: 0.05}", "pro_share: {max: 0.5}").replace("warn: 0.5", "warn: 0.05")

    async def main(store: Store) -> None:
        found = [(await admit(asking("ann"), None, load_policy(shared, {}), store)).standing for _ in range(4)]
        assert [standing.capped for standing in found] == [None, "share", None, "share"]
        assert {(standing.budget, standing.budget_of) for standing in found} == {("warn", "all")}

    on(None, main)


def test_a_budget_that_need_not_warn_is_silent_until_it_is_used_up() -> None:
    silent = load_policy(TEXT.replace("0.05}", "0.05, warn: null}").replace("warn: 0.5", "warn: null"), {})

    async def main(store: Store) -> None:
        found = [(await admit(asking("ann"), None, silent, store)).standing for _ in range(5)]
        assert [standing.budget for standing in found] == [None] * 4 + ["flash_only"]

    on(None, main)


def test_a_hit_is_given_though_the_budget_of_all_is_spent_and_takes_nothing_of_it(url: str | None) -> None:
    async def main(store: Store) -> None:
        await store.remember("ann", b"key", b"answer", 10.0)
        hit = await admit(asking("ann"), b"key", POLICY, store)
        assert (hit.entry, hit.leases, await used(store, ALL)) == (b"answer", {}, 0)
        await burst(store)
        assert (await admit(asking("ann"), b"key", POLICY, store)).entry == b"answer"

    on(url, main)


def test_who_is_refused_by_the_budget_of_all_leaves_the_lock_to_others(url: str | None) -> None:
    async def main(store: Store) -> None:
        await burst(store)
        with pytest.raises(OverLimit):
            await admit(asking("ann"), b"key", POLICY, store)
        assert (await store.take_lock("ann", b"key", b"next", 1.0)).holder == b"next"

    on(url, main)


def test_what_is_settled_shows_once_in_the_ledger_of_callers_and_once_in_that_of_all(url: str | None) -> None:
    async def main(store: Store) -> None:
        await scripts_known(store)
        for name in ("ann", "bob"):
            request = asking(name)
            request.bills.append(Bill("pro", "answer", Usage(10, 0, 20, complete=True)))
            (await admit(request, None, POLICY, store)).close()
        lines = await store.ledger()
        assert [(line.caller, line.requests, line.money) for line in lines] == [
            ("ann", 1, 210_000),
            ("bob", 1, 210_000),
        ]
        (whole,) = await store.ledger(ALL)
        assert (whole.requests, whole.money) == (2, 420_000)
        assert await used(store, ALL) == 420_000

    on(url, main)


@pytest.mark.parametrize("told", ["budget: {usd: 0.1, window: 1h, then: refuse}", ""])
def test_the_budget_of_all_holds_for_those_whom_a_candidate_serves_whatever_it_says_itself(
    tmp_path: Path, url: str | None, told: str
) -> None:
    (tmp_path / "next.yaml").write_text(f"{TEXT.rpartition('budget:')[0]}{told}\n")
    (tmp_path / "policy.yaml").write_text(f"{TEXT}candidate: {{policy: next.yaml, canary: 0.5}}\n")
    policy = checked(tmp_path / "policy.yaml", {})

    async def spent(name: str, store: Store) -> str:
        """Asks for what costs a cent; the digest of the policy that served it, "" for a refusal."""
        request, serves = asking(name), serving(name, policy)
        request.bills.append(Bill("pro", "answer", Usage(0, 0, 1000, complete=True)))
        with contextlib.suppress(OverLimit):
            (await admit(request, None, serves, store)).close()
            return serves.digest
        return ""

    async def main(store: Store) -> None:
        await scripts_known(store)
        served = [await spent(f"caller{n}", store) for n in range(40)]
        assert 40 - served.count("") == FIT
        assert len(set(served) - {""}) == 2

    on(url, main)


@pytest.mark.parametrize(("policy", "hit"), [(POLICY, False), (POLICY, True), (TALKS, False)])
def test_a_cancelled_admission_leaves_nothing_held_in_either_account(
    url: str | None, policy: Policy, hit: bool
) -> None:
    async def main(store: Store) -> None:
        await scripts_known(store)
        if hit:
            await store.remember("ann", b"key", b"answer", 60.0)
        for turns in range(9):
            request = asking("ann", metadata={"session_id": "s"})
            task = asyncio.create_task(admit(request, b"key", policy, store))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result().close()
                if lock := task.result().lock:
                    await store.free_lock("ann", b"key", lock.token)
        assert [await used(store, account) for account in ("ann", ALL)] == [0, 0]
        assert hit or (await store.take_lock("ann", b"key", b"next", 1.0)).holder == b"next"

    on(url, main)


def test_both_accounts_are_asked_in_one_write(valkey: str) -> None:
    async def main(store: Store) -> None:
        await scripts_known(store)
        with Valkey.from_url(valkey) as client:
            before = client.info("stats")["total_reads_processed"]
            admission = await admit(asking("ann"), None, POLICY, store)
            assert client.info("stats")["total_reads_processed"] - before == 2  # one of them asks for this figure
            assert admission.leases.keys() == {"ann", ALL}

    on(valkey, main)


def test_without_a_budget_of_all_nothing_is_counted_for_it() -> None:
    assert limits_of_all(load_policy(TEXT.partition("budget: {usd: 0.1")[0], {})) is None


def test_a_gateway_refuses_when_the_budget_of_all_is_spent(flash: Sim, pro: Sim, valkey: str) -> None:
    price = {"price": {"input_per_m": 1.0, "output_per_m": 10.0}}
    policy = policy_for(flash, pro, tiers={"flash": price, "pro": price}, budget={"usd": 0.01})

    async def main(store: Store) -> None:
        async with gateway(policy, store) as gate:
            assert (await gate.ask(body(max_tokens=10, model="flash"))).status == 200
            refusal = await gate.ask(body(max_tokens=5000, model="flash"))
            assert (refusal.status, refusal.json()["error"]["code"]) == (429, "insufficient_quota")

    on(valkey, main)
