"""What crosses the gateway, and what never does: headers both ways, paths, addresses."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtest.servers import Sim
from tests.gateway.serving import CHAT, body, gateway, plain, scripted
from tests.tiers import policy_for

ANSWER = json.dumps({"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}).encode()
SENT = {"host", "user-agent", "content-type", "accept", "x-request-id", "content-length"}
TOLD = {
    "date", "content-type", "content-length", "connection", "x-request-id", "x-upstream-request-id", "x-route-tier",
    "x-route-rule", "x-route-reason", "x-route-policy", "x-route-cache", "x-gateway-overhead-ms", "retry-after",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
}  # fmt: skip


@asynccontextmanager
async def trap() -> AsyncIterator[tuple[str, list[object]]]:
    """An address that no policy names, and the connections that it got."""
    came: list[object] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", came


async def test_only_headers_of_ours_go_to_a_model_server_and_only_known_ones_come_back(pro: Sim) -> None:
    hop_by_hop = {
        "connection": "close, x-canary", "keep_alive": "timeout=5", "te": "trailers", "trailer": "x-canary",
        "proxy_authorization": "canary", "proxy_connection": "keep-alive", "x_canary": "canary", "cookie": "canary",
        "x_forwarded_host": "canary", "forwarded": "for=canary", "accept_encoding": "gzip",
    }  # fmt: skip
    answer = plain(
        ANSWER, connection="x-secret, close", keep_alive="timeout=9", set_cookie="canary", server="canary",
        x_secret="canary", proxy_authenticate="canary", upgrade="h2c", location="http://canary", retry_after="7",
        x_request_id="its-own", content_security_policy="canary", access_control_allow_origin="*",
    )  # fmt: skip
    async with (
        scripted(answer) as (url, seen),
        gateway(policy_for(Sim(url, "flash-model"), pro)) as gate,
    ):
        told = await gate.ask(body(model="flash"), **hop_by_hop)
        (head,) = seen
        names = {line.partition(b":")[0].decode() for line in head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
        assert names == SENT
        assert b"canary" not in head
        assert (told.status, told.data) == (200, ANSWER)
        assert told.headers.keys() <= TOLD
        assert "canary" not in str(told.headers)
        assert (told.headers["retry-after"], told.headers["x-upstream-request-id"]) == ("7", "its-own")


async def test_no_text_of_a_caller_becomes_a_header(flash: Sim, pro: Sim) -> None:
    texts = ["canary\r\nx-evil: 1", "canary\x00", "canary\u6f22", "canary" * 3000, "canary: auto", "auto:canary"]
    async with gateway(policy_for(flash, pro)) as gate:
        for text in texts:
            for asked in (body(model=text), body(user=text, metadata={"tier": text}), {text: 1, **body()}):
                answer = await gate.ask(asked)
                assert 200 <= answer.status < 500, "not dropped, not broken"
                assert "canary" not in str(answer.headers)
        wished = await gate.ask(body(), x_route_tier="canary")
        assert "canary" not in str(wished.headers)


async def test_only_two_paths_are_ever_asked_of_a_model_server(flash: Sim, pro: Sim) -> None:
    paths = [
        "/pause", "/v1/load_lora_adapter", "/metrics", "/tokenize", "/abort_requests", "/v1/chat/completions/../pause",
        "/v1/chat/completions?x=/pause", "/v1/completions%2f..%2fpause", "/invocations", "/update_weights", "/v1/score",
    ]  # fmt: skip
    async with gateway(policy_for(flash, pro)) as gate:
        for path in paths:
            await gate.ask(body(model="flash"), path)
        asked = {one["path"] for sim in (flash, pro) for one in sim.state()["requests"]}
        assert asked == {CHAT}, "by the one whose query alone is strange"


async def test_no_address_that_a_caller_names_is_ever_connected_to(flash: Sim, pro: Sim) -> None:
    async with trap() as (place, came), gateway(policy_for(flash, pro)) as gate:
        url = f"http://{place}/"
        names = ["api_base", "base_url", "api_url", "endpoint", "webhook", "callback_url", "url", "proxy", "file"]
        host, _, port = place.partition(":")
        spelled = [
            url,
            f"http://0x7f000001:{port}/",
            f"http://2130706433:{port}/",
            f"//{place}/",
            f"http:\\\\{place}",
        ]
        for link in spelled:
            image = {"type": "image_url", "image_url": {"url": link}}
            refused = await gate.ask({"model": "flash", "messages": [{"role": "user", "content": [image]}]})
            assert (refused.status, refused.json()["error"]["param"]) == (400, "messages[0].content[0]")
            await gate.ask(body(model="flash", **dict.fromkeys(names, link)))
            await gate.ask(body(model="flash"), host=place, x_forwarded_host=host, x_route_upstream=link)
        assert came == []
        assert all(one["status"] == 200 for one in flash.seen())


@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
async def test_where_no_key_is_asked_for_no_page_from_elsewhere_is_answered(flash: Sim, pro: Sim, path: str) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://localhost:1"):
            answer = await gate.ask(body(model="flash"), path, origin=origin, content_type="text/plain")
            assert (answer.status, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert flash.seen() == []
        assert (await gate.ask(body(model="flash"), path, origin="http://localhost")).status == 200, "our own page"
    for listed in ("https://chat.example", "*"):
        async with gateway(policy_for(flash, pro), cors_origins=listed) as gate:
            assert (await gate.ask(body(model="flash"), path, origin="https://chat.example")).status == 200
