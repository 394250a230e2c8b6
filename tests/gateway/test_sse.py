"""Events: where they end, however the stream is cut, and what they say."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.sse import Splitter, alike, data_of, event, events_of

ENDS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n"])
PIECES = ENDS | st.sampled_from([b"data: ", b"data:", b":", b"x", b"data: x\n\n", "\u2028\x85".encode()])
STREAMS = st.lists(PIECES | st.binary(max_size=4), max_size=24).map(b"".join)


def split(parts: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = Splitter()
    events = [found for part in parts for found in splitter.feed(part)]
    assert len(splitter) == len(splitter.rest())
    return events, splitter.rest()


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    marks = sorted({0, len(stream), *(at % (len(stream) + 1) for at in cuts)})
    return [stream[a:b] for a, b in pairwise(marks)]


@given(STREAMS, st.lists(st.integers(0, 1 << 16), max_size=12))
@example(b"data: x\n\n\n", [9])
@example(b"a\n\n\nb\n\n\n\nc\n\n", [2, 7])
@example(b"a\n\nb\n\n\n", [4])
@example(b"a\r\n\r\nb\r\rc\n\r\nd\n\rx\r\n\n", list(range(20)))
def test_cuts_change_nothing_and_no_byte_is_lost(stream: bytes, cuts: list[int]) -> None:
    events, rest = split(cut(stream, cuts))
    assert b"".join(events) + rest == stream
    assert (events, rest) == split([stream])
    assert (events, rest) == split([bytes([byte]) for byte in stream])
    assert all(blank_at_the_end_only(found) for found in events)
    plain = Splitter().plain(stream)
    assert not plain or (plain, b"") == (len(events), rest)


@given(
    STREAMS | st.lists(st.sampled_from([b"data: x\n\n", b"data: \n\n", b"\n", b": c\n\n"])).map(b"".join),
    st.integers(0),
)
@example(b"data: a\n\ndata: b\n\n", 0)
@example(b"data: a\n\n\ndata: b\n\n", 0)
@example(b"data: a\ndata: b\n\n", 8)
def test_what_events_say_is_told_of_the_same_events(stream: bytes, at: int) -> None:
    events, said = Splitter(), Splitter()
    for part in cut(stream, [at]):
        assert said.said(part) == [data_of(found) for found in events.feed(part)]
    assert said.rest() == events.rest()


TEXT = b'"content":"'
SAID = st.text(max_size=8) | st.sampled_from(
    ['usage"', "usage", "[DONE]", "a\\", "\n\n", "\r", "\u2028", ' "content":"x']
)


def said(text: str, **more: object) -> bytes:
    told = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return event(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode())


@given(SAID, SAID)
def test_an_event_is_like_another_with_another_text(one: str, other: str) -> None:
    like = alike(said(one.replace('"', "")), TEXT)
    assert like(said(other)) == ('"' not in other), "a quote may be the end of the text"
    assert not like(said(other, usage=None))
    assert not like(said(one) + said(other))
    assert not like(said(other)[:-1])
    assert not any(like(said("plain").replace(b"plain", other.encode() + end)) for end in (b"\n", b"\r"))


@given(SAID, st.integers(0, 200), st.integers(0, 200), st.binary(max_size=4) | ENDS | PIECES)
@example("a", 0, 200, b"")
@example("a", 60, 60, b"\n\n")
@example("a", 60, 60, b'","usage":"')
@example("a", 12, 13, b"x")
def test_what_is_like_an_event_is_one_whole_event_with_the_same_around_its_text(
    text: str, at: int, to: int, other: bytes
) -> None:
    before = said(text)
    found = before[:at] + other + before[max(at, to) :]
    if alike(before, TEXT)(found):
        assert split([found]) == ([found], b"")
        head, _, rest = before.partition(TEXT)
        assert found.startswith(head + TEXT)
        assert found.endswith(rest[rest.index(b'"') :])
        assert found[len(head + TEXT) :].index(b'"') == len(found) - len(head + TEXT) - len(rest[rest.index(b'"') :])


@pytest.mark.parametrize(
    "before", [b"", b"x", event(b"{}"), event(b'{"content":7}'), b'data: {"content":"', said("a") * 2]
)
def test_nothing_is_like_what_is_not_one_event_with_a_text(before: bytes) -> None:
    assert not alike(before, TEXT)(before)
    assert not alike(before, TEXT)(said("a"))


def blank_at_the_end_only(found: bytes) -> bool:
    lines = found.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return lines.index(b"\n\n") == len(lines) - 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_line_end_of_the_standard_ends_lines(end: bytes) -> None:
    written = [b": ping", b"data: a" + end + b"data:b", b"id: 1" + end + b"data:  c" + end + b"retry: 5", b"data"]
    stream = b"".join(part + end + end for part in written) + b"x"
    events, rest = split([stream])
    assert [data_of(found) for found in events] == [b"", b"a\nb", b" c", b""]
    assert rest == b"x"
    assert events_of(stream[:-1]) == events, "the last one, too: nothing will follow it"


def test_other_line_separators_are_text() -> None:
    said = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\ufeff".encode()
    events, rest = split([event(said)[:9], event(said)[9:] + event(said)])
    assert [data_of(found) for found in events] == [said, said]
    assert rest == b""


def test_a_carriage_return_at_the_end_waits_for_its_line_feed() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\n\r") == []
    assert splitter.feed(b"\ndata: b") == [b"data: a\r\n\r\n"]
    assert splitter.rest() == b"data: b"


@pytest.mark.parametrize(
    ("written", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data:[DONE]\r\n\r\n", b"[DONE]"),
        (b"\ndata: x\n\n", b"x"),
        (b"data: x\ny\n\n", b"x"),
        (b"data: x\ndata: y", b"x\ny"),
        (b"data: x\ny", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: x\rdata: y\n\n", b"x\ny"),
        (b"event: e\ndata: x\n\n", b"x"),
        (b"database: x\n\n", b""),
        (b": data: x\n\n", b""),
        (b"\n\n", b""),
        (b"", b""),
    ],
)
def test_the_data_is_read_as_the_standard_says(written: bytes, data: bytes) -> None:
    assert data_of(written) == data


def test_a_large_event_in_small_pieces_is_scanned_once() -> None:
    def seconds(size: int) -> float:
        stream, splitter = event(b"x" * size), Splitter()
        started = time.thread_time()
        found = [one for at in range(0, len(stream), 16) for one in splitter.feed(stream[at : at + 16])]
        assert found == [stream]
        return time.thread_time() - started

    assert min(seconds(1 << 20) for _ in range(2)) < 24 * min(seconds(1 << 17) for _ in range(3))


def test_many_events_in_one_piece_are_cut_in_time_proportional_to_them() -> None:
    stream = event(b"x") * 100_000
    started = time.thread_time()
    events, rest = split([stream])
    assert (len(events), rest) == (100_000, b"")
    assert time.thread_time() - started < 2
