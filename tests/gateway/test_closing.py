"""What comes of an answer with which the connection ends, by both fronts."""

import asyncio
import json

import pytest

from loadtest.servers import Sim
from tests.gateway.serving import body, eventually, gateway, parsed
from tests.gateway.test_protocol import GET, POST, only, said
from tests.tiers import policy_for

pytestmark = pytest.mark.usefixtures("each_front")


async def test_a_stream_for_http_1_0_is_not_chunked_and_ends_with_the_connection(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        asked = json.dumps(body(model="flash", stream=True)).encode()
        head = POST.replace(b"1.1", b"1.0") + b"content-length: %d\r\n\r\n" % len(asked)
        answer = only(await said(gate.port, head + asked))
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.data.startswith(b"data: ")
        assert answer.data.endswith(b"data: [DONE]\n\n")
        health = GET.replace(b"1.1", b"1.0") + b"\r\n"
        assert only(await said(gate.port, health)).json() == {"status": "ok"}
        assert only(await said(gate.port, health.replace(b"GET", b"HEAD"))).data == b""


async def test_http_1_0_is_sent_no_interim_answer(flash: Sim, pro: Sim) -> None:
    asked = json.dumps(body(model="flash")).encode()
    head = POST.replace(b"1.1", b"1.0") + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(asked)
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        writer.write(head)
        await eventually(lambda: bool(gate.front.doors.uploads._open))
        writer.write(asked)
        assert only(await asyncio.wait_for(reader.read(), 20)).status == 200
        writer.close()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_early_answer_reaches_a_caller_who_sends_on_though_it_ends_the_connection(
    flash: Sim, pro: Sim, version: bytes
) -> None:
    long = bytes(1 << 20)
    told = b" HTTP/%b\r\nhost: g\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (version, 2 * len(long))
    async with gateway(policy_for(flash, pro), everyone=False, api_key="a-key-that-is-long-enough") as gate:
        for path, status in (b"/v1/chat/completions", 401), (b"/v1/none", 404):
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(b"POST " + path + told + long)
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
            assert parsed(answer + await asyncio.wait_for(reader.read(), 20)).status == status
            writer.close()
