import asyncio
import json
from typing import Any

import pytest
from msgspec import structs

from gateway.admission import Admission, admit
from gateway.errors import RateLimited
from gateway.fields import read
from gateway.policy import load_policy
from gateway.pricing import lines
from gateway.reply import Reply
from gateway.standing import OverLimit
from gateway.store import MemoryStore
from gateway.types import Bill, Caller, ChatRequest, Usage

ANN = Caller("ann", "ann", "silver", "salt")
POLICY = load_policy(
    """\
schema: 1
tiers:
  flash: {model: f, replicas: ["http://h"], price: {input_per_m: 0.1, output_per_m: 1.0}}
  pro: {model: p, replicas: ["http://h"], price: {input_per_m: 1.0, output_per_m: 10.0}}
rules: [{id: all, route: pro}]
callers:
  default: {plan: silver}
  plans:
    silver: {requests_per_minute: 6, concurrency: 2, may: [pro]}
    metered: {tokens_per_minute: 1000, may: [pro]}
    frugal: {budget: {usd: 0.01, warn: 0.5}, may: [pro]}
    strict: {budget: {usd: 0.01, then: refuse}, may: [pro]}
    even: {pro_share: {max: 0.5}, may: [pro]}
""",
    {},
)


def asking(plan: str = "silver", **fields: Any) -> ChatRequest:
    whole, known = read(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())
    return ChatRequest("r", structs.replace(ANN, plan=plan), "/v1/chat/completions", whole, known, {}, 0.0)


async def made() -> Reply:
    return Reply(200, [], b"{}", False, "pro", nothing)


async def test_an_admitted_request_tells_its_limits() -> None:
    store = MemoryStore()
    admission = await admit(asking(), None, POLICY, store)
    assert admission.entry is None
    assert admission.limits.split(b"\r\n") == [
        b"x-ratelimit-limit-requests: 6",
        b"x-ratelimit-remaining-requests: 5",
        b"x-ratelimit-reset-requests: 10s",
        b"",
    ]


async def test_a_used_up_minute_is_429_and_says_when_to_come_back() -> None:
    store = MemoryStore()
    for _ in range(6):
        (await admit(asking(), None, POLICY, store)).close()
    with pytest.raises(RateLimited) as refusal:
        await admit(asking(), None, POLICY, store)
    assert refusal.value.code == "rate_limit_exceeded"
    assert 9.0 < (refusal.value.retry_after or 0.0) <= 10.0


async def test_one_request_too_many_at_the_same_time_is_429_until_another_closes() -> None:
    store = MemoryStore()
    one, _ = [await admit(asking(), None, POLICY, store) for _ in range(2)]
    with pytest.raises(RateLimited) as refusal:
        await admit(asking(), None, POLICY, store)
    assert (refusal.value.code, refusal.value.retry_after) == ("concurrency_limit_exceeded", 1.0)
    assert refusal.value.message == "Too many requests at the same time: limit 2. Try again in 1s."
    one.close()
    one.close()
    await admit(asking(), None, POLICY, store)
    with pytest.raises(RateLimited):
        await admit(asking(), None, POLICY, store)


async def test_a_hit_comes_with_its_entry_and_holds_no_slot() -> None:
    store = MemoryStore()
    await store.remember("ann", b"key", b"answer", 10.0)
    hits = [await admit(asking(), b"key", POLICY, store) for _ in range(4)]
    assert [hit.entry for hit in hits] == [b"answer"] * 4
    await admit(asking(), None, POLICY, store)


async def test_a_request_that_is_cancelled_while_it_closes_gives_its_slot_back() -> None:
    async def hold(admission: Admission, holding: asyncio.Event) -> None:
        try:
            holding.set()
            await asyncio.sleep(60)
        finally:
            admission.close()

    store = MemoryStore()
    for _ in range(3):
        holding = asyncio.Event()
        task = asyncio.create_task(hold(await admit(asking(), None, POLICY, store), holding))
        await holding.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_what_a_request_holds_is_settled_when_the_last_of_its_holders_is_done() -> None:
    store = MemoryStore()
    request = asking()
    admission = await admit(request, None, POLICY, store)
    own = admission.keep(await made())
    with admission:  # what makes the answer for others goes on when the request itself has ended
        request.bills.append(Bill("pro", "answer", Usage(10, 0, 5, complete=True)))
        await own.close()
        await own.close()
        assert (await store.ledger("ann"), request.costs) == ([], [])
    (booked,) = await store.ledger("ann")
    assert (booked.prompt, booked.completion) == (10, 5)
    assert request.costs == lines(request, POLICY)


async def test_a_reply_that_is_kept_settles_once() -> None:
    store = MemoryStore()
    request = asking()
    request.bills.append(Bill("pro", "answer", Usage(10, 0, 5, complete=True)))
    reply = (await admit(request, None, POLICY, store)).keep(await made())
    assert await store.ledger("ann") == []
    await reply.close()
    assert [line.requests for line in await store.ledger("ann")] == [1]


async def nothing() -> None:
    return None


async def headers(plan: str, store: MemoryStore, **fields: Any) -> dict[str, str]:
    admission = await admit(asking(plan, **fields), None, POLICY, store)
    return dict(line.split(": ") for line in admission.limits.decode().splitlines())


async def test_tokens_are_told_where_they_are_limited_and_used_up_is_429() -> None:
    store = MemoryStore()
    told = [await headers("metered", store, max_tokens=300) for _ in range(2)]
    left = [int(each["x-ratelimit-remaining-tokens"]) for each in told]
    assert told[0]["x-ratelimit-limit-tokens"] == "1000"
    assert 1000 - 300 > left[0] > left[1] >= 0
    with pytest.raises(OverLimit) as refusal:
        await admit(asking("metered", max_tokens=300), None, POLICY, store)
    assert (refusal.value.limit, refusal.value.code) == ("tokens", "rate_limit_exceeded")
    assert "tokens per minute: limit 1000" in refusal.value.message
    assert 0 < (refusal.value.retry_after or 0) <= 60


async def test_what_does_not_fit_the_budget_goes_to_the_first_tier_then_is_refused_for_good() -> None:
    store = MemoryStore()
    seen = [(await admit(asking("frugal", max_tokens=400), None, POLICY, store)).standing for _ in range(4)]
    assert [standing.capped for standing in seen] == [None, None, "budget", "budget"]
    assert [standing.budget for standing in seen] == [None, "warn", "flash_only", "flash_only"]
    with pytest.raises(OverLimit) as refusal:
        await admit(asking("frugal", max_tokens=4000), None, POLICY, store)
    assert (refusal.value.type, refusal.value.code) == ("insufficient_quota", "insufficient_quota")
    assert (b"x-should-retry", b"false") in refusal.value.headers()
    with pytest.raises(OverLimit):
        await admit(asking("strict", max_tokens=1100), None, POLICY, MemoryStore())


async def test_a_warning_is_told() -> None:
    store = MemoryStore()
    assert "x-budget" not in await headers("frugal", store, max_tokens=400)
    told = await headers("frugal", store, max_tokens=400)
    assert (told["x-budget"], told["x-budget-used"][:3]) == ("warn", "0.8")


async def test_a_share_keeps_the_rest_on_the_first_tier() -> None:
    store = MemoryStore()
    seen = [(await admit(asking("even"), None, POLICY, store)).standing.capped for _ in range(6)]
    assert seen == [None, "share", None, "share", None, "share"]


async def test_counting_tokens_makes_no_room_in_the_share() -> None:
    store, asked = MemoryStore(), asking("even")
    counting = structs.replace(asked, path="/v1/messages/count_tokens")
    seen = [(await admit(one, None, POLICY, store)).standing.capped for one in (asked, *[counting] * 9, asked)]
    assert seen == [None] * 10 + ["share"]


@pytest.mark.parametrize(
    ("tier", "seen"), [("pro", [None, "share", None, "share"]), ("flash", [None] * 4)], ids=["above", "below"]
)
def test_what_the_strong_tier_answered_takes_of_the_share_and_what_another_did_makes_room(
    tier: str, seen: list[str | None]
) -> None:
    async def main(store: MemoryStore) -> list[str | None]:
        found = []
        for _ in range(4):
            request = asking("even")
            admission = await admit(request, None, POLICY, store)
            found.append(admission.standing.capped)
            answers = tier if found[-1] is None else "flash"
            request.bills.append(Bill(answers, "answer", Usage(10, 0, 5, complete=True)))
            admission.close()
        return found

    assert asyncio.run(main(MemoryStore())) == seen
