import asyncio
import gc
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.done import nothing
from gateway.errors import UpstreamFailed
from gateway.holdback.opening import Opening
from gateway.policy import Policy
from gateway.reply import Reply
from gateway.splice import extra_logprobs, holdback_of
from gateway.usage import Asked, reported
from loadtest.servers import Sim
from tests.gateway.serving import (
    COMPLEX,
    SIMPLE,
    Answer,
    Gateway,
    asked,
    body,
    eventually,
    gateway,
    head_of,
    upstream,
    watched,
)
from tests.gateway.serving import collected as read
from tests.tiers import JSON, policy_for

SIGNS: JSON = {
    "mean_logprob": {"max": -1.6},
    "refusal": True,
    "refusal_words": ["^I'm sorry"],
    "repetition": True,
    "schema_violation": True,
    "empty": True,
}
HELD: JSON = {"tiers": ["flash"], "to": "pro", "escalate_when": SIGNS, "wait": "20s"}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "required": ["a"]}}}
WEAK: dict[str, tuple[JSON, str]] = {
    "unsure": ({"weak": "unsure"}, "mean_logprob"),
    "a refusal field": ({"weak": "refusal"}, "refusal"),
    "content_filter": ({"weak": "filter"}, "refusal"),
    "an operator's words, and nothing more for a while": ({"weak": "sorry", "stall_after": 8}, "refusal"),
    "a loop": ({"weak": "loop"}, "repetition"),
    "no schema": ({"ignore_response_format": True}, "schema_violation"),
    "nothing": ({"weak": "empty"}, "empty"),
}


def held_back(flash: Sim, pro: Sim, changes: JSON | None = None, **policy: Any) -> Policy:
    """Flash answers everything, and its starts are kept back."""
    rules = policy.pop("rules", [{"id": "all", "route": "flash"}])
    return policy_for(flash, pro, rules=rules, holdback={**HELD, **(changes or {})}, **policy)


async def told(gate: Gateway, fields: JSON, **headers: str) -> tuple[Answer, JSON]:
    """The answer and its explanation."""
    answer = await gate.ask(fields, x_route_explain="1", **headers)
    assert answer.status == 200, answer.data
    if fields.get("stream"):
        return answer, next(json.loads(data)["route"] for data in answer.events() if b'"route":' in data)
    found: JSON = answer.json()["route"]
    return answer, found


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("weakness", WEAK)
async def test_a_weak_start_is_answered_by_the_other_tier(flash: Sim, pro: Sim, weakness: str, stream: bool) -> None:
    fault, reason = WEAK[weakness]
    flash.config(only="answer", **fault)
    async with gateway(held_back(flash, pro)) as gate:
        form: JSON = {"response_format": FORM} if reason == "schema_violation" else {}
        answer, decision = await told(gate, body(stream=stream, **form))
        assert answer.headers["x-route-tier"] == decision["tier"] == "pro"
        assert (answer.headers["x-route-reason"], decision["draft"]) == ("escalated", "none")
        held = decision["holdback"]
        assert (held["outcome"], held["reason"]) == ("escalated", reason)
        assert decision["route"]["tier"] == "flash", "what was decided stays told"
        assert b"pro-model" in answer.data
        assert b"flash-model" not in answer.data.partition(b'"policy"')[0]
        assert len(pro.seen()) == len(flash.seen()) == 1
        metrics = (await gate.get("/metrics")).data.decode()
        assert f'gateway_holdback_total{{outcome="escalated",reason="{reason}"}} 1.0' in metrics
        recorded = json.loads(gate.front.doors.records.recent(1)[0])
        assert recorded["held"] == held
        assert (recorded["route"]["tier"], recorded["tier"]) == ("flash", "pro")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_narrow_lead_over_the_second_likeliest_token_is_weak(flash: Sim, pro: Sim, stream: bool) -> None:
    flash.config(weak="unsure")
    signs = {"escalate_when": {"margin": {"max": 0.2}}}
    for path, fields in (("chat/completions", body()), ("completions", {"model": "auto", "prompt": SIMPLE})):
        async with gateway(held_back(flash, pro, signs)) as gate:
            answer = await gate.ask({**fields, "stream": stream}, path=f"/v1/{path}")
            assert answer.headers["x-route-tier"] == "pro"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_good_start_is_let_out_byte_for_byte(flash: Sim, pro: Sim, stream: bool) -> None:
    async with upstream() as door, gateway(held_back(flash, pro)) as gate:
        answer = await gate.ask(body(stream=stream))
        assert answer.headers["x-route-tier"] == "flash"
        assert json.loads(flash.seen()[0]["body"])["logprobs"] is True
        reply = await door.attempt(asked(body(stream=stream)), "flash", policy_for(flash, pro))
        assert like(answer.data) == like(await read(reply)), "as if nobody had asked for log-probabilities"


def like(data: bytes) -> list[JSON]:
    """The JSON of an answer, without what no two answers share; the order of members counts."""
    events = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part and b"[DONE]" not in part]
    found = [json.loads(event) for event in events]
    return [json.dumps({**one, "id": "", "created": 0}) for one in found]  # type: ignore[misc]


@pytest.mark.parametrize("stream", [True, False])
async def test_log_probabilities_that_the_caller_asked_for_stay(flash: Sim, pro: Sim, stream: bool) -> None:
    async with gateway(held_back(flash, pro)) as gate:
        answer = await gate.ask(body(stream=stream, logprobs=True))
        assert b'"logprob":' in answer.data
        assert "top_logprobs" not in json.loads(flash.seen()[0]["body"])
        answer = await gate.ask(body(stream=stream, logprobs=False))
        assert b'"logprob":' not in answer.data


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({}, {"x_route_holdback": "off"}),
        ({"metadata": {"holdback": "off"}}, {}),
        ({"model": "flash"}, {}),
        ({"n": 2}, {}),
    ],
)
async def test_who_opts_out_or_chooses_the_tier_gets_it_as_it_is(
    flash: Sim, pro: Sim, fields: JSON, headers: JSON
) -> None:
    flash.config(weak="unsure")
    async with gateway(held_back(flash, pro)) as gate:
        _, decision = await told(gate, body(**fields), **headers)
        assert (decision["tier"], decision["holdback"]) == ("flash", None)
        asks = "logprobs" in json.loads(flash.seen()[0]["body"])
        assert asks is (fields.get("model") == "flash"), "not even the server is asked for more"


def test_answers_in_other_dialects_than_chats_are_let_out_at_once(flash: Sim, pro: Sim) -> None:
    policy, fields = held_back(flash, pro), body(max_tokens=9)
    assert holdback_of(asked(fields), "flash", policy) is policy.holdback
    assert holdback_of(asked(fields, "/v1/messages"), "flash", policy) is None
    assert extra_logprobs(asked(fields, "/v1/messages"), "flash", policy) == {}


def test_where_no_sign_is_a_figure_no_server_is_asked_for_log_probabilities(flash: Sim, pro: Sim) -> None:
    request = asked(body(max_tokens=9))
    assert extra_logprobs(request, "flash", held_back(flash, pro)) == {"logprobs": b"true", "top_logprobs": b"2"}
    signs = {"escalate_when": {"mean_logprob": None, "margin": None, "empty": True}}
    assert extra_logprobs(request, "flash", held_back(flash, pro, signs)) == {}
    default = {"flash": {"set": {"logprobs": True}}}
    assert extra_logprobs(request, "flash", held_back(flash, pro, tiers=default)) == {}, "its callers have them anyway"


async def test_a_tier_that_is_not_named_is_not_held_back(flash: Sim, pro: Sim) -> None:
    pro.config(weak="empty")
    async with gateway(held_back(flash, pro, rules=[{"id": "all", "route": "pro"}])) as gate:
        _, decision = await told(gate, body())
        assert (decision["tier"], decision["holdback"]) == ("pro", None)


CAPS: dict[str, JSON] = {
    "plan": {"may": None},
    "share": {"pro_share": {"max": 0.0}},
    "budget": {"budget": {"usd": 1e-9}},
}


@pytest.mark.parametrize("cap", CAPS)
async def test_nobody_is_escalated_above_plan_share_or_budget(flash: Sim, pro: Sim, cap: str) -> None:
    flash.config(weak="empty")
    tiers = {"pro": {"price": {"output_per_m": 1.0}}}
    policy = held_back(flash, pro, tiers=tiers, callers={"plans": {"usual": CAPS[cap]}})
    async with gateway(policy) as gate:
        _, decision = await told(gate, body())
        assert (decision["tier"], decision["holdback"]) == ("flash", None)
        assert pro.seen() == []


async def test_a_start_is_let_out_after_so_many_tokens_or_when_its_time_is_over(flash: Sim, pro: Sim) -> None:
    flash.config(stall_after=9)
    for reason, rules in (("tokens", {"tokens": 4}), ("wait", {"tokens": 1000, "wait": "30ms"})):
        async with gateway(held_back(flash, pro, rules)) as gate:
            line = await gate.open(body(stream=True))
            first = await line.some()
            assert b"x-route-tier: flash" in first
            await line.leave()
            await eventually(lambda: not any(gate.upstream.load().values()))
            assert f'outcome="kept",reason="{reason}"' in (await gate.get("/metrics")).data.decode()


async def test_the_time_of_a_start_counts_from_its_first_token_however_many_follow(flash: Sim, pro: Sim) -> None:
    flash.config(drip=0.01, drip_bytes=60)  # at least a second for the whole of it
    async with gateway(held_back(flash, pro, {"tokens": 1000, "wait": "300ms"})) as gate:
        line = await gate.open(body(stream=True))
        assert b"x-route-tier: flash" in await line.some()
        await line.leave()
        await eventually(lambda: not any(gate.upstream.load().values()))
        assert 'outcome="kept",reason="wait"' in (await gate.get("/metrics")).data.decode()


async def test_nothing_of_a_start_goes_out_while_it_is_kept_back_and_leaving_stops_it(flash: Sim, pro: Sim) -> None:
    flash.config(stall_after=5)
    for caching in (None, {"ttl": "1m"}):
        flash._call("DELETE", "/admin/state")
        async with gateway(held_back(flash, pro, caching=caching)) as gate:
            line = await gate.open(body(stream=True, temperature=0))
            await eventually(lambda: bool(flash.seen()) and flash.seen()[0]["tokens"] > 2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(line.reader.read(1), 0.1)
            await line.leave()
            await eventually(lambda: flash.seen()[0]["state"] == "aborted")


@pytest.mark.parametrize("fails", [True, False])
async def test_a_piece_that_nobody_waits_for_any_longer_is_given_up_without_a_word(fails: bool) -> None:
    troubles = watched()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"a"
        try:
            await asyncio.Event().wait()
        finally:
            if fails:
                raise UpstreamFailed("The model server broke off its answer.")

    reply = Reply(200, [], pieces(), True, "flash", nothing)
    opening = Opening(reply, bytes)
    assert [await opening.more(seconds) for seconds in (None, 0.01)] == [b"a", None]
    await reply.close()
    del reply, opening
    gc.collect()
    assert troubles == []


async def test_a_draft_is_held_back_too_and_wasted_only_when_it_is_weak(flash: Sim, pro: Sim) -> None:
    flash.config(weak="sorry")
    rules = [{"id": "triaged", "route": {"simple": "flash", "complex": "pro"}}]
    async with gateway(held_back(flash, pro, rules=rules)) as gate:
        _, decision = await told(gate, body(SIMPLE, stream=True))
        assert (decision["tier"], decision["draft"]) == ("pro", "wasted")
        flash.config(weak=None)
        _, decision = await told(gate, body(SIMPLE + "!", stream=True))
        assert (decision["tier"], decision["draft"], decision["holdback"]["outcome"]) == ("flash", "kept", "kept")
        _, decision = await told(gate, body(COMPLEX, stream=True))
        assert (decision["tier"], decision["holdback"]) == ("pro", None)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 400}, {"cut_after": 0}])
async def test_a_weak_start_is_let_out_when_the_other_tier_does_not_answer(
    flash: Sim, pro: Sim, fault: JSON, stream: bool
) -> None:
    flash.config(weak="sorry")
    pro.config(**fault)
    async with gateway(held_back(flash, pro, caching={"ttl": "1m"})) as gate:
        for _ in range(2):
            answer, decision = await told(gate, body(stream=stream, temperature=0))
            assert answer.headers["x-route-cache"] == "miss", "it is not remembered"
            assert answer.headers["x-route-tier"] == "flash"
            assert (decision["holdback"]["outcome"], decision["holdback"]["reason"]) == ("kept", "unanswered")
            assert b"sorry" in answer.data
        rows = reported(await gate.front.doors.store.ledger(), Asked(by=("tier", "kind"))).rows
        assert {(row.tier, row.kind) for row in rows} >= {("flash", "answer")}, "it is paid for"


@pytest.mark.parametrize(
    ("failover", "goes_on"),
    [({"tiers": {"flash": ["pro"]}}, True), ({"tiers": {"flash": []}}, False), ({"on": ["first_byte"]}, False)],
)
async def test_a_start_that_breaks_is_failover_and_no_escalation(
    flash: Sim, pro: Sim, failover: JSON, goes_on: bool
) -> None:
    flash.config(cut_after=3)
    async with gateway(held_back(flash, pro, failover=failover)) as gate:
        answer = await gate.ask(body(stream=True))
        if goes_on:
            assert (answer.status, answer.headers["x-route-tier"]) == (200, "pro")
            assert answer.headers["x-route-reason"] == "rule"
            assert answer.data.endswith(b"data: [DONE]\n\n")
        else:
            assert (answer.status, answer.json()["error"]["code"]) == (502, "upstream_failed")
        metrics = (await gate.get("/metrics")).data.decode()
        assert 'gateway_holdback_total{outcome="broken",reason="5xx"} 1.0' in metrics


async def test_what_failover_brought_is_not_held_back(flash: Sim, pro: Sim) -> None:
    pro.config(status=503, only="answer")
    flash.config(weak="unsure")
    async with gateway(held_back(flash, pro, rules=[{"id": "all", "route": "pro"}])) as gate:
        answer, decision = await told(gate, body())
        assert (decision["tier"], decision["holdback"]) == ("flash", None)
        assert answer.json()["choices"][0]["logprobs"] is None


async def test_what_failover_brings_for_a_broken_start_has_no_log_probabilities_of_ours(flash: Sim, pro: Sim) -> None:
    flash.config(cut_after=3)
    last: JSON = {"last": {"model": pro.model, "replicas": [pro.url]}}
    rules: JSON = {"tiers": ["flash", "pro"], "to": "last"}
    policy = held_back(flash, pro, rules, tiers=last, callers={"plans": {"usual": {"may": ["pro", "last"]}}})
    async with gateway(policy) as gate:
        answer = await gate.ask(body(stream=True))
        assert answer.headers["x-route-tier"] == "pro"
        assert json.loads(pro.seen()[0]["body"])["logprobs"] is True
        assert b'"logprob":' not in answer.data


@pytest.mark.parametrize("fault", [{"weak": "loop"}, {"cut_after": 6}])
async def test_the_caller_pays_for_the_answer_and_not_for_the_start(flash: Sim, pro: Sim, fault: JSON) -> None:
    flash.config(**fault)
    async with gateway(held_back(flash, pro)) as gate:
        answer = await gate.ask(body(stream=True))
        assert answer.headers["x-route-tier"] == "pro"
        store = gate.front.doors.store
        await eventually(lambda: not any(gate.upstream.load().values()))
        report = reported(await store.ledger(), Asked(by=("tier", "kind")))
        assert {(row.tier, row.kind, row.overhead) for row in report.rows} == {
            ("flash", "draft", True),
            ("pro", "answer", False),
        }
        (start,) = [row for row in report.rows if row.overhead]
        made = flash.seen()[0]["tokens"]  # some of it after the gateway had left
        assert 0 < start.completion_tokens <= 2 * made, "what came of it, not what it could have made"


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_while_the_other_tier_is_asked_does_not_pay_for_the_start_as_well(
    flash: Sim, pro: Sim, stream: bool
) -> None:
    flash.config(weak="sorry")
    pro.config(stall_first=60)
    async with gateway(held_back(flash, pro)) as gate:
        line = await gate.open(body(stream=stream))
        await eventually(lambda: bool(pro.seen()))
        await line.leave()
        await eventually(lambda: not any(gate.upstream.load().values()))
        rows = reported(await gate.front.doors.store.ledger(), Asked(by=("tier", "kind"))).rows
        assert {(row.tier, row.kind) for row in rows} == {("flash", "draft"), ("pro", "answer")}


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_remembered_is_what_the_caller_got(flash: Sim, pro: Sim, stream: bool) -> None:
    for weak in (None, "sorry"):
        flash.config(weak=weak)
        async with gateway(held_back(flash, pro, caching={"ttl": "1m"})) as gate:
            first = await gate.ask(body(stream=stream, temperature=0))
            again = await gate.ask(body(stream=stream, temperature=0))
            assert (again.headers["x-route-cache"], again.data) == ("hit", first.data)
            other = await gate.ask(body(stream=not stream, temperature=0))
            assert other.headers["x-route-cache"] == "hit", "in the other form, too"
            own = await gate.ask(body(stream=stream, temperature=0), x_route_holdback="off")
            assert (own.headers["x-route-cache"], own.headers["x-route-tier"]) == ("miss", "flash")


async def test_those_who_ask_the_same_share_one_escalation(flash: Sim, pro: Sim) -> None:
    flash.config(weak="sorry", stall_first=0.1)
    async with gateway(held_back(flash, pro, caching={"ttl": "1m"})) as gate:
        asking = [gate.ask(body(stream=True, temperature=0)) for _ in range(4)]
        answers = await asyncio.gather(*asking)
        assert len({answer.data for answer in answers}) == len(pro.seen()) == len(flash.seen()) == 1
        metrics = (await gate.get("/metrics")).data.decode()
        assert 'gateway_holdback_total{outcome="escalated",reason="refusal"} 1.0' in metrics


@pytest.mark.parametrize(
    ("outcome", "fault", "of_pro"),
    [
        ("kept", {}, {}),
        ("kept", {"weak": "loop"}, {"stall_first": 0.3, "status": 503}),
        ("escalated", {"weak": "loop"}, {}),
        ("broken", {"cut_after": 6}, {}),
    ],
)
async def test_time_for_the_start_is_the_servers_and_not_the_gateways(
    flash: Sim, pro: Sim, capfd: pytest.CaptureFixture[str], outcome: str, fault: JSON, of_pro: JSON
) -> None:
    flash.config(stall_after=4, stall=0.3, **fault)
    pro.config(**of_pro)
    async with gateway(held_back(flash, pro), log_exchanges=True) as gate:
        answer = await gate.ask(body(stream=True))
        assert float(answer.headers["x-gateway-overhead-ms"]) < 300
    line = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert line["holdback"]["outcome"] == outcome
    assert line["ttft"] >= line["holdback"]["seconds"] >= 0.1


@dataclass
class Script:
    """What a server streams: events with their pauses, then its end."""

    events: list[bytes]
    pauses: list[float]
    end: str

    def wire(self, probed: bool) -> list[bytes]:
        told = b'{"content":[{"token":"x","logprob":-0.5,"top_logprobs":[{"logprob":-0.5},{"logprob":-3}]}]}'
        return [event.replace(b"@", told if probed else b"null") for event in self.events]


def script(tier: str, chance: random.Random) -> Script:
    """A random stream, some of whose starts are weak."""
    loop, refusal = chance.random() < 0.3, chance.random() < 0.2
    events = []
    for at in range(chance.randint(0, 30)):
        word = "again and " if loop else f"{tier}{chance.randint(0, 9 ** chance.randint(1, 9))} "
        member = b'"refusal"' if refusal and at == 2 else b'"content"'
        pad = b" " * chance.randint(0, 2)
        chunk = b'{"id":"%s","choices":[{"index":0,"delta":{%s:%s"%s"},"logprobs":%s@}]}'
        events.append(b"data: " + chunk % (tier.encode(), member, pad, word.encode(), pad) + b"\n\n")
    events.append(b'data: {"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n')
    pauses = [chance.choice([0, 0, 0, 0.001, 0.02]) for _ in events]
    end = chance.choice(["done", "done", "done", "cut", "error"])
    if end != "done":
        del events[chance.randint(0, len(events)) :]
    return Script(events, pauses, end)


DONE, ERROR = b"data: [DONE]\n\n", b'data: {"error":{"message":"of the server"}}\n\n'


@asynccontextmanager
async def scripts(tier: str, written: dict[int, Script]) -> AsyncIterator[Sim]:
    """A server that plays the script whose number stands in the prompt."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if not head or head.startswith(b"GET /v1/models "):
            writer.close()
            return
        size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        fields = json.loads(await reader.readexactly(size))
        play = written[int(fields["messages"][0]["content"])]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for event, pause in zip(play.wire(bool(fields.get("logprobs"))), play.pauses, strict=False):
            writer.write(event)
            await asyncio.sleep(pause)
        writer.write({"done": DONE, "error": ERROR, "cut": b""}[play.end])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Sim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", f"{tier}-model")


@dataclass
class Seen:
    whole: int = 0
    broken: int = 0
    tiers: set[str] = field(default_factory=set)


@pytest.mark.parametrize("seed", range(6))
async def test_what_a_caller_gets_is_of_exactly_one_answer(seed: int) -> None:
    chance, seen, cases = random.Random(seed), Seen(), range(40)
    written = {tier: {case: script(tier, chance) for case in cases} for tier in ("flash", "pro")}
    tokens, wait = chance.choice([1, 5, 24]), chance.choice(["1ms", "10ms", "1s"])

    def check(case: int, answer: Answer) -> None:
        """One answer's bytes from its first on: all of them, or up to where it broke, and the error."""
        if answer.status != 200:
            seen.broken += 1
            return
        play = written[answer.headers["x-route-tier"]][case]
        whole = b"".join(play.wire(probed=False))
        if play.end == "done":
            assert answer.data == whole + DONE
            seen.whole += 1
        else:
            got, error, _ = answer.data.partition(b'data: {"error"')
            assert whole.startswith(got)
            assert error
            seen.broken += 1
        seen.tiers.add(answer.headers["x-route-tier"])

    async with scripts("flash", written["flash"]) as flash, scripts("pro", written["pro"]) as pro:
        policy = held_back(flash, pro, {"tokens": tokens, "wait": wait})
        async with gateway(policy) as gate:
            asking = [gate.ask(body(str(case), stream=True)) for case in cases]
            for case, answer in enumerate(await asyncio.gather(*asking)):
                check(case, answer)
    assert seen.whole > 10
    assert seen.tiers == {"flash", "pro"}


async def test_cancelling_at_any_moment_leaks_nothing(flash: Sim, pro: Sim) -> None:
    flash.config(weak="loop")
    async with gateway(held_back(flash, pro)) as gate:
        for turns in range(40):
            line = await gate.open(body(stream=True))
            await asyncio.sleep(turns * 0.0005)
            await line.leave(reset=True)
        await eventually(lambda: not any(gate.upstream.load().values()))
