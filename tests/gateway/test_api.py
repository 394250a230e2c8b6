import asyncio
import json
import re
import time
from itertools import product
from typing import Any

import pytest

from gateway.standing import duration
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, COMPLEX, PATIENCE, SIMPLE, Gateway, Line, body, eventually, gateway
from tests.tiers import JSON, policy_for

pytestmark = pytest.mark.usefixtures("each_front")

ALWAYS = {
    "x-request-id", "x-route-tier", "x-route-rule", "x-route-reason", "x-route-policy", "x-route-cache",
    "x-gateway-overhead-ms",
}  # fmt: skip
LIMITS = {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}
KEY = "a-key-that-is-long-enough"
HIT: JSON = {"temperature": 0}


def aborted(sim: Sim, kind: str = "answer") -> bool:
    seen = sim.seen(kind)
    return bool(seen) and all(entry["state"] == "aborted" for entry in seen)


def running(sim: Sim, kind: str = "answer") -> bool:
    return any(entry["state"] == "running" for entry in sim.seen(kind))


async def test_a_simple_prompt_is_answered_by_flash_and_a_complex_one_by_pro(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        simple, hard = await gate.ask(body(SIMPLE)), await gate.ask(body(COMPLEX))
        assert (simple.status, simple.json()["model"], simple.headers["x-route-tier"]) == (
            200,
            "flash-model",
            "flash",
        )
        assert (hard.status, hard.json()["model"], hard.headers["x-route-tier"]) == (200, "pro-model", "pro")


async def test_every_answer_has_the_headers_once_refusals_too(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, failover={"tiers": {"flash": [], "pro": []}})) as gate:
        answers = [await gate.ask(body()), await gate.ask(body(stream=True))]
        answers.append(await gate.ask(body(model="nobody-knows-it")))
        flash.config(status=500)
        answers.append(await gate.ask(body(model="flash")))
        assert [answer.status for answer in answers] == [200, 200, 404, 502]
        for answer in answers:
            assert (ALWAYS | LIMITS) - answer.headers.keys() == set()
            assert answer.repeated == []
            assert float(answer.headers["x-gateway-overhead-ms"]) >= 0
        assert (ALWAYS - (await gate.ask(b"no json")).headers.keys()) == set()
        told = answers[3].headers
        assert (told["x-route-tier"], told["x-route-rule"]) == ("none", "caller"), "who failed is told by the rule"


async def test_a_refused_caller_hears_its_limits(flash: Sim, pro: Sim) -> None:
    plans = {"plans": {"usual": {"requests_per_minute": 1, "concurrency": 1}}}
    async with gateway(policy_for(flash, pro, callers=plans)) as gate:
        assert (await gate.ask(body())).status == 200
        refused = await gate.ask(body())
        assert (refused.status, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert ALWAYS | LIMITS | {"retry-after", "retry-after-ms"} <= refused.headers.keys()
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        wait = int(refused.headers["retry-after-ms"])
        assert refused.json()["error"]["message"].endswith(f" Try again in {duration(wait * 1000).decode()}.")


BAD: list[tuple[str, bytes, int, str | None]] = [
    (CHAT, b"", 400, None),
    (CHAT, b"null", 400, None),
    (CHAT, b"[]", 400, None),
    (CHAT, b'"x"', 400, None),
    (CHAT, b"{}", 400, "messages"),
    (CHAT, b'{"messages": []}', 400, "messages"),
    (CHAT, b'{"messages": null}', 400, "messages"),
    (CHAT, b'{"messages": "hi"}', 400, "messages"),
    (CHAT, b'{"messages": [{"role": "user", "content": 1}]}', 400, "messages"),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', 400, None),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', 400, "stream"),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "prompt": "decoy"}', 400, "prompt"),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "model": "\\u0000\\r\\n"}', 404, "model"),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "model": "' + b"x" * 10_000 + b'"}', 404, "model"),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "model": "\xe6\xa8\xa1"}', 404, "model"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 200, None),
    (CHAT, b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, None),
    (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"pattern": "a{2000}"}]}', 400, "tools"),
    (CHAT, b'{"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, None),
    ("/v1/completions", b"{}", 400, "prompt"),
    ("/v1/completions", b'{"prompt": 7}', 400, "prompt"),
    ("/v1/completions", b'{"prompt": "x", "messages": [{"role": "user", "content": "decoy"}]}', 400, "messages"),
]  # fmt: skip


async def test_a_bad_body_gets_an_error_object(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        for path, data, status, param in BAD:
            answer = await gate.ask(data, path)
            if answer.status == 400 and status == 200:
                continue  # who reads JSON may refuse half a surrogate pair, too
            assert answer.status == status, data[:100]
            if status >= 400:
                error = answer.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}, data[:100]
                assert error["type"] == "invalid_request_error", data[:100]
                assert param is None or str(error["param"]).startswith(param), data[:100]


async def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), max_body=2048) as gate:
        assert (await gate.ask(b"x" * 100_000)).status == 413
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode() + b"fa0\r\n" + b"x" * 4000 + b"\r\n0\r\n\r\n")
        answer = await Line(reader, writer).answer()
        assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_another_method_on_a_completion_path_is_405(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"):
            answer = await gate.get(CHAT, method)
            assert (answer.status, answer.headers["allow"]) == (405, "POST"), method
            assert method == "HEAD" or answer.json()["error"]["code"] == "method_not_allowed"
            assert answer.data == b"" or method != "HEAD"


async def test_a_websocket_is_426_by_which_codex_knows_to_post(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for path, offer, status in ((CHAT, "WebSocket", 426), ("/v1/responses", "websocket", 426), (CHAT, "h2c", 405)):
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            head = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: {offer}\r\n\r\n"
            writer.write(head.encode())
            answer = await Line(reader, writer).answer()
            told = {405: ("method_not_allowed", None), 426: ("websocket_not_served", "HTTP/1.1")}[status]
            assert (answer.status, answer.headers["allow"]) == (status, "POST")
            assert (answer.json()["error"]["code"], answer.headers.get("upgrade")) == told


async def test_a_wrong_key_is_401_before_the_body_is_read(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), everyone=False, api_key=KEY) as gate:
        refused = await gate.ask(b"{", content_length="100", authorization="Bearer wrong")
        assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await gate.ask(body(), authorization=f"Bearer {KEY}")).status == 200


async def test_only_a_request_id_in_our_form_comes_back(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for given, path in product(["abc-1._X", "a" * 128, "", "a b", "a" * 129, "é", "<script>"], [CHAT, "/health"]):
            sent = {"x_request_id": given}
            answer = await (gate.ask(body(), **sent) if path == CHAT else gate.get(path, **sent))
            own = re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) is None
            assert (answer.headers["x-request-id"] != given) == own
            assert len(answer.headers["x-request-id"]) == (32 if own else len(given))


async def test_nothing_else_of_the_caller_comes_back_or_goes_on(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        headers = {"x_sim_fault": "status=500", "cookie": "canary", "x_forwarded_for": "canary", "te": "canary"}
        answer = await gate.ask(body(user="canary", priority=1), authorization="Bearer canary", **headers)
        assert answer.status == 200
        assert answer.headers["x-route-stripped"] == "priority"
        assert "canary" not in str(answer.headers)
        assert "canary" not in str([entry["headers"] for entry in flash.state()["requests"]])


async def test_a_servers_4xx_passes_unchanged(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body(model="flash", temperature=-5, stream=True))
        assert answer.status == 400
        assert answer.json()["error"]["type"] == "BadRequestError", "in the server's words"
        assert answer.headers["content-type"] == "application/json"
        assert pro.seen() == []
        flash.config(status=499)  # nginx's, of no name that HTTP knows
        assert (await gate.ask(body(model="flash"))).status == 499


@pytest.mark.parametrize("fault", [{"cut_after": 3}, {"cut_after": 3, "cut_by": "close"}, {"no_done": True}])
async def test_a_truncated_stream_ends_in_an_error_event_and_is_not_remembered(
    flash: Sim, pro: Sim, fault: JSON
) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        flash.config(only="answer", **fault)
        for _ in range(2):
            cut = await gate.ask(body(stream=True, **HIT))
            *_, last = cut.events()
            assert cut.complete
            assert json.loads(last)["error"]["code"] == "upstream_failed"
            assert b"[DONE]" not in cut.data
            assert cut.headers["x-route-cache"] == "miss"
        assert pro.seen() == [], "after the first byte nobody else is asked"
        flash.config(cut_after=None, no_done=False)
        whole = await gate.ask(body(stream=True, **HIT))
        assert (whole.headers["x-route-cache"], whole.events()[-1]) == ("miss", b"[DONE]")


async def test_the_decision_is_told_in_json_in_the_stream_and_for_a_hit(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, caching={"ttl": "1m"})) as gate:
        for cache in ("miss", "hit"):
            answer = await gate.ask(body(COMPLEX, **HIT), x_route_explain="1")
            told = answer.json()["route"]
            stream = await gate.ask(body(COMPLEX, stream=True, seed=2, **HIT), x_route_explain="1")
            chunk = json.loads(stream.events()[-2])
            assert stream.events()[-1] == b"[DONE]"
            assert (chunk["object"], chunk["model"], chunk["choices"]) == ("chat.completion.chunk", "pro-model", [])
            for found in (told, chunk["route"]):
                assert (found["tier"], found["cache"], found["policy"]["name"]) == ("pro", cache, "test")
                assert found["route"]["rule"] == "triaged"
                assert found["overhead_ms"] >= 0
                assert COMPLEX not in json.dumps(found)
            if cache == "miss":
                assert (told["verdict"]["label"], told["draft"]) == ("complex", "wasted")
        plain = await gate.ask(body(COMPLEX, **HIT))
        assert "route" not in plain.json(), "what is remembered holds no explanation"


async def test_who_may_not_have_explanations_is_told_so(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, callers={"plans": {"usual": {"explain": False}}})) as gate:
        answer = await gate.ask(body(), x_route_explain="1")
        assert (answer.status, answer.json()["error"]["code"]) == (403, "explain_not_allowed")


async def test_overhead_is_not_the_servers_time_nor_the_callers(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.3)
    async with gateway(policy_for(flash, pro, triage={"speculate": "never"})) as gate:
        await gate.ask(body(model="flash"))
        data, began = json.dumps(body()).encode(), time.monotonic()
        line = await gate.open(data[:10], content_length=str(len(data)))
        await asyncio.sleep(0.2)
        line.writer.write(data[10:])
        answer = await line.answer()
        most = time.monotonic() - began - 0.2 - 2 * 0.3  # the caller's, the verdict's and the answer's own time
        assert 0 < float(answer.headers["x-gateway-overhead-ms"]) / 1000 < most + 0.01
        flash.config(status=500)
        began = time.monotonic()
        refused = await gate.ask(body(model="flash"))
        assert float(refused.headers["x-gateway-overhead-ms"]) / 1000 < time.monotonic() - began - 0.3 + 0.01


# -- the caller leaves -------------------------------------------------------------------------------------------------

PHASES: list[Any] = [
    pytest.param({"only": "triage", "stall_first": 30.0}, "never", {}, "triage", id="triage alone"),
    pytest.param({"stall_first": 30.0}, "always", {}, "triage", id="triage and draft"),
    pytest.param(
        {"stall_first": 30.0}, "never", {"model": "flash", "stream": True}, "answer", id="before the first byte"
    ),
    pytest.param({"stall_after": 3}, "never", {"model": "flash", "stream": True}, "answer", id="mid-stream"),
    pytest.param({"stall_first": 30.0}, "never", {"model": "flash"}, "answer", id="json"),
    pytest.param({"stall_first": 30.0}, "always", HIT, "triage", id="the leader of a shared answer"),
]


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize(("fault", "speculate", "fields", "kind"), PHASES)
async def test_a_caller_who_leaves_stops_every_server_at_once(
    flash: Sim, pro: Sim, fault: JSON, speculate: str, fields: JSON, kind: str, reset: bool
) -> None:
    policy = policy_for(
        flash, pro, triage={"speculate": speculate, "timeout": "30s"}, caching={"ttl": "1m"},
        callers={"plans": {"usual": {"concurrency": 1}}},
    )  # fmt: skip
    flash.config(**fault)
    async with gateway(policy) as gate:
        line = await gate.open(body(**fields))
        await eventually(lambda: running(flash, kind))
        if fields.get("stream") and "stall_after" in fault:
            await line.some()
        await line.leave(reset=reset)
        await eventually(lambda: not running(flash) and not running(flash, "triage"))
        assert aborted(flash, kind)
        assert kind == "answer" or speculate == "never" or aborted(flash, "answer"), "the draft, too"
        assert pro.state()["requests"] == []
        flash.reset()
        await eventually(lambda: not any(gate.upstream.load().values()))
        assert (await gate.ask(body())).status == 200, "the slot has come back"


LATE: list[Any] = [
    pytest.param({"only": "triage", "stall_first": 30.0}, "never", {}, id="triage"),
    pytest.param({"stall_first": 30.0}, "always", {}, id="triage and draft"),
    pytest.param({"stall_first": 30.0}, "never", {"model": "flash", "stream": True}, id="before the first byte"),
    pytest.param({"stall_first": 30.0}, "never", {"model": "flash"}, id="json"),
    pytest.param({"stall_first": 30.0}, "never", {"model": "flash", "temperature": 0}, id="a shared answer"),
    pytest.param({"stall_after": 3}, "never", {"model": "flash", "stream": True}, id="mid-stream"),
]


@pytest.mark.parametrize(("fault", "speculate", "fields"), LATE)
async def test_a_callers_deadline_ends_every_wait_for_it(
    flash: Sim, pro: Sim, fault: JSON, speculate: str, fields: JSON
) -> None:
    triage = {"speculate": speculate, "timeout": "30s"}
    policy = policy_for(flash, pro, triage=triage, caching={"ttl": "1m"}, failover={"on": "connect"})
    flash.config(**fault)
    async with gateway(policy) as gate:
        waits, begun = fault.get("only") == "triage", "stall_after" in fault
        answer = await gate.ask(body(**fields), x_request_timeout="2" if waits else "1" if begun else "0.25")
        if waits:
            assert answer.status == 200, "a fifth of the time is the verdict's, the rest the answer's"
            assert answer.headers["x-route-reason"] == "timeout"
        else:
            assert answer.status == (200 if begun else 504)
            told = json.loads(answer.events()[-1]) if begun else answer.json()
            assert told["error"]["code"] == "deadline_exceeded"
            assert b"[DONE]" not in answer.data
            assert answer.complete
        await eventually(lambda: not running(flash) and not running(flash, "triage"))


async def test_a_deadline_is_a_number_of_seconds(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for given in ("soon", "0", "-1", "1e3", "nan", "", "0x10", "9" * 7):
            answer = await gate.ask(body(), x_request_timeout=given)
            assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_timeout"), given


async def test_a_caller_who_leaves_while_sending_leaves_nothing_behind(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, callers={"plans": {"usual": {"concurrency": 1}}})) as gate:
        line = await gate.open(b'{"messages', content_length="1000")
        await asyncio.sleep(0.05)
        await line.leave(reset=True)
        await eventually(lambda: 'status="499"' in metrics(gate))
        assert (await gate.ask(body())).status == 200
        assert len(flash.seen()) == 1


async def test_a_caller_who_leaves_while_the_store_decides_leaves_nothing_behind(flash: Sim, pro: Sim) -> None:
    class SlowStore(MemoryStore):
        asked, decides = asyncio.Event(), asyncio.Event()

        async def admit(self, *args: Any) -> Any:
            self.asked.set()
            await self.decides.wait()
            return await super().admit(*args)

    async with gateway(policy_for(flash, pro), store := SlowStore()) as gate:
        line = await gate.open(body())
        await asyncio.wait_for(store.asked.wait(), PATIENCE)
        await line.leave()
        await eventually(lambda: 'status="499"' in metrics(gate))
        store.decides.set()
        await asyncio.sleep(0.05)
        assert flash.state()["requests"] == []


def metrics(gate: Gateway) -> str:
    return gate.front.doors.telemetry.render().decode()


async def test_who_takes_nothing_of_a_stream_is_left_after_the_tiers_total_time(flash: Sim, pro: Sim) -> None:
    tiers = {"flash": {"timeouts": {"total": "1s"}}}
    async with gateway(policy_for(flash, pro, tiers=tiers)) as gate:
        fields = body(model="flash", stream=True, max_tokens=200_000, ignore_eos=True)
        policy = policy_for(flash, pro, tiers=tiers, callers={"plans": {"usual": {"fields": ["ignore_eos"]}}})
        gate.front.doors.policy = policy
        line, began = await gate.open(fields), time.monotonic()
        await eventually(lambda: running(flash))
        await eventually(lambda: not any(gate.upstream.load().values()))
        assert time.monotonic() - began > 0.9
        await line.leave(reset=True)
