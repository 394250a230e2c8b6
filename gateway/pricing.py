"""What may a caller and a request use at most, and what did the request use?   Pure."""

import math
from dataclasses import replace
from typing import Any

from gateway.dialects import PROMPTS
from gateway.policy import Budget, Plan, Policy, Price
from gateway.store import NANO, UNLIMITED, Bound, Limits, Line, Money, Outage, Portion
from gateway.types import Bill, Caller, ChatRequest, Own

TEXT = "/v1/completions"
DEFAULT_ANSWER = 4096  # tokens held for an answer when the caller gives no max_tokens
TEMPLATE = 64  # tokens that a chat template adds beside what stands in the body
TRIAGE_ASKED = 512  # tokens of the question that triage adds to a conversation
LEASE = 60.0  # seconds at most until what a killed process held returns
PER_EVENT = 16  # tokens that one event of a stream brings at most, as servers are usually set
AHEAD = 256  # tokens that a server may be ahead of what came when its answer is given up


def terms(caller: Caller, policy: Policy) -> tuple[Plan, Limits]:
    """The caller's plan, with what its key has of its own, and its limits."""
    return policy.once(_terms, caller.plan, caller.own)


def _terms(name: str, own: Own, policy: Policy) -> tuple[Plan, Limits]:
    plan = _plan(policy.callers.plans[name], own)
    return plan, limits_of(plan, policy)


def _plan(plan: Plan, own: Own) -> Plan:
    given: dict[str, Any] = {"requests_per_minute": own.requests_per_minute, "tokens_per_minute": own.tokens_per_minute}
    given["explain"] = own.explain
    if own.usd is not None:
        given["budget"] = replace(plan.budget, usd=own.usd) if plan.budget else Budget(own.usd)
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(plan, **changed) if changed else plan


def limits_of(plan: Plan, policy: Policy) -> Limits:
    """A plan's limits in the store's terms."""
    share, modes = plan.pro_share, policy.callers.on_store_failure
    return Limits(
        plan.requests_per_minute,
        plan.concurrency,
        lease(policy),
        plan.tokens_per_minute,
        _money(plan.budget),
        Portion(share.max, share.window) if share else None,
        Outage(modes.requests, modes.concurrency, modes.tokens, modes.budget, modes.pro_share),
    )


def limits_of_all(policy: Policy) -> Limits | None:
    """What all callers together may do: of all limits, only money is theirs."""
    if policy.budget is None:
        return None
    outage = Outage("allow", "allow", "allow", policy.callers.on_store_failure.budget, "allow")
    return Limits(UNLIMITED, UNLIMITED, lease(policy), money=_money(policy.budget), outage=outage)


def lease(policy: Policy) -> float:
    """LEASE, or the longest exchange where that is shorter: a question, an answer from each tier, a slow reader."""
    times = [tier.timeouts.total for tier in policy.tiers.values()]
    return min(LEASE, policy.triage.timeout + sum(times) + max(times))


def _money(budget: Budget | None) -> Money | None:
    return Money(round(budget.usd * NANO), budget.window, budget.then == "flash_only") if budget else None


def bound(request: ChatRequest, tiers: tuple[str, ...], policy: Policy) -> Bound:
    """The most that an answer may use, priced at the dearest of `tiers`.

    A token stands for at least one byte, so the prompt takes no more tokens than the bytes of the members that end up
    in it, plus what the template adds; media by address are not in it. The answer takes the caller's max_tokens, or
    DEFAULT_ANSWER, for each choice.
    """
    prompt, completion = prompt_bound(request), answer_bound(request)
    first = dearest = tiers[0]
    most = cheap = cost(policy.tiers[first].price, prompt, 0, completion)
    for name in tiers[1:]:
        money = cost(policy.tiers[name].price, prompt, 0, completion)
        if money >= most:  # of equal ones the highest
            dearest, most = name, money
    return Bound(dearest, first, prompt, completion, most, cheap)


def prompt_bound(request: ChatRequest) -> int:
    sizes = [request.body.size(name) for name in request.body.members if name in PROMPTS]
    return TEMPLATE * prompts(request.fields.prompt) + sum(sizes)


def prompts(prompt: str | list[Any] | None) -> int:
    """How many prompts a completion request holds; a list of numbers is one."""
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def answer_bound(request: ChatRequest) -> int:
    fields = request.fields
    if request.dialect.work != "answer":
        return 0
    return (longest(request) or DEFAULT_ANSWER) * (fields.n or 1) * prompts(fields.prompt)


def longest(request: ChatRequest) -> int:
    """The most tokens of an answer that the caller asks for, 0 when it does not say. Where it says it by both names the
    larger counts: servers differ in which they obey. Text completions have one name, and servers pass over the other.
    """
    fields = request.fields
    other = None if request.path == TEXT else fields.max_completion_tokens
    return max(fields.max_tokens or 0, other or 0)


def cost(price: Price, prompt: int, cached: int, completion: int) -> int:
    """Nano-dollars, rounded up. A dollar a million tokens is a thousand nano-dollars a token."""
    dear = (prompt - cached) * price.input_per_m + completion * price.output_per_m
    return math.ceil((dear + cached * price.cached_input_per_m) * 1000)


def lines(request: ChatRequest, policy: Policy) -> list[Line]:
    """What the calls for a request come to: as the servers counted, else estimated, never above what the caller set."""
    return [line(bill, request, policy) for bill in request.bills if not bill.void]


def line(bill: Bill, request: ChatRequest, policy: Policy) -> Line:
    usage, price = bill.usage, policy.tiers[bill.tier].price
    kind = "draft" if bill.lost else bill.kind
    if usage.complete and usage.prompt is not None and usage.completion is not None:
        cached = min(usage.cached or 0, usage.prompt)
        money = cost(price, usage.prompt, cached, usage.completion)
        return Line(bill.tier, kind, False, usage.prompt, cached, usage.completion, money)
    prompt, completion = prompt_bound(request), answer_bound(request)
    if bill.kind == "triage":
        prompt, completion = prompt + TRIAGE_ASKED, policy.triage.prompts[policy.triage.prompt].tokens
    elif bill.stream:
        came = min(completion, PER_EVENT * usage.events + AHEAD)
        completion = came if longest(request) else max(came, usage.events)
    return Line(bill.tier, kind, True, prompt, 0, completion, cost(price, prompt, 0, completion))
