"""Ids of requests: the caller's where it has our form, else ours."""

import pytest

from gateway.ids import request_id


@pytest.mark.parametrize("given", ["a", "req_1.2-3", "x" * 128])
def test_a_callers_id_in_our_form_is_kept(given: str) -> None:
    assert request_id({"x-request-id": given}) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\r\nb", "\u00e9"])
def test_no_other_text_of_a_callers_becomes_an_id(given: str) -> None:
    assert request_id({"x-request-id": given}) != given


def test_our_ids_are_all_different() -> None:
    ids = [request_id({}) for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    assert {len(one) for one in ids} == {32}
