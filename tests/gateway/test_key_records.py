"""How a key is made and changed, and what its record may not say."""

import re
import time
from typing import Any

import pytest

from gateway.key_records import ADMIN, as_revoked, changed, expiry, key_hash, key_problem, new_admin_key, new_key
from gateway.policy import load_policy

SECRET = b"s" * 32
POLICY = load_policy(
    "schema: 1\ntiers: {flash: {model: f, replicas: ['http://h']}}\nrules: [{id: all, route: flash}]", {}
)


def test_a_key_holds_256_bits_and_its_record_none_of_them() -> None:
    key, record = new_key(SECRET, "ann")
    assert re.fullmatch(rf"sk-tg-{record.id}-[A-Za-z0-9_-]{{43}}", key)
    assert re.fullmatch(r"[0-9a-f]{12}", record.id)
    assert record.hash == key_hash(SECRET, key)
    assert key[-43:] not in repr(record)


def test_the_admin_key_and_one_that_is_revoked_change_no_more() -> None:
    _, admin = new_admin_key(SECRET)
    _, record = new_key(SECRET, "ann")
    assert (admin.id, changed(record, plan="gold").plan) == (ADMIN, "gold")
    for one in (admin, as_revoked(record)):
        with pytest.raises(ValueError, match="no active key"):
            changed(one, plan="gold")
    revoked = as_revoked(record)
    assert as_revoked(revoked) is revoked, "the first time counts"


def test_an_end_is_told_from_now_on() -> None:
    assert expiry(None) is None
    assert expiry("30d") == pytest.approx(time.time() + 30 * 86_400, abs=60)
    with pytest.raises(ValueError, match="a number and a unit"):
        expiry("30")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"name": "ann", "plan": "default", "may": ("flash",), "window": "7d"}, None),
        ({"window": "month"}, None),
        ({"name": ""}, "a name is 1 to 128 printable characters"),
        ({"name": "a\nb"}, "a name is 1 to 128 printable characters"),
        ({"name": "a" * 129}, "a name is 1 to 128 printable characters"),
        ({"window": "7"}, "or month, the calendar's"),
        ({"plan": "gold"}, "no plan is named gold: default"),
        ({"may": ("flash", "pro")}, "no tier is named pro: flash"),
    ],
)
def test_what_a_record_says_must_be_possible(given: dict[str, Any], problem: str | None) -> None:
    found = key_problem(POLICY, given)
    assert found == problem if problem is None else problem in str(found)
