"""What may a caller and a request use at most, and what did the request use?   Pure."""

from dataclasses import replace
from math import ceil
from typing import Any

import msgspec

from gateway.dialects import DIALECTS, LENGTHS, PROMPTS
from gateway.fields import MAX_TOKENS
from gateway.policy import Budget, Plan, Policy, Price, Tier, window_of
from gateway.store import NANO, UNLIMITED, Bound, Kind, Limits, Line, Money, Outage, Portion
from gateway.types import Bill, Caller, ChatRequest, Own

DEFAULT_ANSWER = 4096  # tokens held for an answer when neither the caller nor the tier says max_tokens
TEMPLATE = 64  # tokens that a chat template adds beside what stands in the body
TRIAGE_ASKED = 512  # tokens of the question that triage adds to a conversation
LEASE = 60.0  # seconds at most until what a killed process held returns
PER_EVENT = 16  # tokens that one event of a stream brings at most, as servers are usually set, but for those in bulk
PER_TOKEN = 4  # bytes of a token, about
AHEAD = 256  # tokens that a server may be ahead of what came when its answer is given up
IN_PROMPT = frozenset(PROMPTS)


class Terms(msgspec.Struct, frozen=True):
    """The conditions for callers of one plan whose keys have the same limits of their own.

    `plan`: the plan, with the key's own limits in place. `limits`: the same for the store; `undiluted`: those of a
    request that no model answers, which does not count in the share. `together`: the limits of all callers together.
    `reach`: the tiers that may answer.
    """

    plan: Plan
    limits: Limits
    undiluted: Limits
    together: Limits | None
    reach: tuple[str, ...]


def terms(caller: Caller, policy: Policy) -> Terms:
    return policy.once(_terms, caller.plan, caller.own)


def _terms(name: str, own: Own, policy: Policy) -> Terms:
    plan = _plan(policy.callers.plans[name], own)
    limits = limits_of(plan, policy)
    undiluted = msgspec.structs.replace(limits, share=None)
    return Terms(plan, limits, undiluted, policy.once(limits_of_all), policy.reach(name, own.may))


def _plan(plan: Plan, own: Own) -> Plan:
    given: dict[str, Any] = {"requests_per_minute": own.requests_per_minute, "tokens_per_minute": own.tokens_per_minute}
    given |= {"explain": own.explain, "budget": _budget(plan.budget, own)}
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(plan, **changed) if changed else plan


def _budget(budget: Budget | None, own: Own) -> Budget | None:
    """The plan's budget, or one that the key brings along, with the key's own amount and window in place."""
    if own.usd is not None:
        budget = replace(budget, usd=own.usd) if budget else Budget(own.usd)
    return replace(budget, window=window_of(own.window)) if budget and own.window else budget


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
    """The most that an answer may use, priced at the dearest of `tiers`."""
    prompt, completion = sizes(request, tiers, policy)
    known, first = policy.tiers, tiers[0]
    dearest, most = first, cost(known[first].price, prompt, 0, completion)
    cheap = most
    for name in tiers:
        if name != first and (money := cost(known[name].price, prompt, 0, completion)) >= most:
            dearest, most = name, money  # of equal ones the highest
    return Bound(dearest, first, prompt, completion, most, cheap)


def sizes(request: ChatRequest, tiers: tuple[str, ...], policy: Policy) -> tuple[int, int]:
    """The most tokens of the prompt, and of the answer that one of `tiers` gives.

    A token stands for at least one byte, so the prompt takes no more tokens than the bytes of the members that end up
    in it, plus what the template adds; media by address are not in it. The answer takes the caller's max_tokens, or
    what is `unsaid`, for each choice; MAX_TOKENS in all.
    """
    body, fields = request.body, request.fields
    many = 1 if fields.prompt is None else fields.prompts()
    prompt = TEMPLATE * many
    for name in body.members:
        if name in IN_PROMPT:
            prompt += body.size(name)
    if DIALECTS[request.path].work != "answer":
        return prompt, 0
    most = longest(request) or policy.once(unsaid, tiers)
    return prompt, min(MAX_TOKENS, most * (fields.n or 1) * many)


def unsaid(tiers: tuple[str, ...], policy: Policy) -> int:
    """The tokens of an answer whose caller gives no max_tokens: what a tier sets in its place, else DEFAULT_ANSWER; of
    several tiers the most."""
    return max(_set(policy.tiers[name]) for name in tiers)


def _set(tier: Tier) -> int:
    given = [value for name in LENGTHS if type(value := tier.set.get(name)) is int and value > 0]
    return max(given, default=DEFAULT_ANSWER)


def longest(request: ChatRequest) -> int:
    """The caller's limit for the tokens of an answer, 0 for none. Of max_tokens and max_completion_tokens the larger
    counts: servers differ in which they obey."""
    one, other = request.fields.max_tokens or 0, request.fields.max_completion_tokens or 0
    return other if other > one else one  # noqa: FURB136  max() takes as long as ten steps


def cost(price: Price, prompt: int, cached: int, completion: int) -> int:
    """Nano-dollars, rounded up. A dollar a million tokens is a thousand nano-dollars a token."""
    dear = (prompt - cached) * price.input_per_m + completion * price.output_per_m
    if cached:
        dear += cached * price.cached_input_per_m
    return ceil(dear * 1000)


def lines(request: ChatRequest, policy: Policy) -> list[Line]:
    """A ledger line for each call made for a request."""
    return [bill.line or line(bill, request, policy) for bill in request.bills if not bill.void]


def charged(request: ChatRequest, policy: Policy) -> int:
    """Nano-dollars that the caller pays for what it was answered so far. Triage, drafts that were thrown away and calls
    that failed are not its own, nor is a call that was made for another request."""
    money = 0
    for bill in request.bills:
        if bill.kind == "answer" and not (bill.void or bill.lost):
            money += (bill.line or line(bill, request, policy)).money
    return money


def line(bill: Bill, request: ChatRequest, policy: Policy) -> Line:
    """The ledger line of a call: tokens as the server counted them, which it keeps (`Bill.line`), else estimated, and
    then never above what the caller allows."""
    usage, price, cached = bill.usage, policy.tiers[bill.tier].price, 0
    prompt, completion, estimated = usage.prompt, usage.completion, not usage.complete
    if estimated or prompt is None or completion is None:
        prompt, completion, estimated = *estimate(bill, request, policy), True
    elif usage.cached:
        cached = min(usage.cached, prompt)
    money = cost(price, prompt, cached, completion)
    kind: Kind = "draft" if bill.lost else bill.kind
    found = Line(bill.tier, kind, estimated, prompt, cached, completion, money)
    bill.line = None if estimated else found
    return found


def estimate(bill: Bill, request: ChatRequest, policy: Policy) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, where no server counted the whole: the most that they can have been. Of
    what never was an answer, a dropped draft or a stream that broke before it was relayed, those that it made: it
    counts against no limit. It read the answer's prompt."""
    prompt, completion = sizes(request, (bill.tier,), policy)
    if bill.kind == "draft" or (bill.lost and bill.stream):
        counted = (one.usage.prompt for one in request.bills if one.kind == "answer" and one.usage.prompt)
        return min(prompt, next(counted, prompt)), min(completion, bill.usage.tokens or bill.made)
    if bill.kind == "triage":
        return prompt + TRIAGE_ASKED, policy.triage.prompts[policy.triage.prompt].tokens
    if bill.stream:
        usage = bill.usage
        came = min(completion, PER_EVENT * usage.events + AHEAD + usage.bulk)
        completion = came if longest(request) else max(came, usage.events + usage.bulk // PER_TOKEN)
    return prompt, completion
