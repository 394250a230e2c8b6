"""Which caveats are said beside a calibration, and from where on."""

import re
from dataclasses import replace
from typing import Any

import pytest

from gateway.calibrate import Example, parse
from gateway.calibrate.caveats import alike_outcomes, caveats_on, few_outcomes, uneven, unlike, within
from gateway.calibrate.layer import needed
from gateway.calibrate.steady import strays, unsteady
from gateway.calibration import Layer
from gateway.recorded import RETRY
from tests.tiers import JSON

SHARE, BOUND = parse("pro_share=0.5"), parse("flash_failure=0.05@0.95")
BY_SCORE = Layer(0.0, {"score": 1.0}, {"score": 0.0}, {"score": 1.0})
LIFT = {"value": 0.2, "low": 0.1, "high": 0.3}


def told_shares(*values: float, half: float = 0.05) -> list[JSON]:
    """Realised shares with their intervals."""
    return [{"value": value, "low": value - half, "high": value + half} for value in values]


REPORT: JSON = {"explore": 0.0, "shares": told_shares(0.5, 0.5)}


def requests(bad: int, good: int, **known: Any) -> list[Example]:
    """So many of which Flash's answers failed, and so many of which they were good, all over the scores."""
    ok = [at >= bad for at in range(bad + good)]
    source = str(known.pop("source", "caller"))
    found = [
        Example(id=f"{source}{at}", score=at * 0.37 % 1, source=source, flash_ok=good, pro_ok=True)
        for at, good in enumerate(ok)
    ]
    return [replace(one, **known) for one in found]


def said(*records: list[Example], target: Any = SHARE, **report: Any) -> str:
    """The caveats on these records, of which a half was judged."""
    whole = [one for some in records for one in some]
    shown = REPORT | {"judged": len(whole) / 2} | report
    return "\n".join(caveats_on(whole, shown, target, BY_SCORE, uneven(whole, BY_SCORE)))


def test_a_half_needs_fifty_outcomes_and_is_told_how_many_there_are_and_what_they_are_worth() -> None:
    assert few_outcomes(requests(10, 40), needed) is None
    assert few_outcomes(requests(10, 39), needed) == "98 outcomes or so; at least 100 are needed"
    again = requests(9, 0, source=RETRY)
    assert few_outcomes([*requests(10, 39), *again], needed) == "98 outcomes or so; at least 100 are needed"
    some = [*requests(0, 30), *requests(10, 20, weight=10.0, source="other")]
    told = "120 outcomes or so, worth 72 by their propensities; at least 100 are needed"
    assert few_outcomes(some, needed) == told


def test_a_half_needs_five_outcomes_of_either_kind() -> None:
    assert [alike_outcomes(requests(*counts), needed) for counts in ((5, 45), (45, 5))] == [None, None]
    told = "outcomes are nearly all alike: 4 of 50 in one half count against Flash"
    assert alike_outcomes([*requests(4, 46), *requests(9, 0, source=RETRY)], needed) == told
    assert "46 of 50" in (alike_outcomes(requests(46, 4), needed) or "")


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ((62, 38), (38, 62), True),
        ((61, 39), (39, 61), False),
        ((20, 0), (0, 20), True),
        ((19, 0), (0, 20), False),
        ((20, 0), (20, 0), False),
        ((0, 20), (0, 20), False),
    ],
)
def test_who_judges_otherwise_than_chance_would_have_it_is_told(
    one: tuple[int, int], other: tuple[int, int], differ: bool
) -> None:
    assert unlike([*requests(*one), *requests(*other, source="verifier")]) is differ


def test_agreements_and_retries_are_no_judges() -> None:
    judged = requests(0, 60)
    assert not unlike([*judged, *requests(60, 0, source=RETRY), *requests(60, 0, source="shadow", agree=0.8)])


@pytest.mark.parametrize(
    ("text", "where", "elsewhere"),
    [
        (
            "in the newest records",
            [[replace(one, at=one.score) for one in requests(0, 100)]],
            [[replace(one, at=float(at)) for at, one in enumerate(requests(0, 100))]],
        ),
        ("not every answer was judged", [requests(1, 0), requests(0, 1, source="")], [requests(0, 2, source="")]),
        (
            "not every answer was judged",
            [requests(0, 1), requests(0, 1, source="")],
            [requests(0, 9), requests(0, 1, source="")],
        ),
        (
            "not every answer was judged",
            [requests(0, 1), requests(0, 1, source="")],
            [requests(0, 1, agree=0.8), requests(0, 1, source="")],
        ),
        ("Pro's outcome is not known", [requests(1, 1, pro_ok=None), requests(1, 1)], [requests(0, 2, pro_ok=None)]),
        ("Pro's outcome is not known", [requests(1, 1, pro_ok=None)], [requests(1, 1)]),
        ("agreements with another tier's", [requests(1, 1), requests(1, 1, agree=0.8)], [requests(1, 1)]),
    ],
)
def test_what_outcomes_lack_is_told(text: str, where: list[list[Example]], elsewhere: list[list[Example]]) -> None:
    assert (text in said(*where), text in said(*elsewhere)) == (True, False)


def test_outcomes_of_other_requests_than_most_are_told_unless_they_are_weighed() -> None:
    different = "requests with an outcome differ"
    known = [replace(one, score=one.score / 2) for one in requests(100, 100)]
    unknown = [replace(one, flash_ok=None) for one in requests(0, 200, source="")]
    assert different in said(known, unknown)
    assert different not in said(requests(100, 100), unknown)
    assert different not in said(known)
    retried = [replace(one, score=one.score / 4, source=RETRY) for one in known]
    assert different not in said(requests(100, 100), unknown, retried)
    weighed = [replace(one, weight=1.5) for one in requests(100, 100)]
    assert different in said(weighed, [replace(one, score=one.score / 2) for one in unknown])


@pytest.mark.parametrize(
    ("text", "holds", "not_where"),
    [
        ("explore sends requests", {"target": BOUND, "explore": 0.1}, [{"target": BOUND}, {"explore": 0.1}]),
        ("the bound holds for requests", {"target": BOUND}, [{}]),
        ("no better than the mean", {"brier": 0.2, "brier_of_the_rate": 0.2}, [{"brier": 0.1, "brier_of_the_rate": 1}]),
        ("there is nothing to gain", {"lift": None}, [{"lift": LIFT}, {}]),
        ("is not shown", {"lift": LIFT | {"low": 0.0}}, [{"lift": LIFT}, {"lift": None}, {}]),
    ],
)  # fmt: skip
def test_what_the_report_lacks_is_told(text: str, holds: JSON, not_where: list[JSON]) -> None:
    assert text in said(requests(10, 10), **holds)
    assert [text in said(requests(10, 10), **report) for report in not_where] == [False] * len(not_where)


def test_what_pro_spoils_is_told_to_be_missing_where_its_answers_beside_good_ones_were_not_judged() -> None:
    missing, known = "what Pro spoils is missing", requests(10, 0)
    assert missing in said(known, requests(0, 10, pro_ok=None), lift=LIFT)
    assert missing not in said(known, requests(0, 10), lift=LIFT)
    assert missing not in said(known, requests(0, 10, pro_ok=None))


def test_agreements_are_told_of_where_they_order_and_not_where_they_prove_nothing() -> None:
    alike = "agreements with another tier's"
    assert alike not in said(requests(10, 10, agree=0.8), target=BOUND)


def test_a_share_is_told_to_be_vague_or_missed_from_where_chance_would_not_have_it() -> None:
    vague = "1000 records set a share to within 0.031 (95 %), 1068 to within 0.03"
    assert vague in said(requests(500, 500), within=0.031)
    assert "set a share" not in said(requests(500, 500), within=0.03)
    assert "set a share" not in said(requests(500, 500), target=BOUND)
    edges = 0.05 * (800 / 400) ** 0.5  # by both halves
    for off, missed in ((edges - 1e-6, False), (edges + 1e-6, True)):
        found = said(requests(300, 500), judged=400, shares=told_shares(0.5 + off, 0.5 - off))
        assert ("further from" in found) == missed


def test_of_several_shares_any_that_is_missed_is_told() -> None:
    three = parse("shares=0.5/0.3/0.2")
    assert "further from" in said(requests(300, 500), target=three, shares=told_shares(0.5, 0.2, 0.3))
    assert "further from" not in said(requests(300, 500), target=three, shares=told_shares(0.5, 0.25, 0.25))


def test_the_vaguest_share_says_how_near_all_come_by_the_wider_side_of_its_interval() -> None:
    shares = [{"value": 0.9, "low": 0.86, "high": 0.92}, {"value": 0.1, "low": 0.08, "high": 0.13}]
    assert within({"shares": shares}) == pytest.approx(0.04)


def timed(*parts: tuple[int, float, float]) -> list[Example]:
    """So many requests, one a minute, of which Flash fails this part at score 0 and that at score 1."""
    bad = [low + (high - low) * (at * 0.37 % 1) for many, low, high in parts for at in range(many)]
    return [
        Example(id=str(at), at=at * 60.0, score=at * 0.37 % 1, flash_ok=at * 0.618 % 1 >= rate, pro_ok=True)
        for at, rate in enumerate(bad)
    ]


@pytest.mark.parametrize(
    ("parts", "since"),
    [
        ([(400, 0.1, 0.5)], None),
        ([(200, 0.1, 0.1), (200, 0.4, 0.4)], "1970-01-01 03:"),
        ([(300, 0.1, 0.7), (100, 0.7, 0.1)], "1970-01-01 0[45]:"),
    ],
    ids=["alike", "more fail", "as many fail, but others"],
)
def test_outcomes_that_change_are_told_from_when_on(parts: list[tuple[int, float, float]], since: str | None) -> None:
    told = unsteady(timed(*parts), BY_SCORE, needed)
    assert (told is None) == (since is None)
    assert since is None or re.search(f"others since {since}", told or "")
    assert unsteady([replace(one, at=None) for one in timed(*parts)], BY_SCORE, needed) is None, "nobody knows when"


def test_what_strays_no_further_than_by_chance_or_by_a_trifle_does_not_stray() -> None:
    step = [1.0] * 15 + [-1.0] * 15
    assert [strays(step, least) for least in (14.9, 15.0)] == [15, None]
    assert strays([1.0, -1.0] * 15, 0.0) is None
    assert strays([0.0] * 30, 0.0) is None
