"""Who asks behind a caller's key: the name that a request brings for it, cut, and never what is no name."""

import json
from typing import Any

import pytest

from gateway.fields import read
from gateway.policy import load_policy
from gateway.types import ChatRequest
from gateway.users import LONGEST, user_of
from tests.gateway.serving import ANN, CHAT

TEXT = """\
schema: 1
tiers: {flash: {model: m/flash, replicas: ["http://h"]}}
rules: [{id: all, route: flash}]
callers: {default: {plan: usual}, plans: {usual: {}}, user: ["header:X-User", "metadata:user_id", user]}
"""
POLICY, SILENT = (
    load_policy(TEXT, {}),
    load_policy(TEXT.replace(', user: ["header:X-User", "metadata:user_id", user]', ""), {}),
)
HUGE = b"9" * 6000


def asked(body: bytes = b"", **headers: str) -> ChatRequest:
    whole, fields = read(b'{"messages": [{"role": "user", "content": "x"}]' + body + b"}")
    return ChatRequest("r", ANN, CHAT, whole, fields, headers, 0.0)


def said(**members: Any) -> bytes:
    return b", " + json.dumps(members).encode()[1:-1]


@pytest.mark.parametrize(
    ("body", "header", "name"),
    [
        (said(user="c", metadata={"user_id": "b"}), "a", "a"),
        (said(user="c", metadata={"user_id": "b"}), "  ", "b"),
        (said(user="c", metadata={"user_id": ["b"]}), "", "c"),
        (said(user="c", metadata={"user_id": True}), "", "c"),
        (said(user=7), "", "7"),
        (said(user="x" * 5000), "", "x" * LONGEST),
        (said(user={"a": 1}), "", None),
        (said(user=None), "", None),
        (said(user=1.5), "", None),
        (b', "user": ' + HUGE, "", None),
        (b', "user": 1e999', "", None),
        (b"", "", None),
    ],
)
def test_the_first_name_that_a_request_brings_is_its_users(body: bytes, header: str, name: str | None) -> None:
    request = asked(body, **{"x-user": header})
    assert user_of(request, POLICY) == name
    assert user_of(request, SILENT) is None
