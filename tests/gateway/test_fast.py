import asyncio
import gc
import json
import random
from collections.abc import Awaitable
from typing import Any

import pytest

from gateway.fast import Cycle, FastConnection
from gateway.store import MemoryStore
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, PATIENCE, Gateway, body, eventually, gateway, plain, scripted
from tests.tiers import JSON, policy_for


def raw(fields: JSON, version: str = "1.1", *headers: str) -> bytes:
    data = json.dumps(fields).encode()
    lines = [f"POST {CHAT} HTTP/{version}", "host: gateway", f"content-length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def connected(gate: Gateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", gate.port)


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The next answer's status."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return head[9:12]


async def test_pipelined_requests_are_answered_in_their_order(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        health = b"GET /health HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n"
        writer.write(raw(body(model="flash")) + raw(body(model="pro", stream=True)) + health)
        answers = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        assert answers.count(b"HTTP/1.1 200 OK") == 3
        first, second = answers.index(b"x-route-tier: flash"), answers.index(b"x-route-tier: pro")
        assert first < second < answers.index(b'{"status":"ok"}')


class Slow(MemoryStore):
    """A store that never says that it has kept a conversation."""

    def remember(self, caller: str, key: bytes, *more: Any) -> Awaitable[None]:
        kept = super().remember(caller, key, *more)
        return asyncio.get_running_loop().create_future() if key.startswith(b"header:") else kept


async def test_who_leaves_before_the_next_request_has_begun_is_not_answered_any_more(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro, sessions={}), store=Slow()) as gate:
        reader, writer = await connected(gate)
        turn = raw(body(), "1.1", "x-session-id: s")
        writer.write(3 * turn)
        await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)  # whose end waits for the store
        writer.transport.abort()
        await eventually(lambda: gate.front.doors.telemetry.render().count(b'status="499"') > 0)
        assert len(flash.seen()) == 1


async def test_a_later_request_is_refused_by_its_own_length(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), max_body=4096) as gate:
        reader, writer = await connected(gate)
        small = raw(body(model="flash"))
        writer.write(small)
        assert (await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)).startswith(b"HTTP/1.1 200 OK\r\n")
        head = small.partition(b"\r\n\r\n")[0].rpartition(b"content-length: ")
        writer.write(head[0] + head[1] + b"4097\r\n\r\n")
        assert b"HTTP/1.1 413 " in await asyncio.wait_for(reader.readuntil(b" 413 "), PATIENCE)
        writer.close()


async def test_a_request_is_read_alike_whatever_came_before_it(flash: Sim, pro: Sim) -> None:
    """One that is nearly as the one before on its connection; as a first one on another connection it is parsed."""
    drawn, good = random.Random(7), raw(body(model="flash", max_tokens=4))
    head, _, data = good.partition(b"\r\n\r\n")
    changed = [
        good,
        raw(body("longer than it was", model="flash")),
        good + good,
        good + b"\r\n",
        b"\r\n" + good,
        good[:-1],
    ]
    length = b"%d" % len(data)
    changed += [
        good.replace(length, told)
        for told in (
            b"",
            b"0",
            b"0" + length,
            b"0" * 30 + length,
            b"+" + length,
            length + b" ",
            b"9" * 30,
            b"0" * 17 + length + b"00",
            b"0" * 5000 + length,
        )
    ]
    changed += [
        good.replace(b"\r\n\r\n", b"\r\nx: y\r\n\r\n"),
        head + b"\n\n" + data,
        head + b"\r\n\r\n\r\n\r\n" + data,
    ]
    for _ in range(150):
        at, end = drawn.randrange(len(head) + 8), drawn.choice((0, 0, 1, 2, 5))
        changed.append(
            good[:at] + drawn.choice((b"", b"0", b"a", b"\r", b"\n", b"\r\n", b":", b" ")) + good[at + end :]
        )

    async def told(gate: Gateway, sent: bytes, *before: bytes, cut: int = 0) -> list[bytes]:
        reader, writer = await connected(gate)
        for earlier in before:
            writer.write(earlier)
            await answered(reader)
        writer.write(sent[:cut])
        await asyncio.sleep(0.02 if cut else 0)
        writer.write(sent[cut:])
        statuses = [await answered(reader) for _ in range(sent.count(good) or 1)]
        writer.close()
        return statuses

    async with gateway(policy_for(flash, pro), request_timeout=0.5) as gate:
        fresh = await asyncio.gather(*(told(gate, one) for one in changed))
        assert {b"200", b"400", b"404", b"408"} <= {status for one in fresh for status in one}
        apart = [one.find(b"\r\n\r\n") + 4 for one in changed]  # as clients do that write the head by itself
        again = [
            told(gate, one, good, good, cut=cut)
            for cuts in ([0] * len(changed), apart)
            for one, cut in zip(changed, cuts, strict=True)
        ]
        assert await asyncio.gather(*again) == 2 * fresh


async def test_a_request_keeps_its_own_head_whatever_was_asked_since_one_like_it(flash: Sim, pro: Sim) -> None:
    """On a connection that a proxy shares out among callers, who one is stands in the head."""
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        ann, bob = (raw(body(model="flash"), "1.1", f"x-request-id: {name}") for name in ("ann", "bob"))
        for name, *pieces in ("ann", ann), ("bob", bob[:50], bob[50:]), ("ann", ann), ("ann", ann):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            assert f"x-request-id: {name}\r\n".encode() in head
        writer.close()


async def test_a_head_like_the_one_before_is_begun_once_with_its_body(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro), request_timeout=0.5) as gate:
        reader, writer = await connected(gate)
        head, end, data = raw(body(model="flash")).partition(b"\r\n\r\n")
        for _ in range(2):
            writer.write(head + end)
            await asyncio.sleep(0.02)
            writer.write(data)
            assert await answered(reader) == b"200"
        line = next(one for one in gc.get_objects() if isinstance(one, FastConnection) and one.front is gate.front)
        assert line._receiving is None, "else a long answer would end in a 408"
        writer.write(head + end)
        await eventually(lambda: line._receiving is not None)
        assert line.cycle.response_complete, "the parser would have made another one"
        assert await answered(reader) == b"408", "its body is waited for as any is"
        writer.close()


async def test_a_request_that_offers_another_protocol_is_parsed_though_without_the_offer_it_is_the_one_before(
    flash: Sim, pro: Sim
) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        plain = raw(body(model="flash"), "1.1", "connection: upgrade")
        for sent in (plain, plain.replace(b"connection:", b"upgrade: h2c\r\nconnection:"), plain):
            writer.write(sent)
            assert await answered(reader) == b"200"
        writer.close()


async def test_a_head_that_came_before_the_gateway_shuts_down_is_answered(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        request = raw(body(model="flash"))
        head, end, data = request.partition(b"\r\n\r\n")
        writer.write(request)
        assert await answered(reader) == b"200"
        writer.write(head + end)
        line = next(one for one in gc.get_objects() if isinstance(one, FastConnection) and one.front is gate.front)
        await eventually(lambda: line._receiving is not None)
        line.shutdown()
        writer.write(data)
        told = await asyncio.wait_for(reader.read(), PATIENCE)
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in told
        writer.close()


async def test_nothing_is_served_after_a_request_that_ends_its_connection(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.3)
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        last = raw(body(model="flash"), "1.1", "connection: close")
        writer.write(last)
        await eventually(lambda: gate.upstream.load().get("flash", 0) == 1)
        writer.write(last)
        answers = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        assert answers.count(b"HTTP/1.1 200 OK") == len(flash.seen()) == 1


async def test_who_holds_a_connection_to_a_gateway_that_leaves_gets_an_answer_and_the_end(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        writer.write(raw(body(model="flash")))
        assert b"connection" not in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        gate.front.leave()
        writer.write(raw(body(model="flash")))
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).count(b"connection: close\r\n") == 1
        writer.close()


async def test_who_reads_late_and_never_closes_is_closed_after_a_refusal(pro: Sim) -> None:
    long = plain(b'{"choices": [], "model": "' + b"m" * 9_000_000 + b'"}')
    async with scripted(long) as (url, _), gateway(policy_for(Sim(url, "m"), pro)) as gate:
        reader, writer = await connected(gate)
        writer.write(raw(body(model="flash")) + b"nonsense\r\n\r\n")
        await asyncio.sleep(0.2)  # so that much is still to be written when the refusal is
        answers = await asyncio.wait_for(reader.read(), PATIENCE)
        assert answers.rindex(b"HTTP/1.1 400 ") > 9_000_000
        async with asyncio.timeout(20):
            while not writer.transport.is_closing():  # what we still send is answered by a reset
                writer.write(b"x")
                await asyncio.sleep(0.05)
        writer.close()


async def test_many_requests_on_one_connection_are_each_answered_and_none_is_left(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        for text in ("one", "another", "a third"):
            writer.write(raw(body(text, model="flash")))
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        serving = [task for task in asyncio.all_tasks() if "FastConnection" in str(task.get_coro())]
        assert len(serving) == 1, "one task serves them all"
        writer.close()
        await eventually(serving[0].done)


async def test_a_body_is_asked_for_where_the_caller_waits_for_that(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        head, _, data = raw(body(model="flash"), "1.1", "expect: 100-continue").partition(b"\r\n\r\n")
        for path in (b"/v1/chat/completions", b"/v1/route"):
            reader, writer = await connected(gate)
            for _ in range(2):  # the second one has the head of the first
                writer.write(head.replace(b"/v1/chat/completions", path) + b"\r\n\r\n")
                assert (
                    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE) == b"HTTP/1.1 100 Continue\r\n\r\n"
                )
                writer.write(data)
                assert await answered(reader) == b"200"
            writer.close()


@pytest.mark.usefixtures("uncollected")
async def test_a_request_leaves_nothing_for_the_collector(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        writer.write(raw(body(model="flash")))
        await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)
        gc.collect()
        for _ in range(5):
            writer.write(raw(body(model="flash")))
            await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)
        # Only the connection's last one is left; the answer is read before its task is at its end.
        await eventually(lambda: sum(isinstance(one, Cycle) for one in gc.get_objects()) == 1)
        writer.close()


@pytest.mark.usefixtures("uncollected")
async def test_a_connection_that_ended_leaves_nothing_for_the_collector(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        before = sum(isinstance(one, FastConnection) for one in gc.get_objects())
        answered = await gate.open(body(model="flash"))
        assert (await answered.answer()).status == 200
        half = await gate.open(b"{", content_length="9")
        await eventually(lambda: bool(gate.front.doors.uploads._open))
        await half.leave(reset=True)
        flash.config(stall_first=60.0)
        _, pipelining = await connected(gate)
        pipelining.write(2 * raw(body(model="flash")))
        await eventually(lambda: gate.upstream.load().get("flash", 0) == 1)
        pipelining.transport.abort()
        await eventually(lambda: sum(isinstance(one, FastConnection) for one in gc.get_objects()) == before)


async def test_a_connection_that_lies_idle_holds_no_body(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        writer.write(raw(body("word " * 20_000, model="flash", max_tokens=4)))
        await asyncio.wait_for(reader.readuntil(b"}}"), PATIENCE)
        held = [one for cycle in gc.get_objects() if type(cycle) is Cycle for one in gc.get_referents(cycle)]
        assert held
        assert not [one for one in held if isinstance(one, list) and one]
        writer.close()


async def test_a_body_in_small_pieces_is_not_kept_in_them(flash: Sim, pro: Sim) -> None:
    def kept() -> dict[int, int]:
        """For each size of a body that came so far its pieces."""
        return {one.size: len(one._pieces) for one in gc.get_objects() if type(one) is Cycle}

    async with gateway(policy_for(flash, pro)) as gate:
        reader, writer = await connected(gate)
        head, _, data = raw(body("word " * 100, model="flash")).partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        for at in range(0, 500, 2):
            writer.write(data[at : at + 2])
            await asyncio.sleep(0)
        await eventually(lambda: 500 in kept())
        assert kept()[500] == 1
        writer.write(data[500:])
        assert await answered(reader) == b"200"
        writer.close()


async def test_a_body_longer_than_what_may_wait_comes_through(flash: Sim, pro: Sim) -> None:
    async with gateway(policy_for(flash, pro)) as gate:
        answer = await gate.ask(body("word " * 200_000, model="flash", max_tokens=4))
        assert answer.status == 200
