import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.protocol import MAX_FIELDS, MAX_HEAD, MAX_WAITING
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, PATIENCE, SIMPLE, Answer, Gateway, body, eventually, gateway, parsed
from tests.tiers import policy_for

pytestmark = pytest.mark.usefixtures("each_front")

QUESTION = json.dumps(body(model="flash")).encode()
LENGTH = b"content-length: %d\r\n" % len(QUESTION)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: gateway\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(QUESTION), QUESTION)
# What Java's HttpClient, and with it Spring AI and LangChain4j, adds to each request that goes without TLS.
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\nUpgrade: h2c\r\n"
# A second request that must never be served, whoever reads the first one's end differently.
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"


async def said(port: int, *parts: bytes) -> bytes:
    """All that comes back for these bytes, sent one part at a time, until the gateway closes. It may close over bytes
    that it has no use for."""
    loop, raw = asyncio.get_running_loop(), b""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setblocking(False)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                await loop.sock_sendall(line, part)
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(PATIENCE):
                while data := await loop.sock_recv(line, 65536):
                    raw += data
    return raw


def only(raw: bytes) -> Answer:
    """The one answer that these bytes are; its body ends where it says."""
    answer = parsed(raw)
    assert raw.count(b"HTTP/1.1 ") == 1, "more than one answer came"
    return answer


AMBIGUOUS = {
    "two lengths": POST + LENGTH + b"content-length: 3\r\n\r\n" + QUESTION,
    "the same length twice": POST + LENGTH + LENGTH + b"\r\n" + QUESTION,
    "a list of lengths": POST + b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"content-length: +3\r\n\r\nabc",
    "a negative length": POST + b"content-length: -1\r\n\r\n",
    "a hexadecimal length": POST + b"content-length: 0x3\r\n\r\nabc",
    "a length with a blank in it": POST + b"content-length: 1 0\r\n\r\nabc",
    "an empty length": POST + b"content-length: \r\n\r\n",
    "a length over 64 bits": POST + b"content-length: 18446744073709551617\r\n\r\n",
    "length, then chunked": POST + LENGTH + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked, then length": CHUNKED + b"content-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked twice": CHUNKED + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked, identity": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": POST + b"transfer-encoding: identity\r\n\r\n" + SMUGGLED,
    "gzip, chunked": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked behind a tab": POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a blank before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a blank before the name": POST + b" transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a folded header": POST + b"x: a\r\n b\r\n\r\n",
    "a folded length": POST + b"content-length:\r\n 3\r\n\r\nabc",
    "chunked by HTTP/1.0": b"POST / HTTP/1.0\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two keys": POST + LENGTH + b"authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n" + QUESTION,
    "two keys as Anthropic sends them": POST + LENGTH + b"x-api-key: a\r\nx-api-key: a\r\n\r\n" + QUESTION,
    "NUL in a value": GET + b"x: a\x00b\r\n\r\n",
    "NUL in a name": GET + b"x\x00: a\r\n\r\n",
    "NUL in the target": b"GET /health\x00 HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a line end of CR alone": GET + b"x: a\rtransfer-encoding: chunked\r\n\r\n",
    "a line end of LF alone": GET + b"x: a\ny: b\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "no name": GET + b": a\r\n\r\n",
    "a chunk's size with a sign": CHUNKED + b"\r\n+3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with 0x": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size with a blank": CHUNKED + b"\r\n 3\r\nabc\r\n0\r\n\r\n",
    "a chunk's size that is none": CHUNKED + b"\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "a chunk's size over 64 bits": CHUNKED + b"\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"\r\n2\r\nabc\r\n0\r\n\r\n",
    "a chunk's size ended by LF alone": CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "a chunk ended by LF alone": CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n",
    "a chunk's extension ended by LF": CHUNKED + b"\r\n3;a\nabc\r\n0\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"host: gateway\r\n\r\n",
    "a URL and no Host": b"GET http://gateway/health HTTP/1.1\r\n\r\n",
    "a URL and two Hosts": b"GET http://gateway/health HTTP/1.1\r\nhost: gateway\r\nhost: gateway\r\n\r\n",
    "a URL without a host": b"GET http:///health HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a URL with a user": b"GET http://a@gateway/health HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a URL with a fragment": b"GET http://gateway/health#x HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a URL of something else": b"GET ftp://gateway/health HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "no slash": b"GET health HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a tunnel": b"CONNECT gateway:80 HTTP/1.1\r\nhost: gateway:80\r\n\r\n",
    "a fragment": b"GET /health#x HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a blank in the target": b"GET /health /ready HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "a byte over 127 in the target": b"GET /h\xe9alth HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nhost: gateway\r\n\r\n",
    "HTTP/11": b"GET /health HTTP/11\r\nhost: gateway\r\n\r\n",
    "lower-case http": b"GET /health http/1.1\r\nhost: gateway\r\n\r\n",
    "an unknown method": b"NONSENSE / HTTP/1.1\r\nhost: gateway\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
}  # fmt: skip
HOSTS = [
    b"a/b",
    b"a?b",
    b"a#b",
    b"u@a",
    b"a b",
    b"a:b",
    b"a:1:2",
    b"a:999999",
    b"",
    b"[::1",
    b"a,b",
    b"a\\b",
    b"\xe9",
    b"*",
    b"-",
]


async def test_what_two_readers_could_read_in_two_ways_is_refused_and_the_line_closed(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        vectors = AMBIGUOUS | {f"Host: {host!r}": GET.replace(b"gateway", host) + b"\r\n" for host in HOSTS}
        for name, vector in vectors.items():
            answer = only(await said(gate.port, vector + SMUGGLED))
            assert answer.status == 400, name
            assert answer.headers["connection"] == "close", name
            assert answer.json()["error"].keys() == {"message", "type", "param", "code"}, name
        assert flash.seen() == [], "nothing of these reached a model"


async def test_what_was_in_order_of_one_request_does_not_excuse_the_next_one(flash: Sim, pro: Sim) -> None:
    """Its headers are looked at again unless they are the same."""
    key, upgrade = b"authorization: Bearer a\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n"
    pairs = [
        (POST + key + LENGTH, POST + key + key + LENGTH),
        (POST + key + LENGTH, POST + key.replace(b"authorization", b"content-length") + LENGTH),
        (POST + LENGTH, b"CONNECT" + POST[4:] + LENGTH),
        (POST + LENGTH, POST + LENGTH + upgrade),
        (POST + LENGTH, POST.replace(b"gateway", b"a b") + LENGTH),
        (POST + LENGTH, POST + LENGTH.replace(b"length", b"Length: 1,")),
        (POST + LENGTH, POST.replace(b"host: gateway", b"x: y") + LENGTH),
        (POST + LENGTH, POST + LENGTH.replace(b"content-length", b"transfer-encoding")),
        (POST + LENGTH, POST.replace(b"1.1", b"1.2") + LENGTH),
    ]
    async with gateway(policy_for(flash, pro)) as gate:
        for good, bad in pairs:
            raw = await said(gate.port, good + b"\r\n" + QUESTION + bad + b"\r\n" + QUESTION + SMUGGLED)
            assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"], bad


async def test_hosts_in_form_are_served(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for host in ("gateway", "GATEWAY:80", "10.0.0.1:8080", "[::1]:8080", "a_b.example.", "xn--e1a"):
            assert (await gate.get("/health", host=host)).status == 200, host


async def test_a_whole_url_is_served_as_its_path_and_its_host_is_the_one_that_counts(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), hosts="api.example") as gate:
        for url, status, version, host in (
            (b"http://api.example/health", 200, b"1.1", b"host: elsewhere\r\n"),
            (b"HTTP://API.example:8080/v1/models?x=/", 200, b"1.1", b"host: elsewhere\r\n"),
            (b"https://api.example?x", 404, b"1.1", b"host: api.example\r\n"),
            (b"http://api.example//health", 404, b"1.1", b"host: api.example\r\n"),
            (b"http://api.example/v1/../health", 404, b"1.1", b"host: api.example\r\n"),
            (b"http://elsewhere/health", 421, b"1.1", b"host: api.example\r\n"),
            (b"http://elsewhere/health", 421, b"1.0", b""),
            (b"http://api.example/health", 200, b"1.0", b""),
        ):
            close = b"connection: close\r\n\r\n"
            answer = only(await said(gate.port, b"GET " + url + b" HTTP/" + version + b"\r\n" + host + close))
            assert answer.status == status, url
        head = b"POST http://api.example/v1/chat/completions HTTP/1.1\r\nhost: elsewhere\r\n"
        for more in (b"connection: close\r\n", OFFER.replace(b"Upgrade,", b"close, Upgrade,")):
            assert only(await said(gate.port, head + more + LENGTH + b"\r\n" + QUESTION)).status == 200


async def test_only_hosts_that_are_listed_are_served_when_some_are(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), hosts="api.example, [::1]") as gate:
        for host, status in (
            ("API.example:80", 200),
            ("[::1]:80", 200),
            ("evil.example", 421),
            ("api.example.", 421),
        ):
            assert (await gate.get("/health", host=host)).status == status


async def test_a_path_has_one_spelling(flash: Sim, pro: Sim) -> None:
    spelled = [
        "/%68ealth", "/health%2f", "//health", "/./health", "/v1/../health", "/v1/%2e%2e/health", "/health;x",
        "/HEALTH", "/v1/chat%2Fcompletions", "/v1/%63hat/completions", "//v1/chat/completions", "/v1//chat/completions",
        "/v1/chat/completions/.", "/v1\\chat\\completions", "/v1/chat/completions%00", "/%6detrics", "/metrics%3f",
    ]  # fmt: skip
    async with gateway(policy_for(flash, pro)) as gate:
        for path in spelled:
            for method in ("GET", "POST"):
                answer = await gate.ask(QUESTION, path, method)
                assert answer.status in {400, 404}, path
        assert flash.seen() == []
        assert (await gate.get("/v1/models/%66lash")).json()["id"] == "flash", "a model's name may be escaped"


async def test_framing_that_is_in_order_is_served(flash: Sim, pro: Sim) -> None:
    close = b"connection: close\r\n\r\n"
    in_order = [
        POST + LENGTH + close + QUESTION,
        b"\r\n\r\n" + POST + LENGTH + close + QUESTION,
        CHUNKED + close + CHUNK + b"0\r\n\r\n",
        CHUNKED.replace(b"chunked", b"CHUNKED") + close + CHUNK.replace(b"\r\n", b";a=b\r\n", 1) + b"000\r\n\r\n",
        CHUNKED + close + CHUNK + b"0\r\nhost: other\r\nauthorization: x\r\n\r\n",
        POST + LENGTH + b"expect: 100-continue\r\n" + close + QUESTION,
        POST.replace(b"HTTP/1.1", b"HTTP/1.0") + LENGTH + b"\r\n" + QUESTION,
    ]
    async with gateway(policy_for(flash, pro)) as gate:
        for vector in in_order:
            for parts in ([vector], [vector[i : i + 7] for i in range(0, len(vector), 7)]):
                answer = only((await said(gate.port, *parts)).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))
                assert answer.status == 200, (vector, answer.data)
                assert answer.json()["model"] == "flash-model"


async def test_a_refusal_reaches_a_caller_who_sends_on(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(CHUNKED + b"\r\n1\r\n{\r\n+")
        for _ in range(5):
            await asyncio.sleep(0.01)
            writer.write(b"more")
        assert only(await asyncio.wait_for(reader.read(), PATIENCE)).status == 400
        writer.close()


async def test_an_upgrade_is_not_taken_and_what_follows_it_is_not_read(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        asked = GET + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        for parts in ([asked + SMUGGLED], [asked, SMUGGLED]):
            assert only(await said(gate.port, *parts)).status == 200


async def test_the_body_beside_an_offer_of_http2_is_read(flash: Sim, pro: Sim) -> None:
    long = json.dumps(body("x " * 100_000, model="flash")).encode()
    offers = [
        POST + LENGTH + OFFER + b"\r\n" + QUESTION,
        CHUNKED + OFFER + b"\r\n" + CHUNK + b"0\r\n\r\n",
        POST + OFFER + b"content-length: %d\r\n\r\n" % len(long) + long,
    ]
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        for size in (7, 1000, 1_000_000):
            for offer in offers[: 2 if size == 7 else 3]:
                for at in range(0, len(offer), size):
                    writer.write(offer[at : at + size])
                    await asyncio.sleep(0)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 "), head
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        writer.close()
        said = [json.loads(one["body"])["messages"][0]["content"] for one in flash.seen()]
        assert said == [SIMPLE, SIMPLE, *[SIMPLE, SIMPLE, "x " * 100_000] * 2]


async def test_the_last_request_of_a_connection_may_offer_http2(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        last = POST + LENGTH + OFFER.replace(b"Upgrade,", b"close, Upgrade,") + b"\r\n" + QUESTION
        assert only(await said(gate.port, last + SMUGGLED)).status == 200


async def test_a_tunnel_is_refused_whatever_comes_with_it(flash: Sim, pro: Sim) -> None:
    tunnel = (POST + LENGTH).replace(b"POST", b"CONNECT") + b"\r\n" + QUESTION
    offering = tunnel.replace(b"\r\n", b"\r\n" + OFFER, 1)
    async with gateway(policy_for(flash, pro)) as gate:
        for parts in ([tunnel], [tunnel[:50], tunnel[50:]], [offering], [offering.replace(b"Connection:", b"x:")]):
            assert only(await said(gate.port, *parts)).status == 400


async def test_an_offer_that_does_not_wait_for_its_turn_is_refused(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        raw = await said(gate.port, (POST + LENGTH + OFFER + b"\r\n" + QUESTION) * 1000)
        assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


async def test_no_more_requests_wait_on_a_connection_than_there_is_room_for(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        for one in (GET + b"\r\n", POST + LENGTH + b"\r\n" + QUESTION):
            raw = await said(gate.port, one * 400)
            statuses = [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [b"200"] * (MAX_WAITING + 1) + [b"400"]


async def test_a_head_of_many_short_lines_is_too_large_before_and_at_its_end(flash: Sim, pro: Sim) -> None:
    lines = [b"%x:\r\n" % number for number in range(MAX_FIELDS + 1)]
    head, fits = GET + b"".join(lines), GET + b"connection: close\r\n" + b"".join(lines[3:])
    async with gateway(policy_for(flash, pro)) as gate:
        assert only(await said(gate.port, fits + b"\r\n")).status == 200
        for parts in ([head], [head + b"\r\n"], [head[:99], head[99:]]):
            assert only(await said(gate.port, *parts)).status == 431


async def test_what_is_refused_before_the_app_sees_it_is_counted_by_status(flash: Sim, pro: Sim) -> None:
    refused = {
        400: POST + b"content-length: 1, 2\r\n\r\n",
        408: GET,
        421: GET.replace(b"gateway", b"elsewhere") + b"\r\n",
        431: GET + b"x: " + b"a" * MAX_HEAD + b"\r\n\r\n",
    }
    async with gateway(policy_for(flash, pro), hosts="localhost, gateway", request_timeout=0.2) as gate:
        await (await gate.open(b"{", content_length="9")).leave()  # is late, too, but nobody is refused
        for status, vector in refused.items():
            await said(gate.port, vector)
            shown = (await gate.get("/metrics")).data.decode()
            assert f'gateway_protocol_refusals_total{{status="{status}"}} 1.0' in shown


async def test_who_is_refused_while_the_gateway_would_ask_for_the_body_hears_that_and_no_failure_is_logged(
    flash: Sim, pro: Sim, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = CHUNKED + b"expect: 100-continue\r\n\r\nno size\r\n"
    async with gateway(policy_for(flash, pro)) as gate:
        for path in (CHAT, "/v1/route"):
            assert only(await said(gate.port, wrong.replace(CHAT.encode(), path.encode()))).status == 400
    assert [one.getMessage() for one in caplog.records if one.exc_info] == []


async def test_a_refusal_has_the_id_of_the_request_that_it_refuses(flash: Sim, pro: Sim) -> None:
    named, wrong = b"x-request-id: mine\r\n", CHUNKED + b"x-request-id: other\r\n\r\nxyz\r\n"
    async with gateway(policy_for(flash, pro)) as gate:
        for path, name in ((CHAT, None), ("/v1/messages", "other")):
            refused = parsed(await said(gate.port, wrong.replace(CHAT.encode(), path.encode()))).headers
            assert (refused["x-request-id"], refused.get("request-id")) == ("other", name), (
                "as Anthropic's SDK reads it"
            )
        _, second = (await said(gate.port, GET + named + b"\r\n", b"nonsense\r\n\r\n")).split(b"HTTP/1.1 400")
        assert len(second.partition(b"x-request-id: ")[2].partition(b"\r\n")[0]) == 32, "one of its own"


async def test_head_is_refused_without_a_body(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        raw = await said(gate.port, GET.replace(b"GET", b"HEAD") + b"host: another\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert raw.endswith(b"\r\n\r\n")
        assert b"content-length: 0" not in raw


# -- bounds ------------------------------------------------------------------------------------------------------------


async def test_a_head_over_32_kb_is_431_however_it_comes(flash: Sim, pro: Sim) -> None:
    many = b"".join(b"x-%d: %s\r\n" % (i, b"a" * 90) for i in range(400))
    heads = [
        GET + b"x: " + b"a" * MAX_HEAD + b"\r\n\r\n",
        GET + b"x: " + b"a" * 2_000_000,
        GET + many + b"\r\n",
        GET + b"a" * MAX_HEAD + b": x\r\n\r\n",
        b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1\r\nhost: g\r\n\r\n",
        GET + b"\r\n" + GET + b"x: " + b"a" * MAX_HEAD + b"\r\n\r\n",
    ]
    async with gateway(policy_for(flash, pro)) as gate:
        for head in heads:
            raw = await said(gate.port, head)
            last = parsed(raw[raw.rindex(b"HTTP/1.1 ") :])
            assert (last.status, last.json()["error"]["code"]) == (431, "headers_too_large")
        assert (await gate.get("/health", x="a" * (MAX_HEAD - 200))).status == 200


async def test_a_head_over_32_kb_is_431_though_it_begins_in_the_wake_of_another_request(flash: Sim, pro: Sim) -> None:
    good = POST + LENGTH + b"\r\n" + QUESTION
    async with gateway(policy_for(flash, pro)) as gate:
        for first in (GET + b"\r\n", good):
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(first + GET + b"x: " + b"a" * (MAX_HEAD - 1000))
            await asyncio.wait_for(reader.readuntil(b"}"), 20)
            writer.write(b"a" * 1000 + b"\r\n\r\n")
            assert b"HTTP/1.1 431 " in await asyncio.wait_for(reader.read(), 20)
            writer.close()


async def test_what_surrounds_a_body_is_bounded_too(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        crumbs = b"1\r\nx\r\n" * 50_000
        for padding in (b"1;" + b"a" * 200_000, b"1\r\nx\r\n0\r\nx: " + b"a" * 200_000, crumbs):
            assert only(await said(gate.port, CHUNKED + b"\r\n", padding)).status == 400
        small = b"".join(b"1\r\n%c\r\n" % byte for byte in QUESTION)
        assert only(await said(gate.port, CHUNKED + b"connection: close\r\n\r\n" + small + b"0\r\n\r\n")).status == 200


async def test_a_body_for_another_path_is_bounded_while_it_comes(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), max_body=4096) as gate:
        raw = await said(
            gate.port, b"POST /v1/none HTTP/1.1\r\nhost: g\r\ncontent-length: 9000000\r\n\r\n", bytes(400_000)
        )
        assert only(raw).status in {404, 413}


# -- patience ----------------------------------------------------------------------------------------------------------


async def drip(port: int, first: bytes, drops: bytes) -> bytes:
    """Sends `first`, then a byte each 20 ms; what came back when the gateway closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)

    async def dripping() -> None:
        for drop in drops:
            await asyncio.sleep(0.02)
            writer.write(bytes([drop]))

    task = asyncio.create_task(dripping())
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        task.cancel()
        writer.close()


SLOW = {
    "silence": (b"", b""),
    "half a head": (GET, b""),
    "a dripping head": (GET, b"x: " + b"a" * 200),
    "dripping line ends": (b"", b"\r\n" * 100),
    "half a body": (POST + LENGTH + b"\r\n" + QUESTION[:10], b""),
    "a dripping body": (POST + LENGTH + b"\r\n" + QUESTION[:10], b" " * 200),
    "a dripping chunk": (CHUNKED + b"\r\nff\r\n", b" " * 200),
    "dripping chunks": (CHUNKED + b"\r\n", b"1\r\n \r\n" * 40),
}


async def test_a_request_that_does_not_come_in_time_is_408(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), request_timeout=0.3) as gate:
        answers = await asyncio.gather(*(drip(gate.port, *slow) for slow in SLOW.values()))
        for slow, raw in zip(SLOW, answers, strict=True):
            answer = only(raw)
            assert (answer.status, answer.json()["error"]["code"]) == (408, "request_timeout"), slow
        assert flash.seen() == []


async def test_a_second_request_that_drips_is_408_and_the_first_is_answered(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), request_timeout=0.3) as gate:
        begun = GET + b"\r\n"
        slow = drip(gate.port, begun + GET, b"x" * 200), drip(gate.port, begun, b"\r\n" * 100)
        for raw in await asyncio.gather(*slow):
            assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]


async def test_a_request_that_was_answered_before_its_end_leaves_an_idle_connection(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), request_timeout=0.3) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(POST.replace(b"chat", b"no") + LENGTH + b"\r\n" + QUESTION[:10])
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        assert head.startswith(b"HTTP/1.1 404 ")
        writer.write(QUESTION[10:])
        await asyncio.sleep(0.6)
        writer.write(GET + b"\r\n")
        assert (await asyncio.wait_for(reader.readline(), 20)) == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_an_answer_to_half_a_request_does_not_keep_its_line_open(flash: Sim, pro: Sim) -> None:
    async with gateway(
        policy_for(flash, pro), everyone=False, api_key="a-key-that-is-long-enough", request_timeout=0.3
    ) as gate:
        assert only(await drip(gate.port, POST + LENGTH + b"\r\n", b"x" * 200)).status == 401


async def test_a_body_that_comes_steadily_may_take_longer(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), request_timeout=0.2) as gate:
        data = json.dumps(body("word " * 8000, model="flash")).encode()
        line = await gate.open(data[:10_000], content_length=str(len(data)))
        for at in range(10_000, len(data), 10_000):
            await asyncio.sleep(0.15)
            line.writer.write(data[at : at + 10_000])
        assert (await line.answer()).status == 200


async def test_the_time_of_an_answer_is_not_the_callers(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.5)
    async with gateway(policy_for(flash, pro), request_timeout=0.2, idle_timeout=0.2) as gate:
        raw = await said(gate.port, POST + LENGTH + b"\r\n" + QUESTION + GET + b"\r\n")
        assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"], (
            "then closed for idleness, unsaid"
        )


async def test_a_connection_that_is_asked_again_is_not_idle(flash: Sim, pro: Sim) -> None:
    first, other = POST + LENGTH + b"\r\n", POST + LENGTH + b"x: y\r\n\r\n"

    async def again(port: int, second: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for asked, status in ((first + b"?" * len(QUESTION), b"400"), (second + QUESTION, b"200")):
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b"", "then it is"
        writer.close()

    flash.config(stall_first=0.8)
    async with gateway(policy_for(flash, pro), idle_timeout=0.5) as gate:
        await asyncio.gather(again(gate.port, first), again(gate.port, other))


async def test_a_connection_that_is_asked_no_more_is_closed_in_time_however_early_its_timer_ran(
    flash: Sim, pro: Sim
) -> None:
    async with gateway(policy_for(flash, pro), idle_timeout=0.3) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        for _ in range(2):
            writer.write(GET + b"\r\n")
            await reader.readuntil(b"}")
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()


async def test_what_is_wrong_with_a_later_request_waits_for_the_earlier_answers(flash: Sim, pro: Sim) -> None:
    """Neither what follows it nor the time that it had takes them from their caller."""
    flash.config(stall_first=0.8)
    async with gateway(policy_for(flash, pro), request_timeout=0.6) as gate:
        good = POST + LENGTH + b"\r\n" + QUESTION + GET + b"\r\n"
        wrong = [
            said(gate.port, good + bad, b"what", b"ever") for bad in (b"nonsense\r\n\r\n", CHUNKED + b"\r\nxyz\r\n")
        ]
        for raw in await asyncio.gather(*wrong):
            assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]
            assert b'"flash-model"' in raw


async def test_who_is_refused_owes_nothing_while_the_earlier_answers_are_awaited(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.5)
    async with gateway(policy_for(flash, pro), request_timeout=0.3) as gate:
        raw = await said(gate.port, 2 * (POST + LENGTH + b"\r\n" + QUESTION) + b"nonsense\r\n\r\n")
        assert [part[:3] for part in raw.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]


async def test_who_leaves_with_a_second_request_waiting_frees_the_server_of_the_first(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=60.0)
    async with gateway(policy_for(flash, pro)) as gate:
        _, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(2 * (POST + LENGTH + b"\r\n" + QUESTION))
        await eventually(lambda: gate.upstream.load().get("flash", 0) == 1)
        writer.transport.abort()
        await eventually(lambda: not any(gate.upstream.load().values()))


class Endless:
    """A server whose streams have no end; `written` bytes so far, `stopped` once its caller left."""

    def __init__(self) -> None:
        self.written, self.stopped = 0, asyncio.Event()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = b'data: {"choices": [{"delta": {"content": "' + b"x" * 60_000 + b'"}}]}\n\n'
        if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST "):  # the gateway asks for its models
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        try:
            while self.written < 400_000_000:
                writer.write(event)
                await writer.drain()
                self.written += len(event)
        except ConnectionError:
            self.stopped.set()
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def unread(pro: Sim, stall_timeout: float, **changes: Any) -> AsyncIterator[tuple[Endless, Gateway]]:
    """A stream without end that its caller does not read."""
    endless = Endless()
    server = await asyncio.start_server(endless.talk, "127.0.0.1", 0)
    flash = Sim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "flash-model")
    async with server, gateway(policy_for(flash, pro, **changes), stall_timeout=stall_timeout) as gate:
        line = await gate.open(body(model="flash", stream=True))
        line.reader._transport.pause_reading()  # type: ignore[attr-defined]
        yield endless, gate
        line.writer.transport.abort()
        line.writer.close()


async def test_a_caller_who_reads_nothing_pauses_the_server_and_is_left(pro: Sim) -> None:
    async with unread(pro, 0.5) as (endless, _):
        await asyncio.wait_for(endless.stopped.wait(), PATIENCE)
        assert endless.written < 20_000_000, "what the kernel holds, and a little"


async def test_a_stream_that_is_not_taken_in_the_tiers_whole_time_ends_as_one_whose_caller_left(pro: Sim) -> None:
    times = dict.fromkeys(("first_byte", "idle", "total"), "3s")  # in which what nobody takes has filled all buffers
    tiers = {"flash": {"timeouts": times}}
    async with unread(pro, 60.0, tiers=tiers) as (endless, gate):
        await asyncio.wait_for(endless.stopped.wait(), PATIENCE)
        await eventually(lambda: b'status="499"' in gate.front.doors.telemetry.render())
