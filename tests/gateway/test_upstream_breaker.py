"""When a replica is left alone, by whose requests, and when it is tried again; how many calls may be repeated."""

from gateway.upstream.breaker import FAILURES, FIRST_REST, LONGEST_REST, WINDOW, Breaker
from gateway.upstream.retry_budget import RetryBudget


def broken(*callers: str | None, at: float = 100.0) -> Breaker:
    """A breaker that has seen failures of these callers' calls."""
    breaker = Breaker()
    for caller in callers:
        breaker.failed(caller, at, trial=False)
    return breaker


def test_failures_of_several_callers_open_it_and_a_few_do_not() -> None:
    assert not broken(*"abab").open
    assert broken(*"ababa").open
    assert not broken(*"ababa").lets(100.0)


def test_failures_of_several_callers_open_it_where_they_are_half_of_the_calls_though_another_is_answered() -> None:
    for answered, opens in ((FAILURES, True), (FAILURES + 1, False)):
        breaker = Breaker()
        for _ in range(answered):
            breaker.passed("c")
        for caller in "ababa":
            breaker.failed(caller, WINDOW / 2, trial=False)
        assert breaker.open is opens


def test_a_caller_whose_requests_break_servers_opens_nothing_while_others_are_answered() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker.failed("bad", 100.0, trial=False)
        breaker.passed("good")
    for _ in range(50):
        breaker.failed("bad", 100.0, trial=False)
    assert not breaker.open
    breaker.failed("good", 100.0, trial=False)
    assert breaker.open


def test_a_burst_of_one_callers_failures_opens_nothing_where_others_were_answered_just_before() -> None:
    breaker = Breaker()
    for start in (100.0, 101.0 + WINDOW, 102.0 + 2 * WINDOW):
        breaker.passed("good")
        for _ in range(50):
            breaker.failed("bad", start, trial=False)
        assert not breaker.open
    for _ in range(FAILURES):
        breaker.failed("bad", 103.0 + 3 * WINDOW, trial=False)
    assert breaker.open, "by now it answers nobody else"


def test_who_asks_alone_opens_it_and_refused_connections_need_no_second_caller() -> None:
    assert broken(*["alone"] * FAILURES).open
    breaker = Breaker()
    breaker.passed("alone")
    for _ in range(FAILURES):
        breaker.failed("alone", 100.0, trial=False)
    assert breaker.open, "nobody else is answered"
    breaker = Breaker()
    breaker.passed("other")
    for _ in range(FAILURES):
        breaker.failed(None, 100.0, trial=False)
    assert breaker.open


def test_it_stays_closed_while_most_calls_are_answered_and_forgets_old_ones() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.failed("a", 100.0, trial=False)
        breaker.passed("a")
        breaker.passed("b")
        breaker.failed("b", 100.0, trial=False)
        breaker.passed("b")
    assert not breaker.open
    for caller in "ababa":
        breaker.failed(caller, 101.0 + WINDOW, trial=False)
    assert breaker.open


def test_failures_in_a_row_open_it_however_seldom_it_is_asked() -> None:
    for between, opens in ((False, True), (True, False)):
        breaker = Breaker()
        for at in range(FAILURES):
            breaker.failed(None, 100.0 + at * 360 * WINDOW, trial=False)
            if between and at == FAILURES - 3:
                breaker.passed("a")
        assert breaker.open is opens


def test_one_probe_goes_through_and_its_outcome_decides() -> None:
    breaker, rest = broken(*"ababa"), FIRST_REST
    now = 100.0
    while rest < 2 * LONGEST_REST:
        now += min(rest, LONGEST_REST)
        assert not breaker.lets(now - 0.01)
        assert breaker.lets(now)
        breaker.tried(now)
        assert not breaker.lets(now), "one probe at a time"
        breaker.failed("a", now, trial=True)
        assert breaker.open
        rest *= 2
    now += LONGEST_REST
    assert breaker.lets(now)
    breaker.tried(now)
    breaker.close()
    breaker.passed("a")
    assert not breaker.open
    assert not broken(*"abab").open, "it counts anew"


def test_a_probe_without_an_outcome_makes_room_for_another() -> None:
    breaker = broken(*"ababa")
    breaker.tried(100.0)
    assert not breaker.lets(100.0 + FIRST_REST)
    breaker.dropped()
    assert breaker.lets(100.0 + FIRST_REST)


def test_a_probe_that_has_no_outcome_for_long_makes_room_for_another() -> None:
    breaker, due = broken(*"ababa"), 100.0 + FIRST_REST
    breaker.tried(due)
    assert not breaker.lets(due + LONGEST_REST - 0.01)
    assert breaker.lets(due + LONGEST_REST)
    breaker.tried(due + LONGEST_REST)
    assert not breaker.lets(due + LONGEST_REST), "one more at a time"


def test_calls_from_before_the_break_decide_nothing_when_they_end_late() -> None:
    breaker = broken(*"ababa")
    breaker.passed("c")
    assert breaker.open
    breaker.failed("c", 100.0 + FIRST_REST / 2, trial=False)
    breaker.tried(100.0 + FIRST_REST / 2)  # there was no better replica
    breaker.failed("c", 100.0 + FIRST_REST / 2, trial=True)
    breaker.failed("c", 100.0 + FIRST_REST, trial=False)
    assert breaker.lets(100.0 + FIRST_REST), "it rests no longer for that"
    breaker.tried(100.0 + FIRST_REST)
    breaker.failed("c", 100.0 + FIRST_REST, trial=False)
    assert not breaker.lets(100.0 + FIRST_REST), "the probe is still out"
    breaker.failed("c", 100.0 + FIRST_REST, trial=True)
    assert not breaker.lets(100.0 + FIRST_REST)
    assert breaker.lets(100.0 + 3 * FIRST_REST)


def test_retries_are_a_tenth_of_the_calls_and_a_few_more() -> None:
    for calls in (1, 10, 100, 1000, 10_000):
        budget, retries = RetryBudget(), 0
        for call in range(calls):
            budget.earn()
            retries += budget.spend(now=1e6 + 60.0 * call / calls)
        assert retries <= 0.1 * calls + 8 + 1
        assert retries >= max(min(calls, 5), 0.1 * calls)
    assert retries <= 0.11 * calls


def test_an_idle_tier_gets_its_retries_back_slowly() -> None:
    budget = RetryBudget()
    assert [budget.spend(now=100.0) for _ in range(6)] == [True] * 5 + [False]
    assert [budget.spend(now=121.0) for _ in range(2)] == [True, False]
