"""Answers as servers end, cut, hide and spell them; what the caller gets is never more finished than what was sent."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import msgspec
import pytest

from gateway.dialects import DIALECTS, Whole
from gateway.dialects.answers import MOST_TOKENS
from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.http1 import Limits, TransportError
from gateway.http1.connection import Kind
from gateway.sse import event, named_event
from gateway.stream import MAX_JSON, Events, broken, fill, read_whole
from gateway.types import Usage
from tests.gateway.loopback import CHUNKED, Peer, Run, Talk, ask, run, serving

__all__ = ["run"]

CHAT = "/v1/chat/completions"
DONE = event(b"[DONE]")
COUNTS = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
QUICK = Limits(5, 5, 0.1, 10)


def chunk(text: str, **more: Any) -> bytes:
    """As servers spell it: without blanks, so that one is like the other."""
    said = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return event(json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode())


def counted(usage: Any = COUNTS, **more: Any) -> bytes:
    return event(json.dumps({"id": "c", "choices": [], "usage": usage, **more}).encode())


def streaming(*parts: bytes, end: str = "whole") -> Talk:
    """`end`: whole (the message's own), cut (the connection's), still (nothing comes any more)."""

    async def talk(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.answer(CHUNKED, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts))
            if end == "cut":
                return
            await (peer.answer(b"0\r\n\r\n") if end == "whole" else peer.left())

    return talk


@dataclass
class Seen:
    data: bytes = b""
    usage: Usage = field(default_factory=Usage)
    refusal: UpstreamFailed | None = None
    error: Any = None
    told: UpstreamFailed | None = None


async def relayed(talk: Talk, *, path: str = CHAT, hide_usage: bool = True) -> Seen:
    """What comes of a stream, asked for piece by piece; poured out it must come to the same."""
    async with serving(talk) as (client, origin, _):
        pulled = await read(await ask(client, origin, QUICK), path=path, hide_usage=hide_usage)
    async with serving(talk) as (client, origin, _):
        poured = await pour(await ask(client, origin, QUICK), path=path, hide_usage=hide_usage)
    assert (poured.data, poured.usage, poured.error) == (pulled.data, pulled.usage, pulled.error)
    assert (poured.usage.events, poured.usage.bulk) == (pulled.usage.events, pulled.usage.bulk)
    assert repr(poured.refusal) == repr(pulled.refusal)
    return pulled


async def read(response: Any, *, path: str = CHAT, hide_usage: bool) -> Seen:
    seen = Seen()
    events = Events(response, seen.usage, DIALECTS[path].answers, hide_usage, partial(setattr, seen, "told"))
    try:
        await events.more()
        async for batch in events:
            seen.data += batch
    except UpstreamFailed as refusal:
        seen.refusal = refusal
    finally:
        response.close()
    seen.error = events.error
    return seen


async def pour(response: Any, *, path: str = CHAT, hide_usage: bool, most: int = 3) -> Seen:
    """So many pieces are too much for who takes them, so that the next one has to be asked for."""
    seen, took = Seen(), 0
    events = Events(response, seen.usage, DIALECTS[path].answers, hide_usage, partial(setattr, seen, "told"))

    def sink(data: bytes) -> bool:
        nonlocal took
        seen.data, took = seen.data + data, took + 1
        return took % most != 0

    try:
        async for batch in events:
            seen.data += batch
            if (last := await events.pour(sink)) is not None:
                seen.data += last
                break
    except UpstreamFailed as refusal:
        seen.refusal = refusal
    finally:
        response.close()
    assert seen.told is seen.refusal, "who asked the server hears of its failures, and of nothing else"
    seen.error = events.error
    return seen


async def test_a_whole_stream_passes_unchanged_in_any_pieces(run: Run) -> None:
    said = (
        chunk('one\u2028two\x85 [DONE] "usage"')
        + b": ping\n\n"
        + b"event: x\r\ndata: {\r\ndata: }\r\n\r\n"
        + chunk("é😀")
    )
    stream = said + counted() + DONE
    for size in (1, 3, 50, 9999):
        parts = [stream[at : at + size] for at in range(0, len(stream), size)]
        seen = await relayed(streaming(*parts), hide_usage=False)
        assert (seen.data, seen.refusal) == (stream, None)
        seen = await relayed(streaming(*parts))
        assert (seen.data, seen.refusal) == (said + DONE, None)
        assert seen.usage == Usage(7, None, 5)


async def test_events_that_are_like_those_before_are_looked_at_where_they_say_more(run: Run) -> None:
    """Each event comes by itself: whole ones, one that is cut within its text, and such that only begin alike."""
    texts = ["a", "usage", '"usage"', "[DONE]", "\\", "b\n", "\u2028", ""]
    first = [chunk(text) for text in texts]
    cut = [*[chunk("c")[:60], chunk("c")[60:], b": ", chunk("c")] * 3, chunk("d", usage=COUNTS), chunk("e") * 2]
    hidden = [chunk(text, choices=[], usage=COUNTS, x={"content": text}) for text in "abcd"]
    parts = [*first, *cut, *first, *hidden, chunk("h").replace(b"null", b'"stop"'), DONE]
    async with serving(streaming(*parts)) as (client, origin, _):
        seen = await pour(await ask(client, origin), hide_usage=True, most=len(parts))
    assert (seen.data, seen.refusal) == (b"".join([part for part in parts if part not in hidden]), None)
    assert (seen.usage, seen.usage.events) == (Usage(7, None, 5), b"".join(parts).count(b"\n\n"))


def taking(taken: list[bytes], data: bytes) -> bool:
    taken.append(data)
    return True


async def test_of_a_large_event_the_bytes_count_and_of_many_small_ones_the_events(run: Run) -> None:
    large = chunk("x" * 5000)
    for parts in ([chunk("one"), large, chunk("two")], [chunk("one") + large[:99], large[99:] + chunk("two")]):
        seen = await relayed(streaming(*parts, counted() + DONE))
        assert (seen.usage.events, seen.usage.bulk) == (5, len(large))
    seen = await relayed(streaming(b"".join(chunk(f"{n}") for n in range(100)), DONE))
    assert (seen.usage.events, seen.usage.bulk) == (101, 0)


async def test_of_a_large_event_neither_what_repeats_the_request_nor_likelihoods_count(run: Run) -> None:
    likely = {"index": 0, "delta": {"content": "two at once"}, "logprobs": {"content": [{"token": "x" * 6000}]}}
    tool = {"choices": [{**likely, "delta": {"tool_calls": [{"function": {"arguments": "x" * 5000}}]}}]}
    text = chunk("", choices=[{"index": 0, "text": "x" * 5000}])
    for large, bulk in (
        (chunk("", choices=[likely]), 0),
        (chunk("", **tool), chunk("", **tool).index(b'"logprobs"')),
        (text, len(text)),
    ):
        assert (await relayed(streaming(large, DONE))).usage.bulk == bulk
    named = "response.created", "response.function_call_arguments.delta", "response.function_call_arguments.done"
    told: list[dict[str, Any]] = [
        {"response": {"tools": ["x" * 6000]}},
        {"delta": "x" * 6000},
        {"arguments": "x" * 6000},
    ]
    events = [
        named_event(kind, json.dumps({"type": kind, **more}).encode()) for kind, more in zip(named, told, strict=True)
    ]
    seen = await relayed(streaming(*events, RESPONSE[-1]), path="/v1/responses")
    assert (seen.usage.events, seen.usage.bulk) == (4, len(events[1]))


@pytest.mark.parametrize("together", [True, False])
async def test_the_last_event_may_leave_with_the_end_where_both_have_come(run: Run, together: bool) -> None:
    async def talk(peer: Peer) -> None:
        await peer.request()
        said = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (chunk("b"), DONE))
        await peer.answer(CHUNKED + b"%x\r\n%s\r\n" % (len(chunk("a")), chunk("a")))
        await read.wait()
        await peer.answer(said + (b"0\r\n\r\n" if together else b""))
        await ended.wait()
        await peer.answer(b"0\r\n\r\n")

    read, ended = asyncio.Event(), asyncio.Event()
    async with serving(talk) as (client, origin, _):
        response, taken = await ask(client, origin), list[bytes]()
        events = Events(response, Usage(), DIALECTS[CHAT].answers, True, lambda _: None)
        assert await anext(events) == chunk("a")
        read.set()
        last = await events.pour(partial(taking, taken))
        ended.set()
        assert (last, taken) == (chunk("b") + DONE if together else None, [])
        assert [batch async for batch in events] == ([] if together else [chunk("b") + DONE])
        response.close()


@pytest.mark.parametrize("end", ["cut", "whole"])
async def test_a_stream_that_is_cut_anywhere_is_never_finished(run: Run, end: str) -> None:
    stream = chunk("a", x={"finish_reason": "stop"}) + counted() + DONE
    lengths = range(len(stream) - len(b"]\n\n"))
    ways = iter([streaming(*([stream[:length]] if length else []), end=end) for length in lengths])

    async def talk(peer: Peer) -> None:
        await next(ways)(peer)

    async with serving(talk) as (client, origin, _):
        for _ in lengths:
            seen = await read(await ask(client, origin), hide_usage=False)
            assert isinstance(seen.refusal, UpstreamFailed)
            assert b"[DONE]" not in seen.data
            assert stream.startswith(seen.data)
            assert seen.data.endswith(b"\n\n") or not seen.data  # half an event would swallow the error's
            client.close()


def spoken(*events: Any) -> list[bytes]:
    return [named_event(said["type"], json.dumps(said).encode()) for said in events]


START = {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 4, "cache_read_input_tokens": 3}}}
DELTA = {"type": "content_block_delta", "delta": {"text": '"message_stop" [DONE]'}}
MESSAGE = spoken(
    START, DELTA, {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}, {"type": "message_stop"}
)
USED = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 5}
ENDED = {"id": "r", "error": None, "usage": USED}
RESPONSE = spoken(
    {"type": "response.created", "response": {"id": "r", "error": None, "usage": None}},
    {"type": "response.output_text.delta", "delta": '"response.completed"'},
    {"type": "response.completed", "response": ENDED},
)


@pytest.mark.parametrize(("path", "events"), [("/v1/messages", MESSAGE), ("/v1/responses", RESPONSE)])
async def test_each_dialect_ends_with_its_own_last_event_and_nothing_else(
    run: Run, path: str, events: list[bytes]
) -> None:
    whole = await relayed(streaming(*events, DONE, chunk("after")), path=path)
    assert (whole.data, whole.refusal) == (b"".join(events), None)
    assert (whole.usage, whole.usage.complete) == (Usage(7, 3, 5, complete=True), True)
    for last in range(len(events)):
        for rest in (b"", DONE, events[last].removesuffix(b"\n")):
            cut = await relayed(streaming(*events[:last], *([rest] if rest else [])), path=path)
            assert isinstance(cut.refusal, UpstreamFailed)
            assert not cut.usage.complete


FAILED = {"type": "response.failed", "response": {"id": "r", "error": {"code": "server_error"}, "usage": None}}


@pytest.mark.parametrize(
    ("path", "before", "last"),
    [
        ("/v1/messages", MESSAGE[:2], {"type": "error", "error": {"type": "internal_error", "message": "x"}}),
        ("/v1/responses", RESPONSE[:2], {"type": "error", "message": "x", "sequence_number": 2}),
        ("/v1/responses", RESPONSE[:2], FAILED),
    ],
)
async def test_each_dialects_word_for_a_failure_is_understood(
    run: Run, path: str, before: list[bytes], last: Any
) -> None:
    seen = await relayed(streaming(*before, *spoken(last)), path=path)
    assert (seen.data, seen.refusal) == (b"".join([*before, *spoken(last)]), None)
    assert seen.error


@pytest.mark.parametrize(
    "last", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE] \n\n"]
)
async def test_each_spelling_of_done_ends_a_stream(run: Run, last: bytes) -> None:
    seen = await relayed(streaming(chunk("a") + last + chunk("after") + DONE))
    assert (seen.data, seen.refusal) == (chunk("a") + last, None)


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\r", b"data: [DONE]\r\n"])
async def test_a_done_without_its_blank_line_is_given_one(run: Run, last: bytes) -> None:
    seen = await relayed(streaming(chunk("a"), last))
    assert (seen.data, seen.refusal) == (chunk("a") + last + b"\n\n", None)


FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}


@pytest.mark.parametrize(
    ("last", "end", "whole"),
    [
        (chunk("b", usage=COUNTS, **FINISH), "whole", True),
        (chunk("b", usage=COUNTS, **FINISH), "cut", False),
        (chunk("b", **FINISH), "whole", False),
        (chunk("b", usage=None, **FINISH), "whole", False),
        (chunk("b", usage=COUNTS), "whole", False),
        (chunk("b", usage=COUNTS, **FINISH) + chunk("c", usage=COUNTS), "whole", False),
    ],
)
async def test_a_finish_told_with_its_usage_is_an_end_that_is_given_its_done(
    run: Run, last: bytes, end: str, whole: bool
) -> None:
    seen = await relayed(streaming(chunk("a"), last, end=end))
    assert seen.data == chunk("a") + last + (DONE if whole else b"")
    assert (seen.usage.complete, seen.refusal is None) == (whole, whole)


async def test_comments_alone_are_waited_out_for_a_while_and_pass_in_their_place(run: Run) -> None:
    for patience, waited in ((5.0, True), (0.0, False)):
        async with serving(streaming(b": queued\n\n", b": que", b"ued\n\n", chunk("a"), DONE)) as (client, origin, _):
            response = await ask(client, origin, QUICK)
            events = Events(response, Usage(), DIALECTS[CHAT].answers, True, lambda _: None)
            await events.more()
            assert events.quiet()
            await events.said(patience)
            first = await anext(events)
            assert (chunk("a") in first) == waited
            assert first + b"".join([batch async for batch in events]) == b": queued\n\n" * 2 + chunk("a") + DONE
            response.close()


async def test_a_stream_that_stands_still_is_a_timeout(run: Run) -> None:
    seen = await relayed(streaming(chunk("a"), end="still"))
    assert seen.data == chunk("a")
    assert isinstance(seen.refusal, UpstreamTimeout)


@pytest.mark.parametrize("end", ["whole", "cut", "still"])
@pytest.mark.parametrize("more", [{}, {"choices": [], "usage": COUNTS}])
@pytest.mark.parametrize("done", [b"", DONE])
async def test_an_error_of_the_server_passes_and_is_the_only_one(
    run: Run, end: str, more: dict[str, Any], done: bytes
) -> None:
    error = event(json.dumps({"error": {"message": "out of memory", "code": 500}, **more}).encode())
    seen = await relayed(streaming(chunk("a") + error + done, end=end))
    assert (seen.data, seen.refusal) == (chunk("a") + error + done, None)
    assert seen.error["code"] == 500


@pytest.mark.parametrize("blank", ["", " "])
async def test_an_answer_that_its_server_gave_up_is_told_as_it_came_and_has_failed(run: Run, blank: str) -> None:
    last = chunk("").replace(b'"finish_reason":null', f'"finish_reason"{blank}:{blank}"abort"'.encode())
    seen = await relayed(streaming(chunk("a"), last, DONE))
    assert (seen.data, seen.usage.failed, seen.error) == (chunk("a") + last + DONE, True, "abort")
    said = chunk('{"finish_reason":"abort"}')
    assert not (await relayed(streaming(chunk("a"), said, DONE))).usage.failed


async def test_what_a_message_had_at_its_start_is_not_what_it_has_at_its_end(run: Run) -> None:
    start: Any = {"type": "message_start", "message": {"usage": {"input_tokens": 4, "output_tokens": 0}}}
    for told, completion in (({"output_tokens": 5}, 5), (None, None)):
        last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": told}
        seen = await relayed(streaming(*spoken(start, DELTA, last), MESSAGE[-1]), path="/v1/messages")
        assert (seen.usage.complete, seen.usage.prompt, seen.usage.completion) == (True, 4, completion)


async def test_a_message_that_stops_for_no_reason_was_given_up(run: Run) -> None:
    for reason, failed in ((None, True), ("end_turn", False)):
        last = spoken({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}})
        events = [*MESSAGE[:2], *last, MESSAGE[-1]]
        seen = await relayed(streaming(*events), path="/v1/messages")
        assert (seen.data, seen.usage.failed, seen.error == "abort") == (b"".join(events), failed, failed)


def test_only_the_end_of_an_answer_tells_that_it_was_given_up() -> None:
    gone, null = {"finish_reason": "abort"}, {"stop_reason": None}
    for whole in (
        *({"choices": [{"text": json.dumps(gone)}]}, {"choices": [], "metadata": gone}, {"output": gone}),
        {"content": [{"type": "tool_use", "input": null}], "stop_reason": "tool_use"},
        {"choices": [{"finish_reason": "stop", **null}]},
    ):
        read_whole(json.dumps(whole).encode(), 200, Usage())
    for ended in (b'{"choices": [{"text": "x"}, {"finish_reason": "abort"}]}', b'{"content": [], "stop_reason": null}'):
        with pytest.raises(UpstreamFailed):
            read_whole(ended, 200, Usage())


@pytest.mark.parametrize(
    ("event", "shown", "usage"),
    [
        (counted(), False, Usage(7, None, 5)),
        (counted({**COUNTS, "prompt_tokens_details": {"cached_tokens": 4}}), False, Usage(7, 4, 5)),
        (counted({**COUNTS, "prompt_tokens_details": None}), False, Usage(7, None, 5)),
        (counted({**COUNTS, "prompt_cache_hit_tokens": 3}), False, Usage(7, 3, 5)),
        (counted().replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), False, Usage(7, None, 5)),
        (counted().replace(b'"choices": [], ', b""), False, Usage(7, None, 5)),
        (counted(None), True, Usage()),
        (counted({}), True, Usage()),
        (counted({"prompt_tokens": "many"}), False, Usage()),
        (counted({**COUNTS, "completion_tokens": -5}), False, Usage()),
        (counted({**COUNTS, "completion_tokens": 1 << 33}), False, Usage()),
        (counted({**COUNTS, "prompt_tokens_details": {"cached_tokens": -4}}), False, Usage()),
        (counted({"prompt_tokens": 7, "total_tokens": 5}), False, Usage(7, None, 0)),
        (counted({**COUNTS, "total_tokens": 99}), False, Usage(7, None, 5)),
        (counted(7), False, Usage()),
        (chunk("a", usage=None), True, Usage()),
        (chunk("a", usage=COUNTS), True, Usage(7, None, 5)),
        (chunk("a", usage=None, type=["message_stop"]), True, Usage()),
        (event(b'{"usage": '), True, Usage()),
        (event(b'{"usage": "\xff"}'), True, Usage()),
        (event(b'{"x": ' + b"[" * 9999 + b'"usage"'), True, Usage()),
        (event(b'["usage"]'), True, Usage()),
    ],
)
async def test_usage_is_read_in_every_form_and_only_its_own_chunk_is_hidden(
    event: bytes, shown: bool, usage: Usage
) -> None:
    seen = await relayed(streaming(event + DONE))
    assert seen.refusal is None
    assert seen.usage == usage
    assert seen.data == (event if shown else b"") + DONE
    assert (await relayed(streaming(event + DONE), hide_usage=False)).data == event + DONE


async def test_the_last_of_several_counts_stands(run: Run) -> None:
    early = chunk("a", usage={"prompt_tokens": 7, "completion_tokens": 1})
    assert (await relayed(streaming(early + counted() + DONE))).usage == Usage(7, None, 5)


async def test_a_finished_stream_gives_its_connection_back(run: Run) -> None:
    async with serving(streaming(chunk("a"), DONE)) as (client, origin, server):
        for _ in range(3):
            await read(await ask(client, origin), hide_usage=True)
        assert server.connections == 1


def saying_json(data: bytes, status: int = 200, cut: int = 0) -> Talk:
    async def talk(peer: Peer) -> None:
        await peer.request()
        await peer.answer(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(data) + cut, data))

    return talk


async def answered(data: bytes, status: int = 200, cut: int = 0) -> tuple[bytes, Usage]:
    usage = Usage()
    async with serving(saying_json(data, status, cut)) as (client, origin, _):
        response = await ask(client, origin, QUICK)
        try:
            data = await response.read(MAX_JSON)
            read_whole(data, status, usage)
            return data, usage
        finally:
            response.close()


@pytest.mark.parametrize("member", ["prompt_tokens", "completion_tokens", "input_tokens", "cache_read_input_tokens"])
def test_of_a_usage_that_no_answer_can_have_nothing_is_counted(member: str) -> None:
    for count, believed in ((MOST_TOKENS, True), (MOST_TOKENS + 1, False), (-1, False)):
        usage = Usage()
        fill(usage, {"completion_tokens": 5, "input_tokens": 1, member: count})
        assert (usage.completion is not None, usage.prompt is not None) == (believed, believed)


def test_a_json_answer_passes_byte_for_byte_and_is_counted() -> None:
    data = b' {"id" : "x",  "n": 1.0, "choices":[{}], "usage": {"prompt_tokens": 7, "completion_tokens": 5}} '
    assert asyncio.run(answered(data)) == (data, Usage(7, None, 5))
    assert asyncio.run(answered(b'{"usage": {"prompt_tokens": "x"}}'))[1] == Usage()


def test_what_an_answer_used_does_not_hold_on_to_the_answer() -> None:
    data, usage = bytearray(b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}'), Usage()
    fill(usage, msgspec.json.decode(data, type=Whole).usage)
    data.clear()  # raises where somebody looks into it
    assert json.loads(msgspec.json.encode(usage.said)) == {"prompt_tokens": 7, "completion_tokens": 5}


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"[1, 2", b'{"a": ', b"<html>", b'{"a": NaN}', b'{"a":' + b"[" * 99_999],
)
def test_what_is_no_json_object_is_an_answer_only_as_an_error(data: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        asyncio.run(answered(data))
    assert asyncio.run(answered(data, status=400)) == (data, Usage())


def test_a_json_answer_that_is_cut_is_a_failure_with_any_status() -> None:
    for status in (200, 400):
        with pytest.raises(TransportError):
            asyncio.run(answered(b"{}", status, cut=1))


def test_a_caller_is_told_what_broke_but_not_where() -> None:
    kinds: tuple[Kind, ...] = get_args(Kind)
    late = {kind for kind in kinds if isinstance(broken(TransportError(kind, "x")), UpstreamTimeout)}
    assert late == {"first_byte", "still", "idle", "total"}
    for kind in kinds:
        refusal = broken(TransportError(kind, "10.0.0.7:8000"))
        assert (refusal.status, refusal.should_retry) == (504 if kind in late else 502, False)
        assert "10.0" not in refusal.message
        assert ("cannot be reached" in refusal.message) == (kind == "connect")


async def test_no_number_that_an_event_repeats_takes_a_hundred_times_as_long_as_another() -> None:
    async def seconds(number: str) -> float:
        told = f'{{"type":"response.completed","response":{{"usage":null,"tools":[{",".join([number] * 2000)}]}}}}'
        started = time.thread_time()
        await relayed(streaming(named_event("response.completed", told.encode())), path="/v1/responses")
        return time.thread_time() - started

    assert min([await seconds("1e300") for _ in range(3)]) < 5 * min([await seconds("1.5") for _ in range(3)])
