"""Refusals as callers see them: OpenAI's error object, statuses, and advice on retrying."""

import json
import math

import pytest

from gateway import errors
from gateway.errors import (
    BadRequest,
    Overloaded,
    RateLimited,
    Refusal,
    TooSlow,
    UpstreamFailed,
    UpstreamTimeout,
    unread,
)

TREE = {
    "BadRequest": (400, "invalid_request_error", None),
    "WrongMethod": (405, "invalid_request_error", "method_not_allowed"),
    "NoWebSocket": (426, "invalid_request_error", "websocket_not_served"),
    "TooSlow": (408, "invalid_request_error", "request_timeout"),
    "TooLarge": (413, "invalid_request_error", "request_too_large"),
    "Misdirected": (421, "invalid_request_error", "misdirected_request"),
    "HeadTooLarge": (431, "invalid_request_error", "headers_too_large"),
    "Unauthorized": (401, "authentication_error", "invalid_api_key"),
    "Forbidden": (403, "permission_error", None),
    "NotFound": (404, "invalid_request_error", "not_found"),
    "RateLimited": (429, "rate_limit_error", "rate_limit_exceeded"),
    "QuotaUsed": (429, "insufficient_quota", "insufficient_quota"),
    "Overloaded": (503, "server_error", "overloaded"),
    "Leaving": (503, "server_error", "gateway_leaving"),
    "UpstreamFailed": (502, "server_error", "upstream_failed"),
    "UpstreamAuth": (502, "server_error", "upstream_auth"),
    "TooLate": (504, "server_error", "deadline_exceeded"),
    "UpstreamTimeout": (504, "server_error", "upstream_timeout"),
}


@pytest.mark.parametrize("name", TREE)
def test_each_refusal_has_its_status_type_and_code(name: str) -> None:
    refusal = getattr(errors, name)("No.", param="model")
    status, kind, code = TREE[name]
    assert isinstance(refusal, Refusal)
    assert refusal.status == status
    assert json.loads(refusal.body()) == {"error": {"message": "No.", "type": kind, "param": "model", "code": code}}
    assert name in str(errors.__doc__)


def test_every_refusal_is_in_the_tree() -> None:
    found = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Refusal)}
    assert found - {"Refusal"} == set(TREE)
    assert issubclass(UpstreamTimeout, UpstreamFailed)


def test_a_code_of_its_own_wins() -> None:
    assert json.loads(RateLimited("x", code="insufficient_quota").body())["error"]["code"] == "insufficient_quota"
    assert RateLimited.code == "rate_limit_exceeded"


def test_any_text_makes_a_body() -> None:
    body = BadRequest('\ud800 "quoted" \r\n\x00 \u2028', param="\udfff").body()
    assert json.loads(body)["error"]["message"] == '? "quoted" \r\n\x00 \u2028'
    assert b"\n" not in body
    assert b"\r" not in body


@pytest.mark.parametrize(
    ("wait", "seconds", "milliseconds"),
    [
        (7, b"7", b"7000"),
        (0.25, b"1", b"250"),
        (1.0001, b"2", b"1001"),
        (0.0, b"1", b"1"),
        (-5.0, b"1", b"1"),
        (math.inf, b"2678400", b"2678400000"),
        (math.nan, b"1", b"1"),
    ],
)
def test_a_wait_is_told_in_seconds_and_milliseconds_rounded_up(
    wait: float, seconds: bytes, milliseconds: bytes
) -> None:
    assert Overloaded("x", retry_after=wait).headers() == [
        (b"retry-after", seconds),
        (b"retry-after-ms", milliseconds),
    ]


def test_clients_are_told_not_to_repeat_what_was_repeated_already() -> None:
    assert UpstreamFailed("x").headers() == [(b"x-should-retry", b"false")]
    assert UpstreamTimeout("x").headers() == [(b"x-should-retry", b"false")]
    assert BadRequest("x").headers() == []


def test_who_is_to_blame_for_a_request_that_was_not_read_is_told() -> None:
    late = TooSlow("The request was not complete in time.")
    assert unread(late) is late
    for why, status in ((None, 400), (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), 400), (MemoryError(), 503)):
        assert unread(why).status == status, why
