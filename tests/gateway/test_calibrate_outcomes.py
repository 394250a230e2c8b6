"""Decisions and what became of them: one line each, read back as written."""

import hashlib

import pytest

from gateway.calibrate import Example, Outcome, RecordError, SaidVerdict, line, read, told

ONE = Example(
    v=1,
    id="a",
    score=0.25,
    at=1_795_000_000.0,
    set="chat",
    measures={"length": 0.5},
    verdict=SaidVerdict(0.75),
    outcome=Outcome(flash_ok=False),
)


def test_a_decision_comes_back_as_it_was_written() -> None:
    found, digest = read([line(ONE), b"\n"])
    assert found == [ONE]
    assert digest == hashlib.sha256(line(ONE) + b"\n").hexdigest()


def test_only_version_id_and_score_are_needed_and_other_members_are_left_unread() -> None:
    found, _ = read([b'{"v":1,"id":"a","score":0.5,"facts":{"turns":1},"route":{"tier":"flash","p":0.9}}'])
    assert (found[0].needed, found[0].p_complex, told(found[0])) == (None, None, {"score": 0.5})


def test_what_a_decision_was_made_on_has_the_verdict_where_there_is_one() -> None:
    assert told(ONE) == {"score": 0.25, "p_complex": 0.75, "length": 0.5}


@pytest.mark.parametrize(
    "bad",
    [b"not json", b'{"v":2,"id":"a","score":0.5}', b'{"v":1,"id":"a"}', b'{"v":1,"id":"a","score":1.5}',
     b'{"v":1,"id":"a","score":0.5,"outcome":{"flash_ok":1}}', b"\xff"],
)  # fmt: skip
def test_a_line_that_is_no_decision_of_this_version_is_named(bad: bytes) -> None:
    with pytest.raises(RecordError, match=r"^line 2: "):
        read([line(ONE), bad])


def test_a_later_line_with_the_same_id_replaces_the_earlier() -> None:
    later = b'{"v":1,"id":"a","score":0.25,"outcome":{"flash_ok":true}}'
    found, _ = read([line(ONE), later])
    assert [one.needed for one in found] == [False]


@pytest.mark.parametrize(
    ("flash", "pro", "needed", "failed", "gain"),
    [
        (True, None, False, False, 0),
        (True, True, False, False, 0),
        (True, False, False, False, -1),
        (False, None, True, True, 1),
        (False, True, True, True, 1),
        (False, False, False, True, 0),
        (None, True, None, None, None),
    ],
)
def test_pro_is_needed_where_flash_fails_and_pro_does_not(
    flash: bool | None, pro: bool | None, needed: bool | None, failed: bool | None, gain: int | None
) -> None:
    one = Example(v=1, id="a", score=0.5, outcome=Outcome(flash, pro))
    assert (one.needed, one.failed, one.gain) == (needed, failed, gain)
