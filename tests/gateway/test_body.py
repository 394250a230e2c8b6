"""Reading a body: what is refused, what is understood, and that an edit touches nothing but its members."""

import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.body import (
    MAX_CHOICES,
    MAX_LIST,
    MAX_MEMBERS,
    MAX_MESSAGES,
    MAX_OPTION,
    MAX_TOOLS,
    MAX_VALUES,
    SHORT,
    Body,
    Fields,
    read,
)
from gateway.errors import BadRequest

MESSAGE = b'{"role":"user","content":"hi"}'
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner), max_leaves=6
)
KEYS = st.sampled_from(["model", "a", "é", 'q"', "b\\", "", "[", "{,", "\u2028", "n\n"]) | st.text(max_size=4)
SPACE = st.text(" \t\n\r", max_size=3)


def refused(data: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as refusal:
        read(data)
    error = json.loads(refusal.value.body())["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == refusal.value.param
    return refusal.value


@st.composite
def spelled(draw: st.DrawFn, members: dict[str, Any]) -> tuple[bytes, dict[str, bytes]]:
    """An object's text with odd white space and escapes, and each value's own text."""
    texts = {key: json.dumps(value, ensure_ascii=draw(st.booleans())) for key, value in members.items()}
    parts = []
    for key, text in texts.items():
        name = json.dumps(key, ensure_ascii=draw(st.booleans()))
        parts.append(f"{draw(SPACE)}{name}{draw(SPACE)}:{draw(SPACE)}{text}{draw(SPACE)}")
    whole = f"{draw(SPACE)}{{{','.join(parts) or draw(SPACE)}}}{draw(SPACE)}"
    return whole.encode(), {key: text.encode() for key, text in texts.items()}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"  ", b"null", b"[]", b'"x"', b"7", b"{", b'{"a":1', b'{"a":1,}', b'{"a":1}x', b'{"a":1}{}', b"{'a':1}",
        b'\xef\xbb\xbf\xef\xbb\xbf{"a":1}', b"\xef\xbb\xbf",
        '{"a":1}'.encode("utf-16"), b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"\xff":1}',
        b'{"a":"\xc0\x80"}', b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":01}', b'{"a":"\\x"}', b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":"\n"}', b'{"model":"a\x00b"}', b'{"a":\x0c1}', b'{"a":' + b"[" * 100_000, b"[" * 1_000_000,
        b'{"a":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        b'{"metadata":{"a":' + b"[" * 130_000 + b"]" * 130_000 + b"}}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_in_utf8_is_a_bad_request(data: bytes) -> None:
    assert refused(data).param is None


def test_a_byte_order_mark_in_front_is_no_part_of_the_body() -> None:
    body, fields = read(b'\xef\xbb\xbf{"model":"a","b":"\xc3\xa9"}')
    assert (fields.model, b"".join(body.pieces)) == ("a", b'{"model":"a","b":"\xc3\xa9"}')


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"model":7}', "model"),
        (b'{"stream":"yes"}', "stream"),
        (b'{"stream":1}', "stream"),
        (b'{"temperature":"0"}', "temperature"),
        (b'{"temperature":1e400}', "temperature"),
        (b'{"n":0}', "n"),
        (b'{"n":-1}', "n"),
        (b'{"n":%d}' % (MAX_CHOICES + 1), "n"),
        (b'{"n":1.5}', "n"),
        (b'{"n":true}', "n"),
        (b'{"n":1' + b"0" * 6000 + b"}", "n"),
        (b'{"max_tokens":-1}', "max_tokens"),
        (b'{"max_tokens":1e2}', "max_tokens"),
        (b'{"max_completion_tokens":18446744073709551616}', "max_completion_tokens"),
        (b'{"messages":{}}', "messages"),
        (b'{"messages":"hi"}', "messages"),
        (b'{"messages":[null]}', "messages[0]"),
        (b'{"messages":[%s,{"content":"x"}]}' % MESSAGE, "messages[1].role"),
        (b'{"messages":[{"role":1}]}', "messages[0].role"),
        (b'{"messages":[{"role":"user","content":5}]}', "messages[0].content"),
        (b'{"messages":[{"role":"user","content":["x"]}]}', "messages[0].content[0]"),
        (b'{"messages":[{"role":"user","content":[{"text":"x"}]}]}', "messages[0].content[0].type"),
        (b'{"messages":[{"role":"u","content":[{"type":"x","image_url":[]}]}]}', "messages[0].content[0].image_url"),
        (b'{"prompt":{}}', "prompt"),
        (b'{"prompt":[1.5]}', "prompt[0]"),
        (b'{"prompt":[1,[2,[3]]]}', "prompt[1][1]"),
        (b'{"tools":{}}', "tools"),
        (b'{"metadata":5}', "metadata"),
        (b'{"metadata":{"a":{"b":1e400}}}', "metadata"),
        (b'{"stream_options":[]}', "stream_options"),
        (b'{"chat_template_kwargs":"x"}', "chat_template_kwargs"),
        (b'{"cache_salt":1}', "cache_salt"),
        (b'{"top_k":2147483648}', "top_k"),
        (b'{"top_k":1e12}', "top_k"),
        (b'{"top_k":"7"}', "top_k"),
        (b'{"top_logprobs":129}', "top_logprobs"),
        (b'{"logprobs":1000}', "logprobs"),
    ],
)  # fmt: skip
def test_a_wrong_type_or_size_names_its_field(data: bytes, param: str) -> None:
    assert refused(data).param == param


def test_what_a_sampler_takes_is_left_to_the_server() -> None:
    for text in ('{"top_k":2147483647,"top_logprobs":128,"logprobs":true}', '{"top_k":-1.0,"logprobs":128}'):
        assert read(text.encode())[0].edit({}) == text.encode()


def many(unit: bytes, count: int) -> bytes:
    return b",".join([unit] * count)


TALK = b'"messages":[%s]' % MESSAGE
TOO_MUCH: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "members": (
        lambda: b'{"x0":0,' + b",".join(b'"x%d":0' % at for at in range(1, MAX_MEMBERS)) + b"," + TALK + b"}",
        None,
    ),
    "messages": (lambda: b'{"messages":[' + many(b'{"role":""}', MAX_MESSAGES + 1) + b"]}", "messages"),
    "pieces of a message": (
        lambda: b'{"messages":[{"role":"user","content":[' + many(b'{"type":""}', MAX_MESSAGES + 1) + b"]}]}",
        "messages[0].content",
    ),
    "tools": (lambda: b"{" + TALK + b',"tools":[' + many(b"{}", MAX_TOOLS + 1) + b"]}", "tools"),
    "numbers of a prompt": (lambda: b'{"prompt":[' + many(b"1", MAX_VALUES + 1) + b"]}", "prompt"),
    "numbers of one prompt of several": (lambda: b'{"prompt":[[' + many(b"1", MAX_VALUES + 1) + b"]]}", "prompt[0]"),
    "bytes of an option": (
        lambda: b"{" + TALK + b',"metadata":{"a":"' + b"x" * MAX_OPTION + b'"}}',
        "metadata",
    ),
    "words that end an answer": (
        lambda: b"{" + TALK + b',"stop":[' + many(b'"x"', MAX_LIST // 4) + b"]}",
        "stop",
    ),
    "words that no answer has": (
        lambda: b"{" + TALK + b',"bad_words":["' + b"x" * MAX_LIST + b'"]}',
        "bad_words",
    ),
    "empty objects that nobody looks at": (
        lambda: b"{" + TALK + b',"x":[' + many(b"{}", MAX_VALUES) + b"]}",
        None,
    ),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_takes_a_thousand_times_as_long_as_text_of_its_size_is_refused(name: str) -> None:
    made, param = TOO_MUCH[name]
    assert refused(made()).param == param


def test_a_megabyte_of_braces_in_a_text_is_a_text() -> None:
    text = b"[{" * (MAX_VALUES // 2 - 10)
    said = read(b'{"messages":[{"role":"user","content":"' + text + b'"}]}')[1].messages
    assert said
    assert said[0].content == text.decode()


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"a","model":"a"}', "model"),
        (b'{"model":"a","x":1,"m\\u006fdel":"b"}', "model"),
        (b'{ "m\\u006Fdel" :"b" , "model": "a" }', "model"),
        (b'{"a/b":1,"a\\/b":2}', "a/b"),
        (b'{"n":1,"n":12}', "n"),
        (b'{"n":12,"n":1}', "n"),
        (b'{"n":12,"n":1,"x":2}', "n"),
        (b'{"n":1.5,"n":1}', "n"),
        (b'{"n":1,"x":{"n":2},"n":1}', "n"),
        (b'{"":1,"":2}', ""),
        (b'{"n": 1, "model": "b", "n": 1}', "n"),
        (b'{"model": "a", "x": "\\", \\"model\\": ", "model": "a"}', "model"),
        (b'{"x":1,"a b":", \\"a b\\": ","a b":2}', "a b"),
        (b'{"a":1,"a":1,"b":2}', "a"),
        (b'{"a":1,"b":2,"a":1234567}', "a"),
        (b'{"a":"x\\",\\"a\\":1,\\"b","a":"x"}', "a"),
        (b'{"stream":true,"a":"\\"stream\\":false","stream":true}', "stream"),
        (b'{"' + b"k" * 9000 + b'":1,"' + b"k" * 9000 + b'":2}', "k" * 64),
    ],
)
def test_a_key_that_comes_twice_in_any_spelling_is_refused(data: bytes, param: str) -> None:
    refusal = refused(data)
    assert refusal.param == param
    assert "twice" in refusal.message


def test_a_body_of_any_origin_is_checked() -> None:
    for data in (b'{"\xff":1}', b"[]", b'{"a":1,"a":2}'):
        with pytest.raises(BadRequest):
            Body(data)


def test_null_means_absent() -> None:
    body, fields = read(b'{"model":null,"messages":null,"stream":null,"max_tokens":null,"n":null,"stop":null}')
    assert fields == Fields()
    assert body.raw("model") is None
    assert body.raw("stop") is None
    assert body.raw("absent") is None


def test_unknown_members_and_odd_strings_pass() -> None:
    data = b'{"model":"\\u0000\\r\\n","big":12345678901234567890123,"x":1E400,"s":"\\ud83d\\ude00","u":{"a":1,"a":2}}'
    body, fields = read(data)
    assert fields.model == "\x00\r\n"
    assert body.edit({}) == data


def test_an_accepted_body_can_be_decoded_again_from_further_down_the_stack() -> None:
    def deeper(frames: int, data: bytes) -> Any:
        return deeper(frames - 1, data) if frames else msgspec.json.decode(data)

    accepted = 0
    for depth in range(0, 1200, 10):
        data = b'{"x":' + b"[" * depth + b" " * 1024 + b"]" * depth + b"}"
        try:
            read(data)
        except BadRequest:
            continue
        deeper(80, data)
        accepted = depth
    assert accepted > 200


def test_all_addresses_in_a_piece_are_seen() -> None:
    piece = b'{"type":"video_url","image_url":"data:x","video_url":{"url":"http://a"},"audio_url":{"url":null,"x":1}}'
    _, fields = read(b'{"messages":[{"role":"user","content":[%s]}]}' % piece)
    assert fields.messages
    assert isinstance(fields.messages[0].content, list)
    assert fields.messages[0].content[0].urls() == ["data:x", "http://a"]


@given(st.data())
def test_an_edit_changes_its_members_and_no_other_byte(data: st.DataObject) -> None:
    members = data.draw(st.dictionaries(KEYS, VALUES, max_size=6))
    text, values = data.draw(spelled(members))
    body = Body(text)
    assert list(body.members) == list(members)
    assert {key: bytes(value) for key, value in body.members.items()} == values
    assert b"".join(body.pieces) == text
    names = KEYS | st.sampled_from([*members, "a"])
    changes = data.draw(st.dictionaries(names, st.none() | VALUES.map(dumped), max_size=6))
    result = body.edit(changes)
    left = {key: value for key, value in members.items() if key not in changes}
    given = {key: json.loads(value) for key, value in changes.items() if value is not None}
    assert json.loads(result) == left | given
    before, after = whole(body), whole(Body(result))
    assert {key: after[key] for key in left} == {key: before[key] for key in left}
    assert body.edit({}) == text


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=6), st.booleans(), st.booleans(), st.booleans())
@example({"a,b": 1, "c": 2}, True, True, False)
def test_what_libraries_write_is_read_and_edited_as_anything_else_is(
    members: dict[str, Any], ascii_only: bool, dense: bool, long: bool
) -> None:
    members |= {"long": "x" * SHORT} if long else {}
    separators = (",", ":") if dense else (", ", ": ")
    text = json.dumps(members, ensure_ascii=ascii_only, separators=separators).encode()
    assert json.loads(Body(text).edit({"model": b"1", "a%b": b'"%"'})) == members | {"model": 1, "a%b": "%"}
    for gone in [*members][:1] + [*members][-1:]:
        rest = {key: value for key, value in members.items() if key != gone}
        assert json.loads(Body(text).edit({gone: None})) == rest
    assert b"".join(Body(text).pieces) == text


def whole(body: Body) -> dict[str, bytes]:
    """Each member, name and value, as it stands in the text."""
    found = zip(body.members, body.pieces[2::2], body.pieces[3::2], strict=False)
    return {key: before.lstrip(b", \t\n\r") + value for key, before, value in found}


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), st.integers(0, 200), st.binary(max_size=3))
def test_no_bytes_do_worse_than_a_bad_request(noise: bytes, at: int, patch: bytes) -> None:
    good = b'{"model":"auto","messages":[%s],"stream":true,"n":1,"metadata":{"a":[1,"\\u00e9"]},"x":null}' % MESSAGE
    patched = good[:at] + patch + good[at + len(patch) :]
    for data in (noise, b'{"x":' + noise + b"}", patched, good[:at] + noise + good[at:]):
        try:
            body, _ = read(data)
        except BadRequest as refusal:
            json.loads(refusal.body())
        else:
            assert json.loads(body.edit({"model": b'"m"'}))["model"] == "m"


def test_reading_takes_time_in_proportion_to_size() -> None:
    def seconds(count: int) -> float:
        data = b"{" + b",".join(b'"k%d":"%s"' % (i, b"v" * 200) for i in range(count)) + b"}"
        started = time.thread_time()
        read(data)[0].edit({"k1": None, "model": b'"m"'})
        return time.thread_time() - started

    # Ten times the members: a hundred times the work if each looked at all others.
    assert min(seconds(1000) for _ in range(20)) < 60 * min(seconds(100) for _ in range(20))


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=6))
def test_a_members_size_is_that_of_its_bytes(members: dict[str, Any]) -> None:
    found = Body(json.dumps(members).encode())
    assert {key: found.size(key) for key in members} == {key: len(found.raw(key) or b"") for key in members}
    assert found.size("not in it") == 0
