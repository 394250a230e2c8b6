import asyncio
import contextlib
import json
import time
from email.utils import formatdate
from typing import Any

import pytest

from gateway.errors import Overloaded, Refusal, UpstreamFailed, UpstreamTimeout
from gateway.http1 import Client
from gateway.reply import Reply
from gateway.types import Route
from gateway.upstream import Upstream
from loadtest.servers import Sim
from tests.gateway.serving import CHAT, asked, body, collected, eventually, plain, scripted, upstream
from tests.tiers import JSON, policy_for

BOTH, FIRST = Route(("flash", "pro"), "r", "s"), Route(("flash",), "r", "s")
NOWHERE = Sim("http://127.0.0.1:1", "flash-model")
GOOD = b'{"choices": [], "model": "m"}'


async def broke(reply: Reply) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await collected(reply)
    return refusal.value


FAILURES: list[tuple[str, JSON | None, bool]] = [
    ("connect", None, False),
    ("connect", None, True),
    ("5xx", {"status": 500}, False),
    ("5xx", {"status": 500}, True),
    ("overloaded", {"status": 503}, False),
    ("overloaded", {"status": 503}, True),
    ("overloaded", {"status": 429}, True),
    ("first_byte", {"stall_first": 5.0}, False),
    ("first_byte", {"stall_first": 5.0}, True),
    ("5xx", {"cut_after": 0}, True),
    ("5xx", {"cut_after": 0}, False),
    ("5xx", {"html": True}, False),
    ("5xx", {"bad_json": "garbage"}, False),
]


@pytest.mark.parametrize(("kind", "fault", "stream"), FAILURES)
async def test_before_the_first_byte_the_next_tier_is_tried_if_the_policy_names_the_failure(
    flash: Sim, pro: Sim, kind: str, fault: JSON | None, stream: bool
) -> None:
    flash.config(**(fault or {}))
    patience = "100ms" if kind == "first_byte" else "10s"
    times = {"first_byte": patience, "total": "10s" if stream else patience}
    first = flash if fault else NOWHERE
    others = [name for name in ("connect", "overloaded", "first_byte", "5xx") if name != kind]
    async with upstream() as door:
        for on, tier in (([kind], "pro"), (others, "flash" if fault == {"status": 429} else "")):
            policy = policy_for(first, pro, tiers={"flash": {"timeouts": times}}, failover={"on": on})
            reply = await door.send(asked(body(stream=stream)), BOTH, policy)
            assert reply.tier == tier
            await reply.close()
        assert len(pro.seen()) == 1


async def test_each_further_call_is_told_by_what_failed_and_where_it_goes(flash: Sim, pro: Sim) -> None:
    flash.config(status=500)
    told: list[tuple[str, str, str]] = []
    client = Client()
    door = Upstream(client, lambda *found: told.append(found))
    both = {"replicas": [flash.url, flash.url.replace("127.0.0.1", "localhost")]}
    reply = await door.send(asked(body()), BOTH, policy_for(flash, pro, tiers={"flash": both}))
    assert reply.tier == "pro"
    await reply.close()
    await door.close()
    client.close()
    assert told == [("flash", "5xx", "replica"), ("flash", "5xx", "tier")]


async def test_the_last_tiers_refusal_is_what_the_caller_hears(flash: Sim, pro: Sim) -> None:
    async with upstream() as door:
        policy = policy_for(flash, pro, tiers={"pro": {"timeouts": {"total": "100ms"}}})
        flash.config(status=500)
        pro.config(stall_first=60.0)
        reply = await door.send(asked(body()), BOTH, policy)
        assert isinstance(await broke(reply), UpstreamTimeout)
        assert 0.05 < reply.waited < 30
        pro.config(stall_first=0.0, status=503, retry_after=7.0)
        refusal = await broke(await door.send(asked(body()), BOTH, policy))
        assert (type(refusal), refusal.retry_after) == (Overloaded, 7.0)
        assert "Simulated" not in refusal.message, "a server's words stay here"


@pytest.mark.parametrize("status", [400, 404, 422, 429])
async def test_a_4xx_passes_unchanged(flash: Sim, pro: Sim, status: int) -> None:
    flash.config(status=status, retry_after=3.0)
    async with upstream() as door:
        reply = await door.send(asked(body(stream=True)), FIRST, policy_for(flash, pro))
        assert (reply.status, reply.tier, reply.stream) == (status, "flash", False)
        assert dict(reply.headers)[b"retry-after"] == b"3"
        assert json.loads(await collected(reply))["error"]["message"] == "Simulated error"
        if status != 429:
            reply = await door.send(asked(body()), BOTH, policy_for(flash, pro))
            assert reply.status == status
            assert await collected(reply)
            assert pro.seen() == [], "an answer, not a failure"


STARTED = '{"type": "message_start", "message": {"usage": {"input_tokens": 0}}}'
WRONG = {"type": "invalid_request_error", "message": "The input is longer than the model's context."}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/messages", [STARTED, json.dumps({"type": "error", "error": WRONG}), '{"type": "message_stop"}']),
        (CHAT, [json.dumps({"error": {**WRONG, "type": "BadRequestError", "code": 400}}), "[DONE]"]),
    ],
)
async def test_a_stream_that_begins_with_what_is_wrong_with_the_request_is_a_400(
    pro: Sim, path: str, said: list[str]
) -> None:
    async with scripted(events(*said)) as (url, _), upstream() as door:
        request = asked(body(stream=True, max_tokens=9), path)
        reply = await door.send(request, BOTH, policy_for(Sim(url, "m"), pro))
        told = json.loads(await collected(reply))
        assert (reply.status, reply.stream, told["error"]["message"]) == (400, False, WRONG["message"])
        assert told["error"]["type"] == WRONG["type"]
        assert (pro.seen(), [bill.void for bill in request.bills]) == ([], [True]), "an answer, not a failure"


async def test_a_429_that_forbids_retries_is_not_taken_elsewhere(pro: Sim) -> None:
    refused = plain(b'{"error": {}}', "429 Too Many Requests", x_should_retry="false")
    async with scripted(refused) as (url, _), upstream() as door:
        reply = await door.send(asked(body()), BOTH, policy_for(Sim(url, "m"), pro))
        assert (reply.status, await collected(reply)) == (429, b'{"error": {}}')
        assert pro.seen() == []


def events(*data: str) -> bytes:
    return plain(
        b"".join(f"data: {text}\n\n".encode() for text in data), content_type="text/event-stream; charset=utf-8"
    )


async def test_the_type_of_an_answer_is_known_in_any_case(pro: Sim) -> None:
    said = events('{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}', "[DONE]")
    async with scripted(said.replace(b"text/event-stream", b"Text/Event-Stream")) as (url, _), upstream() as door:
        reply = await door.send(asked(body(stream=True)), BOTH, policy_for(Sim(url, "m"), pro))
        assert (reply.tier, (await collected(reply)).endswith(b"data: [DONE]\n\n")) == ("flash", True)


@pytest.mark.parametrize(
    "answer",
    [
        events('{"error": {"message": "no"}}'),
        events('{"error": {"message": "no"}}', "[DONE]"),
        events('{"choices": [{"delta": {}, "finish_reason": "abort"}]}', "[DONE]"),
        events('{"error": {"message": "no"}, "choices": [], "usage": {"prompt_tokens": 1}}'),
        events('{"choices": [], "usage": {"prompt_tokens": 1}}'),
        events(),
        plain(b"x", "302 Found", location="http://elsewhere"),
        plain(b"", "204 No Content"),
        plain(GOOD, content_encoding="gzip"),
        plain(GOOD),
        plain(b"<html>", content_type="text/html"),
        plain(b"garbage"),
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        b"garbage",
        b"",
        plain(b"x", "503 Busy", retry_after="9" * 400),
    ],
)
async def test_what_is_no_answer_fails_over_and_never_hangs(pro: Sim, answer: bytes) -> None:
    async with scripted(answer) as (url, _), upstream() as door:
        async with asyncio.timeout(5):
            reply = await door.send(asked(body(stream=True)), BOTH, policy_for(Sim(url, "m"), pro))
        assert reply.tier == "pro"
        assert (await collected(reply)).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "answer",
    [
        events('{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}', "[DONE]"),
        plain(b'{"error": {"message": "no", "code": 500}}'),
        plain(b'{"error": "no", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'),
        plain(b'{"status": "ok"}'),
        plain(b'{"choices": [{"message": {"content": "The"}, "finish_reason": "abort"}]}'),
    ],
)
async def test_a_success_without_an_answer_in_the_form_that_was_asked_for_fails_over(pro: Sim, answer: bytes) -> None:
    async with scripted(answer) as (url, _), upstream() as door:
        reply = await door.send(asked(body()), BOTH, policy_for(Sim(url, "m"), pro))
        assert (reply.status, reply.tier) == (200, "pro")
        assert b'"choices"' in await collected(reply)


COME_BACK = {
    "7": (7, 7), "in a minute": (30, 60), "Wed, 21 Oct 2015 07:28:00 GMT": (1, 1),
    "31 Dec 9999 23:59:59": (2_678_400,) * 2,
    "-3": (1, 1), "1.5": (1, 1), "soon": (1, 1), "": (1, 1), "9" * 400: (2_678_400,) * 2, "21 Oct 9" + "9" * 40: (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("told", COME_BACK)
async def test_a_server_says_in_any_form_when_to_come_back(pro: Sim, told: str) -> None:
    after = told if told != "in a minute" else formatdate(time.time() + 60, usegmt=True)
    async with scripted(plain(b"x", "503 Busy", retry_after=after)) as (url, _), upstream() as door:
        refusal = await broke(await door.send(asked(body()), FIRST, policy_for(Sim(url, "m"), pro)))
        least, most = COME_BACK[told]
        assert least <= int(dict(refusal.headers())[b"retry-after"]) <= most


async def test_after_the_first_byte_nobody_else_is_asked_and_the_break_is_told(flash: Sim, pro: Sim) -> None:
    flash.config(cut_after=2)
    async with upstream() as door:
        reply = await door.send(asked(body(stream=True)), BOTH, policy_for(flash, pro))
        assert reply.tier == "flash"
        assert isinstance(await broke(reply), UpstreamFailed)
        assert pro.seen() == []


async def test_a_server_that_dies_after_comments_alone_has_not_begun_to_answer(pro: Sim) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    for comments in (b": queued\n\n", b":\r\n\r\n: data: 1\r\r", b": queued\n\ndata: x"):
        async with scripted(head + comments) as (url, _), upstream() as door:
            reply = await door.send(asked(body(stream=True)), BOTH, policy_for(Sim(url, "m"), pro))
            assert reply.tier == "pro"
            assert (await collected(reply)).endswith(b"data: [DONE]\n\n")


async def test_a_servers_header_that_some_callers_could_not_read_is_left_out(pro: Sim) -> None:
    answer = plain(GOOD, content_type="x" * 60_000, x_request_id="1" * 60_000, x_should_retry="true")
    async with scripted(answer) as (url, _), upstream() as door:
        reply = await door.send(asked(body()), FIRST, policy_for(Sim(url, "m"), pro))
        assert (reply.status, reply.headers) == (200, [(b"x-should-retry", b"true")])
        await reply.close()


async def test_of_two_content_types_the_first_one_counts_and_passes(pro: Sim) -> None:
    second = b"\r\ncontent-type: text/event-stream\r\n\r\n"
    async with scripted(plain(GOOD).replace(b"\r\n\r\n", second, 1)) as (url, _), upstream() as door:
        reply = await door.send(asked(body()), FIRST, policy_for(Sim(url, "m"), pro))
        assert (reply.status, reply.headers) == (200, [(b"content-type", b"application/json")])
        await reply.close()


async def test_an_error_inside_an_answer_is_marked() -> None:
    told = events('{"choices": [{"delta": {"content": "x"}}]}', *["{}"] * 9, '{"error": {"message": "no"}}', "[DONE]")
    head, _, data = told.partition(b"\r\n\r\n")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + data[:60])
        await asyncio.sleep(0.05)
        writer.write(data[60:])
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, upstream() as door:
        sim = Sim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m")
        reply = await door.send(asked(body(stream=True)), FIRST, policy_for(sim, sim))
        assert not reply.usage.failed
        assert b'"error"' in await collected(reply)
        assert reply.usage.failed


async def test_a_full_tier_is_overloaded_and_counts_go_back_to_zero(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro, tiers={"flash": {"limits": {"max_inflight": 1, "queue": 0}}})
    flash.config(stall_after=1)
    async with upstream() as door:
        held = await door.send(asked(body(stream=True)), BOTH, policy)
        assert (held.tier, door.load()["flash"]) == ("flash", 1)
        other = await door.send(asked(body()), BOTH, policy)
        assert other.tier == "pro"
        await other.close()
        refusal = await broke(await door.send(asked(body()), FIRST, policy))
        assert (refusal.status, refusal.retry_after) == (503, 1.0)
        await held.close()
        await held.close()
        assert door.load() == {"flash": 0, "pro": 0}
        await eventually(lambda: flash.seen()[0]["state"] == "aborted")


async def test_a_whole_answer_holds_nothing_of_its_tier_while_its_caller_takes_it(flash: Sim, pro: Sim) -> None:
    policy = policy_for(flash, pro, tiers={"flash": {"limits": {"max_inflight": 1, "queue": 0}}})
    async with upstream() as door:
        whole = await door.send(asked(body()), FIRST, policy)
        assert (whole.status, door.load()) == (200, {"flash": 0})
        other = await door.send(asked(body()), FIRST, policy)
        assert other.status == 200
        await whole.close()
        await other.close()
        assert door.load() == {"flash": 0}


@pytest.mark.parametrize(
    ("fault", "fields"),
    [({"stall_first": 30.0}, {}), ({"stall_first": 30.0}, {"stream": True}), ({"stall_after": 0}, {"stream": True})],
)
async def test_a_cancelled_exchange_stops_the_server_at_once(flash: Sim, pro: Sim, fault: JSON, fields: JSON) -> None:
    flash.config(**fault)
    async with upstream() as door:
        task = asyncio.create_task(door.send(asked(body(**fields)), BOTH, policy_for(flash, pro)))
        await eventually(lambda: bool(flash.seen()))
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert door.load() == {"flash": 0}
        await eventually(lambda: flash.seen()[0]["state"] == "aborted")


async def test_a_stream_left_in_the_middle_stops_the_server(flash: Sim, pro: Sim) -> None:
    flash.config(stall_after=3)
    async with upstream() as door:
        reply = await door.send(asked(body(stream=True)), FIRST, policy_for(flash, pro))
        assert await anext(reply.chunks)
        await reply.close()
        await eventually(lambda: flash.seen()[0]["state"] == "aborted")
        with pytest.raises(StopAsyncIteration):
            await anext(reply.chunks)


async def test_of_the_caller_only_the_request_id_goes_upstream_and_the_key_is_the_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVERS_KEY", "secret\n")
    async with scripted(plain(GOOD), plain(GOOD)) as (url, seen), upstream() as door:
        policy = policy_for(Sim(url, "m"), NOWHERE, tiers={"flash": {"api_key_env": "SERVERS_KEY"}})
        request = asked(body(), headers={"authorization": "Bearer callers", "cookie": "c", "x-forwarded-for": "1"})
        reply = await door.send(request, FIRST, policy)
        assert await collected(reply) == GOOD
        lines = seen[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert {line.partition(":")[0] for line in lines[1:]} == {
            "host", "user-agent", "content-type", "accept", "x-request-id", "content-length", "authorization",
        }  # fmt: skip
        assert "authorization: Bearer secret" in lines
        assert await collected(await door.send(request, FIRST, policy)) == GOOD
        ids = [line for head in seen for line in head.decode().split("\r\n") if line.startswith("x-request-id: ")]
        assert all(line.startswith(f"x-request-id: {request.id}-") for line in ids)
        assert len(set(ids)) == 2, "two exchanges of one id would meet in the server's engine"


async def test_round_robin_takes_turns_with_answers_alone() -> None:
    async with scripted(*[plain(GOOD)] * 4) as (one, first), scripted(*[plain(GOOD)] * 4) as (two, second):
        tier = {"replicas": [one, two], "balance": "round_robin"}
        policy = policy_for(Sim(one, "m"), NOWHERE, tiers={"flash": tier})
        async with upstream() as door:
            for _ in range(2):
                with await door.ask(asked(body()), CHAT, b"{}", policy, 5.0):
                    pass
                assert await collected(await door.send(asked(body()), FIRST, policy)) == GOOD
    assert len([head for head in first if b"-triage-" not in head]) == 1
    assert len([head for head in second if b"-triage-" not in head]) == 1


BEGUN = plain(b"data: {}\n\n" + b" " * 90, content_type="text/event-stream")[:-90]


async def test_nothing_more_is_read_of_an_answer_to_a_question_that_is_given_up() -> None:
    async with scripted(BEGUN, close=False) as (url, _), upstream() as door:
        policy = policy_for(Sim(url, "m"), NOWHERE)
        with contextlib.suppress(TimeoutError), await door.ask(asked(body()), CHAT, b"{}", policy, 5.0) as answer:
            await answer.events(lambda _: False)
            raise TimeoutError
        assert door.load()["flash"] == 0


async def test_the_rest_of_an_answer_to_a_question_is_read_no_longer_than_the_door_is_open() -> None:
    async with scripted(BEGUN, close=False) as (url, _), upstream() as door:
        policy = policy_for(Sim(url, "m"), NOWHERE)
        with await door.ask(asked(body()), CHAT, b"{}", policy, 5.0) as answer:
            await answer.events(lambda _: False)
        assert door.load()["flash"] == 1
        await door.close()
        assert door.load()["flash"] == 0


async def test_waiting_is_counted_over_all_tiers_that_were_tried(flash: Sim, pro: Sim) -> None:
    flash.config(stall_first=0.15, status=500)
    pro.config(stall_first=0.15)
    async with upstream() as door:
        started = time.perf_counter()
        reply = await door.send(asked(body()), BOTH, policy_for(flash, pro))
        assert 0.3 < reply.waited <= time.perf_counter() - started
        await reply.close()


async def test_conversations_stick_to_a_replica_for_question_and_answer(flash: Sim, pro: Sim) -> None:
    servers: Any = {"flash": {"replicas": [flash.url, pro.url], "model": "m"}}
    policy = policy_for(flash, pro, tiers=servers)
    async with upstream() as door:
        for text in "abcdefgh":
            flash.reset()
            pro.reset()
            for turn in (body(text), body(text) | {"messages": [*body(text)["messages"], *LATER]}):
                await (await door.send(asked(turn), FIRST, policy)).close()
                with await door.ask(asked(turn), CHAT, b"{}", policy, 5.0):
                    pass
            counts = [sim.state()["counters"]["received"] for sim in (flash, pro)]
            assert sorted(counts) == [0, 4]


LATER = [{"role": "assistant", "content": "so"}, {"role": "user", "content": "and?"}]
