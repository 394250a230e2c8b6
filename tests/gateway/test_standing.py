"""What callers are told of their limits, and operators of how they are kept."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import Budget, load_policy
from gateway.standing import duration, enforcement, limit_lines, standing_of
from gateway.store import Admitted, Limits, Money

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
    [
        (0.0, b"0s"),
        (0.012, b"12ms"),
        (1.0, b"1s"),
        (1.5, b"1.5s"),
        (60.0, b"1m0s"),
        (360.0, b"6m0s"),
        (3661.5, b"1h1m1.5s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: bytes) -> None:
    assert duration(round(seconds * 1e6)) == text


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_is_never_short_and_at_most_a_millisecond_long(microseconds: int) -> None:
    found = re.fullmatch(rb"(?:(\d+)ms)|(?:(?:(\d+)h)?(?:(\d+)m)?([\d.]+)s)", duration(microseconds))
    assert found is not None
    milliseconds, hours, minutes, rest = (float(part or 0) for part in found.groups())
    total = milliseconds / 1000 + hours * 3600 + minutes * 60 + rest
    assert -1e-6 <= total - microseconds / 1e6 <= 0.001 + 1e-6


@pytest.mark.parametrize(
    ("spent", "tokens", "requests_left", "tokens_left"),
    [
        (0, 0, b"6 in 0s", b"6000 in 0s"),
        (10_000_000, 151, b"5 in 10s", b"5849 in 1.51s"),
        (10_000_001, 6001, b"4 in 10.001s", b"0 in 1m0.01s"),
    ],
)
def test_what_is_left_of_a_limit_is_told_and_how_long_it_takes_until_nothing_is_used(
    spent: int, tokens: int, requests_left: bytes, tokens_left: bytes
) -> None:
    lines = limit_lines(Admitted(Limits(6, 1, 60.0, 6000), "lease", 0, spent, tokens=tokens))
    told = dict(line.split(b": ") for line in lines.splitlines())
    for what, limit, left in ((b"requests", b"6", requests_left), (b"tokens", b"6000", tokens_left)):
        assert told[b"x-ratelimit-limit-" + what] == limit
        assert told[b"x-ratelimit-remaining-" + what] + b" in " + told[b"x-ratelimit-reset-" + what] == left


@pytest.mark.parametrize(
    ("nano", "used", "budget"), [(499, 0.499, None), (500, 0.5, "warn"), (1000, 1.0, "warn"), (1500, 1.0, "warn")]
)
def test_a_budget_warns_from_its_part_on_and_what_is_overdrawn_is_all_of_it(
    nano: int, used: float, budget: str | None
) -> None:
    limits = Limits(6, 1, 60.0, money=Money(1000, 60.0, degrade=False))
    found = standing_of(Admitted(limits, "lease", 0, 0, money=nano), Budget(0.000001, warn=0.5), "caller")
    assert (found.budget_used, found.budget) == (used, budget)


def test_a_limit_is_shared_while_the_store_answers_and_does_as_the_policy_says_while_it_does_not() -> None:
    assert set(enforcement(CALLERS, "ok").values()) == {"shared"}
    assert set(enforcement(CALLERS, "memory").values()) == {"local"}
    told = {"requests": "local", "concurrency": "local", "tokens": "allow", "budget": "deny", "pro_share": "local"}
    assert enforcement(CALLERS, "down") == told
