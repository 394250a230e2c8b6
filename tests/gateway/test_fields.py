"""Which fields are read, and what may not be in them."""

import pytest

from gateway.errors import BadRequest
from gateway.fields import MAX_CHOICES, Fields, read

MESSAGE = b'{"role":"user","content":"hi"}'


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
    with pytest.raises(BadRequest) as refusal:
        read(data)
    assert refusal.value.param == param


def test_what_a_sampler_takes_is_left_to_the_server() -> None:
    for text in ('{"top_k":2147483647,"top_logprobs":128,"logprobs":true}', '{"top_k":-1.0,"logprobs":128}'):
        assert read(text.encode())[0].edit({}) == text.encode()


def test_null_means_absent() -> None:
    body, fields = read(b'{"model":null,"messages":null,"stream":null,"max_tokens":null,"n":null,"stop":null}')
    assert fields == Fields()
    assert body.raw("model") is None
    assert body.raw("stop") is None
    assert body.raw("absent") is None


def test_all_addresses_in_a_piece_are_seen() -> None:
    piece = b'{"type":"video_url","image_url":"data:x","video_url":{"url":"http://a"},"audio_url":{"url":null,"x":1}}'
    _, fields = read(b'{"messages":[{"role":"user","content":[%s]}]}' % piece)
    assert fields.messages
    assert isinstance(fields.messages[0].content, list)
    assert fields.messages[0].content[0].urls() == ["data:x", "http://a"]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [(b"null", []), (b'"a"', ["a"]), (b'["a","b"]', ["a", "b"]), (b"[1,2]", []), (b"[[1],[2]]", [])],
)
def test_a_completions_prompt_has_texts_unless_it_is_token_ids(prompt: bytes, texts: list[str]) -> None:
    _, fields = read(b'{"prompt":%s}' % prompt)
    assert fields.texts() == texts
