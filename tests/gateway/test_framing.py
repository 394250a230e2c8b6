"""Does everybody read the same requests out of the same bytes?

Requests are drawn from the grammar of RFC 9112, bent in the ways in which smugglers bend it, cut anywhere, and compared
with what a second reader, written down here after the RFC, finds in them. What that reader calls wrong must be refused
and the line closed; what it calls right must reach the model server with the same body. In between lies what the RFC
leaves open (`loose`): refused or served, but never served with another body.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from loadtest.servers import Sim
from tests.gateway.serving import gateway, plain
from tests.gateway.test_protocol import said
from tests.tiers import policy_for

pytestmark = pytest.mark.usefixtures("each_front")

CASES = 2000 if os.environ.get("FAULTS") == "full" else 150
LINE = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
ODD_STARTS = [
    LINE.replace(b" /", b" http://gateway/"), LINE.replace(b" /", b" http://other/"), LINE.replace(b"1.1", b"1.2"),
    LINE.replace(b"/v1", b"/v1\x00"), LINE.replace(b"/v1", b"v1"), LINE.replace(b"\r\nhost", b"\nhost"), b"\x00" + LINE,
    LINE.replace(b"POST ", b"POST\x0b"), LINE.replace(b"gateway", b"gateway:80:80"), LINE.replace(b"gateway", b""),
]  # fmt: skip
LAST = b"GET /health HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
FIELD = re.compile(rb"(%b):[ \t]*((?:[\x21-\x7e\x80-\xff][\t \x21-\x7e\x80-\xff]*)?)\r\n" % TOKEN)
STARTS = re.compile(rb"(POST (?:http://(?:gateway|other))?/v1/chat/completions|GET /health) HTTP/1\.1\r\n")
SIZE = re.compile(rb"([0-9A-Fa-f]+)([ \t]*;[^\r\n\x00]*)?\r\n")
ANSWER = b'{"choices": [], "model": "m"}'
OFFER = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
FRAMING = {b"content-length", b"transfer-encoding", b"host"}


class Incomplete(Exception):
    """The bytes end before the request does."""


class Read(NamedTuple):
    """A request's body, None of one that is wrong; whether the RFC lets a server refuse it nevertheless."""

    body: bytes | None
    loose: bool = False


WRONG = Read(None)


# -- the second reader -------------------------------------------------------------------------------------------------


def reading(raw: bytes) -> list[Read]:
    """The requests in `raw`, up to the first one that is wrong. Raises Incomplete."""
    found: list[Read] = []
    while raw:
        start = raw.lstrip(b"\r\n")
        blank = raw[: len(raw) - len(start)]
        one, raw = request(start)
        # One empty line before a request is to be ignored, more of them or half of one may be. Who offers another
        # protocol waits for the answers to what it asked before.
        early = bool(found) and b"upgrade:" in start.partition(b"\r\n\r\n")[0]
        found.append(one._replace(loose=one.loose or early or blank not in {b"", b"\r\n"}))
        if one.body is None:
            break
    return found


def request(raw: bytes) -> tuple[Read, bytes]:
    start = STARTS.match(raw)
    found = fields(raw[start.end() :]) if start else None
    if found is None:
        return WRONG, b""
    told, rest = found
    hosts, lengths, codings = (told.get(name, []) for name in (b"host", b"content-length", b"transfer-encoding"))
    if hosts != [b"gateway"] or len(lengths) + len(codings) > 1:
        return WRONG, b""  # two lengths may be taken for one where they agree, a length beside chunked be ignored
    if codings:
        return chunked(rest) if codings[0].lower() == b"chunked" else (WRONG, b"")
    if not lengths:
        return Read(b"", loose=b"upgrade" in told), rest  # what follows may be another protocol already
    if not re.fullmatch(rb"[0-9]+", lengths[0]):
        return WRONG, b""
    size = int(lengths[0])
    if size > len(rest):
        raise Incomplete
    return Read(rest[:size]), rest[size:]


def fields(raw: bytes) -> tuple[dict[bytes, list[bytes]], bytes] | None:
    """Field lines up to the empty one, and what follows; None when one is no field line."""
    told: dict[bytes, list[bytes]] = {}
    while not raw.startswith(b"\r\n"):
        line = FIELD.match(raw)
        if line is None:
            if re.fullmatch(rb"[^\r\n\x00]*\r?", raw):
                raise Incomplete
            return None
        told.setdefault(line[1].lower(), []).append(line[2].rstrip(b" \t"))
        raw = raw[line.end() :]
    return told, raw[2:]


def chunked(raw: bytes) -> tuple[Read, bytes]:
    body, loose = b"", False
    while line := SIZE.match(raw):
        size, raw = int(line[1], 16), raw[line.end() :]
        loose = loose or bool(line[2])  # an extension is to be ignored, but not all are well formed
        if len(line[1]) > 16 and size:
            return WRONG, b""
        if not size:
            trailers = fields(raw)
            if trailers is None:
                return WRONG, b""
            return Read(body, loose or not FRAMING.isdisjoint(trailers[0]) or len(line[1]) > 16), trailers[1]
        if size + 2 > len(raw):
            raise Incomplete
        if raw[size : size + 2] != b"\r\n":
            return WRONG, b""
        body, raw = body + raw[:size], raw[size + 2 :]
    if re.fullmatch(rb"[0-9A-Fa-f]*([ \t]*;[^\r\n\x00]*)?\r?", raw):
        raise Incomplete
    return WRONG, b""


# -- what is sent ------------------------------------------------------------------------------------------------------

BODY = st.integers(0, 999).map(
    lambda word: json.dumps({"model": "flash", "messages": [{"role": "user", "content": f"word {word}"}]}).encode()
)
ODD_LINES = st.sampled_from([
    b"content-length: 3\r\n", b"content-length: 0\r\n", b"Content-Length:0\r\n", b"content-length: 3, 3\r\n",
    b"content-length: +3\r\n", b"content-length: 0x3\r\n", b"content-length: 3 3\r\n", b"content-length:\r\n",
    b"content-length: 18446744073709551617\r\n", b"content-length : 3\r\n", b" content-length: 3\r\n",
    b"content-length:\r\n 3\r\n", b"content-length: 3\n", b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: CHUNKED\r\n", b"transfer-encoding: identity\r\n", b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: chunked, chunked\r\n", b"transfer-encoding:\x0bchunked\r\n",
    b"transfer-encoding: xchunked\r\n",
    b"transfer-encoding\t: chunked\r\n", b"transfer-encoding: chunked\n", b"transfer-encoding:\r\n chunked\r\n",
    b"transfer_encoding: chunked\r\n",
    b"x: a\r\n b\r\n", b"x: a\r\n\tb\r\n", b"x: a\x00b\r\n", b"x: a\rb\r\n", b"x\r\n",
    b": x\r\n", b"x: \xff\r\n", b"x:\t a \t\r\n", b"host: gateway\r\n", b"host: other\r\n",
    OFFER, OFFER, OFFER,
])  # fmt: skip
SIZES = st.sampled_from([
    b"%X", b"0%x", b"000000000000%x", b"+%x", b"-%x", b"0x%x", b" %x", b"%x ", b"1000000000000000%x", b"",
])  # fmt: skip
EXTENSIONS = st.sampled_from(
    [b"", b";a", b";a=b", b';a="b c"', b" ; a = b", b";", b";a\n", b';a="', b";a\x00", b";a\r"]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n"])
TRAILERS = st.sampled_from([
    b"", b"", b"x: y\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"host: other\r\n", b"x\r\n",
    b"x: a\n",
])  # fmt: skip
ODD_BYTES = st.sampled_from([b"\x00", b"\r", b"\n", b" ", b"\t", b"0", b"f", b";", b":", b"\r\n", b"\xff"])


@st.composite
def in_chunks(draw: st.DrawFn) -> bytes:
    """A body in chunks; one of the first eight, or none, is spelled oddly."""
    body, odd, parts = draw(BODY), draw(st.integers(0, 15)), list[bytes]()
    while body:
        size = draw(st.integers(1, len(body)))
        spelled = [b"%x" % size, b"", b"\r\n", b"\r\n"]
        if len(parts) == odd:
            told = draw(SIZES)
            spelled = [told % size if told else told, draw(EXTENSIONS), draw(ENDS), draw(ENDS)]
        parts.append(b"".join(spelled[:3]) + body[:size] + spelled[3])
        body = body[size:]
    return b"".join(parts) + draw(st.sampled_from([b"0", b"000", b"0;a"])) + b"\r\n" + draw(TRAILERS) + b"\r\n"


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request, in order or nearly so."""
    chunks = draw(st.booleans())
    body = draw(in_chunks() if chunks else BODY)
    length = b"transfer-encoding: chunked\r\n" if chunks else b"content-length: %d\r\n" % len(body)
    lines = draw(st.permutations([length, *draw(st.lists(ODD_LINES, max_size=1))]))
    start = LINE if draw(st.integers(0, 7)) else draw(st.sampled_from(ODD_STARTS))
    sent = start + b"".join(lines) + b"\r\n" + body
    if draw(st.integers(0, 3)):
        return sent
    at = draw(st.integers(len(start), len(sent)))
    return sent[:at] + draw(ODD_BYTES) + sent[at + draw(st.integers(0, 1)) :]


CUTS = st.lists(st.integers(1, 2000), max_size=12)


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({at % len(raw) for at in places} - {0}), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


# -- the comparison ----------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    status: int
    closes: bool


def answers(raw: bytes) -> list[Said]:
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        size = int(re.findall(rb"content-length: ([0-9]+)", head)[0])
        found.append(Said(int(head[9:12]), b"connection: close" in head))
        raw = rest[size:]
    return found


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[Sim, list[bytes]]]:
    """A model server, and the bodies that reach it."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(re.findall(rb"content-length: ([0-9]+)", head)[0])
                body = await reader.readexactly(size)
                seen.extend([body] * head.startswith(b"POST "))  # else the gateway asks for its models
                writer.write(plain(ANSWER))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Sim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "flash-model"), seen


def holds(sent: bytes, expected: list[Read], found: list[Said], seen: list[bytes]) -> None:
    """Each answer is what its request may have, and the model server saw no other bodies than those."""
    reached = iter(seen)
    for at, (one, answer) in enumerate(zip(expected, found, strict=False)):
        last = at == len(expected) - 1
        if one.body is None or (answer.closes and not last):
            assert (answer.status, answer.closes, len(found)) == (400, True, at + 1), sent
            assert one.body is None or one.loose, (sent, "in order, and refused")
            break
        if answer.status == 200 and not (last and sent.endswith(LAST)):
            assert json.loads(next(reached))["messages"] == json.loads(one.body)["messages"], sent
    else:
        assert len(found) == len(expected), sent
    assert next(reached, None) is None, (sent, "a request that nobody made")


def test_what_is_served_is_what_a_second_reader_finds_and_nothing_else(pro: Sim) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        model, seen = runner.run(stack.enter_async_context(recording()))
        gate = runner.run(
            stack.enter_async_context(gateway(policy_for(model, pro, rules=[{"id": "all", "route": "flash"}])))
        )

        @settings(max_examples=CASES, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(messages(), min_size=1, max_size=2), CUTS)
        def each(asked: list[bytes], places: list[int]) -> None:
            sent = b"".join(asked) + LAST
            try:
                expected = reading(sent)
            except Incomplete:
                assume(False)
            seen.clear()
            raw = runner.run(said(gate.port, *cut(sent, places)))
            holds(sent, expected, answers(raw), seen)

        each()
        runner.run(stack.aclose())
