"""What can one model server do?   It is asked for a verdict by each strategy, and for a plain answer."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import msgspec

from gateway.dialects import CHAT
from gateway.errors import UNREADABLE, Overloaded
from gateway.fields import read
from gateway.http1 import TransportError
from gateway.policy import Policy
from gateway.splice import changes
from gateway.triage import question, question_by, strategy_of, triage
from gateway.types import Caller, ChatRequest, Strategy
from gateway.upstream import Upstream
from gateway.wording import said

PATIENCE = 30.0  # seconds for an answer: the first logprobs of a vLLM server took 4 to 24 s (2026-11)
PLAIN = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":16}'
LIKELY = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":16,"logprobs":true,"top_logprobs":1}'
UNBOUND = "Say hello."  # a server that really constrains its answers to the labels answers even this with a label
LARGEST = 1 << 20  # bytes of an answer
SHOWN = 120  # characters of an answer that messages quote
# By strategy, "ok" or why a server cannot be asked by it: the reason of a failed verdict, "no_logprobs", or "unbound"
# (its answers are not constrained to the labels).
Outcomes = Mapping[Strategy, str]


class PlainAnswer(NamedTuple):
    """How a server answers a plain question: whether the model thinks first, returns content, and returns
    log-probabilities. `refused`: what came instead of an answer; "": an answer did."""

    thinks: bool = False
    content: bool = False
    logprobs: bool = False
    refused: str = ""


def for_server(policy: Policy, name: str, url: str) -> Policy:
    """`policy` as if the tier had this one server and triage asked it: by any strategy, for PATIENCE seconds."""
    tier, rules = policy.tiers[name], policy.triage
    return replace(
        policy,
        tiers={**policy.tiers, name: replace(tier, replicas=(url,))},
        triage=replace(rules, tier=name, strategy="auto", timeout=PATIENCE),
    )


async def try_strategies(policy: Policy, upstream: Upstream) -> Outcomes:
    """Asks the one server of `policy` (see `for_server`) by each strategy that the prompt allows. `choice` needs a
    request field of vLLM's, so other engines are not asked by it. After a timeout the server is asked no more."""
    rules, tier = policy.triage, policy.tiers[policy.triage.tier]
    found: dict[Strategy, str] = {}
    for strategy in get_args(Strategy):
        served = strategy_of(rules, (strategy,)) == strategy and (strategy != "choice" or tier.engine != "openai")
        if served and "timeout" not in found.values():
            found[strategy] = await _outcome(policy, upstream, strategy)
    return found


def common_strategies(servers: Iterable[Outcomes]) -> tuple[Strategy, ...]:
    """The strategies that a tier can be asked by, the better ones first: those that work on all of its servers, except
    servers on which none works."""
    useful = [found for found in servers if "ok" in found.values()]
    return tuple(s for s in get_args(Strategy) if useful and all(found.get(s) == "ok" for found in useful))


async def _outcome(policy: Policy, upstream: Upstream, strategy: Strategy) -> str:
    """Asks as triage would. Where the strategy constrains the answer, a second question that does not mention the
    labels finds out whether the server really enforces it."""
    request, schema = _request(policy, PLAIN), policy.tiers[policy.triage.tier].can.json_schema
    verdict = await triage(request, policy, upstream, question(request, policy, (strategy,)))
    if verdict.label is None:
        return verdict.reason
    if verdict.p_complex is None and strategy != "json":
        return "no_logprobs"
    if strategy == "choice" or (strategy == "json_logprobs" and schema):
        bound = await triage(request, policy, upstream, question_by(request, policy, strategy, UNBOUND))
        return "ok" if bound.label else "unbound"
    return "ok"


async def failure_text(policy: Policy, upstream: Upstream, strategy: Strategy, outcome: str) -> str:
    """Asks again by a strategy that had this `outcome`, and returns the status and the message, or else the answer, as
    text: "200 {...}", "500 {...}"; "" where no answer came."""
    request = _request(policy, PLAIN)
    asked = question(request, policy, (strategy,))
    if outcome == "unbound":
        asked = question_by(request, policy, strategy, UNBOUND)
    body = msgspec.json.decode(asked.body, type=dict[str, Any])
    if asked.template.path == CHAT:
        body = {key: value for key, value in body.items() if key != "stream_options"} | {"stream": False}
    status, answer = await _raw(policy, upstream, asked.template.path, msgspec.json.encode(body))
    message = _message(answer) if status == 200 else b""
    return f"{status} {_short(message or answer)}" if status else ""


class _Choice(msgspec.Struct):
    message: msgspec.Raw


class _Answer(msgspec.Struct):
    choices: list[_Choice]


def _message(answer: bytes) -> bytes:
    """The first message alone, as what stands around it differs from second to second; b"" where there is none."""
    try:
        return bytes(msgspec.json.decode(answer, type=_Answer).choices[0].message)
    except (*UNREADABLE, IndexError):
        return b""


async def plain_answer(policy: Policy, upstream: Upstream) -> PlainAnswer:
    """How the one server of `policy` (see `for_server`) answers an ordinary request."""
    for body in (LIKELY, PLAIN):  # some refuse to tell log-probabilities
        request = _request(policy, body)
        tier, plan = policy.tiers[policy.triage.tier], policy.callers.plans[request.caller.plan]
        status, answer = await _raw(policy, upstream, CHAT, request.body.edit(changes(request, tier, plan)))
        found = said(answer, stream=False)
        if status == 200 and found.finish:
            return PlainAnswer(found.thought, bool(found.text), bool(found.logprobs))
    return PlainAnswer(refused=f"{status or ''} {_short(answer)}".strip())


async def _raw(policy: Policy, upstream: Upstream, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer; where none came 0 and the error's text."""
    request = _request(policy, PLAIN)
    try:
        with await upstream.ask(request, path, body, policy, PATIENCE) as response:
            return response.status, await response.read(LARGEST)
    except (TransportError, Overloaded) as error:
        return 0, str(error).encode()


def _short(answer: bytes) -> str:
    line = " ".join(answer.decode("utf-8", "replace").split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _request(policy: Policy, told: bytes) -> ChatRequest:
    body, fields = read(told)
    caller = Caller("probe", "probe", policy.callers.default.plan, "probe")
    return ChatRequest("probe", caller, CHAT, body, fields, {}, time.perf_counter())
