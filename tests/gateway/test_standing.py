"""What callers are told of their limits, and operators of how they are kept."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import load_policy
from gateway.standing import duration, kept

CALLERS = load_policy(
    """\
schema: 1
tiers: {flash: {model: f, replicas: ["http://h"]}}
rules: [{id: all, route: flash}]
callers: {default: {plan: p}, plans: {p: {}}, on_store_failure: {tokens: allow}}
""",
    {},
).callers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.012, "12ms"), (1.0, "1s"), (1.5, "1.5s"), (60.0, "1m0s"), (360.0, "6m0s"), (3661.5, "1h1m1.5s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(min_value=0.0, max_value=1e6))
def test_a_duration_is_never_short_and_at_most_a_millisecond_long(seconds: float) -> None:
    found = re.fullmatch(r"(?:(\d+)ms)|(?:(?:(\d+)h)?(?:(\d+)m)?([\d.]+)s)", duration(seconds))
    assert found is not None
    milliseconds, hours, minutes, rest = (float(part or 0) for part in found.groups())
    total = milliseconds / 1000 + hours * 3600 + minutes * 60 + rest
    assert -1e-6 <= total - seconds <= 0.001 + 1e-6


def test_a_limit_is_shared_while_the_store_answers_and_does_as_the_policy_says_while_it_does_not() -> None:
    assert set(kept(CALLERS, "ok").values()) == {"shared"}
    assert set(kept(CALLERS, "memory").values()) == {"local"}
    told = {"requests": "local", "concurrency": "local", "tokens": "allow", "budget": "deny", "pro_share": "local"}
    assert kept(CALLERS, "down") == told
