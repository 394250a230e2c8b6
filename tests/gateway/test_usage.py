from gateway.store import Line
from gateway.usage import WHOLE, Asked, Booked, Total, booked, reported


def line(
    caller: str = "ann", day: str = "2026-03-01", kind: str = "answer", nano: int = 1_000_000, **more: bool
) -> Line:
    return Line("pro", kind, more.get("estimated", False), 10, 4, 5, nano, 2, caller, day)  # type: ignore[arg-type]


LEDGER = [
    line(),
    line(nano=3_000_000),
    line(estimated=True),
    line(kind="triage", nano=7),
    line("bob", "2026-03-02"),
    line("bob", "2026-03-03", "draft", 500_000),
]


def test_rows_are_summed_by_what_is_told_apart_and_estimates_and_overhead_stay_apart() -> None:
    rows = reported(LEDGER, Asked(by=("caller",))).rows
    assert [(row.caller, row.overhead, row.estimated, row.requests, row.usd) for row in rows] == [
        ("ann", False, False, 4, 0.004), ("ann", False, True, 2, 0.001), ("ann", True, False, 2, 7e-9),
        ("bob", False, False, 2, 0.001), ("bob", True, False, 2, 0.0005),
    ]  # fmt: skip
    assert {(row.day, row.tier, row.kind) for row in rows} == {(None, None, None)}
    assert (rows[0].prompt_tokens, rows[0].cached_tokens, rows[0].completion_tokens) == (20, 8, 10)


def test_answers_that_were_made_to_be_compared_are_overhead_of_their_own_kind() -> None:
    rows = reported([*LEDGER, line("@shadow")], Asked(by=("kind",))).rows
    assert [(row.kind, row.overhead) for row in rows if row.usd == 0.001] == [("answer", False), ("shadow", True)]


def test_everything_is_told_apart_by_default_and_each_heading_alone() -> None:
    told = reported(LEDGER, Asked()).rows
    assert [len({getattr(row, heading) for row in told}) for heading in WHOLE] == [3, 2, 1, 3]
    assert [row.kind for row in reported(LEDGER, Asked(by=("kind",))).rows] == ["answer", "answer", "draft", "triage"]
    assert [row.day for row in reported(LEDGER[3:], Asked(by=("day",))).rows] == [f"2026-03-0{n}" for n in (1, 2, 3)]
    months = reported([*LEDGER, line(day="2026-04-30"), line(day="2027-03-31")], Asked(by=("month",))).rows
    assert [(row.month, row.requests) for row in months if not row.overhead and not row.estimated] == [
        ("2026-03", 6), ("2026-04", 2), ("2027-03", 2),
    ]  # fmt: skip


def test_both_days_are_included_and_the_totals_are_those_of_the_rows() -> None:
    found = reported(LEDGER, Asked("2026-03-02", "2026-03-03", ()))
    assert found.answers == Total(2, 10, 4, 5, 0.001, 0.0)
    assert found.overhead == Total(2, 10, 4, 5, 0.0005, 0.0)
    assert len(found.rows) == 2
    assert reported(LEDGER, Asked(last="2026-03-01")).answers.estimated_usd == 0.001


def test_an_empty_ledger_is_zero() -> None:
    found = reported([], Asked())
    assert (found.rows, found.answers) == ([], Total(0, 0, 0, 0, 0.0, 0.0))


def test_of_an_exchange_a_caller_pays_for_its_answers_alone() -> None:
    assert booked(LEDGER) == Booked("pro", 0.006, 40, 16, 20, estimated=True)
    assert booked(LEDGER[:2]) == Booked("pro", 0.004, 20, 8, 10)
    assert booked([]) is booked(LEDGER[3:4]) is None
