"""What is a caller told of its limits?   Headers and error messages. Pure."""

from collections.abc import Mapping

from msgspec.structs import replace

from gateway.errors import RateLimited
from gateway.policy import Budget, Callers
from gateway.store import Admitted, State
from gateway.types import EVEN, Headers, Standing

CODES = {"concurrency": "concurrency_limit_exceeded", "money": "insufficient_quota"}
WHOSE = {"caller": "this API key", "all": "all callers together"}
THEN = (None, "warn", "flash_only")
LIMITS = ("requests", "concurrency", "tokens", "budget", "pro_share")
SHORT = (b"0s", *(b"%dms" % milliseconds for milliseconds in range(1, 1000)))  # durations of less than a second
MODES = ("shared", "local", "deny", "allow")
REQUESTS, TOKENS = (
    b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n" % (what, what, what)
    for what in (b"requests", b"tokens")
)


class OverLimit(RateLimited):
    """A limit, named by `limit`, is used up. Its headers have the caller's limits, too. A used-up budget says that a
    retry does not help."""

    def __init__(self, message: str, found: Admitted, limits: bytes) -> None:
        self.limit = found.refused_by or "requests"
        if found.retry_after:
            message += f" Try again in {duration(round(found.retry_after * 1e6)).decode()}."
        super().__init__(message, code=CODES.get(self.limit), retry_after=found.retry_after)
        self._limits = limits
        if self.limit == "money":
            self.type, self.should_retry = "insufficient_quota", False

    def headers(self) -> Headers:
        limits = (line.partition(b": ") for line in self._limits.split(b"\r\n")[:-1])
        return [*super().headers(), *((name, value) for name, _, value in limits)]


def refusal_text(found: Admitted, whose: str) -> str:
    """The message for a refused caller; `whose` limit it is: "caller" for its own, "all" for that of all callers."""
    if found.refused_by == "tokens":
        return f"Rate limit reached for tokens per minute: limit {found.limits.tokens_per_minute}."
    if found.refused_by == "concurrency":
        return f"Too many requests at the same time: limit {found.limits.concurrency}."
    if found.refused_by == "money":
        return f"The budget of {WHOSE[whose]} does not cover what this request may cost; max_tokens bounds that."
    return f"Rate limit reached for requests per minute: limit {found.limits.requests_per_minute}."


def standing_of(found: Admitted, budget: Budget | None, whose: str) -> Standing:
    """How the caller stands with `budget`: its own (`whose` is "caller") or that of all callers ("all")."""
    money = found.limits.money
    if not budget or not money:
        return Standing(capped=found.capped) if found.cap else EVEN
    used = found.money / money.nano if found.money < money.nano else 1.0
    warned = "warn" if budget.warn is not None and used >= budget.warn else None
    return Standing(used, "flash_only" if found.capped == "budget" else warned, whose, found.capped)


def gravest(one: Standing, other: Standing) -> Standing:
    """A caller's standing with two budgets, its own and that of all: capped if either caps it; the figures are those of
    the budget with the harder consequence."""
    spoke = max(one, other, key=lambda standing: (THEN.index(standing.budget), standing.budget_used))
    capped = one.capped or other.capped
    return spoke if spoke.capped == capped else replace(spoke, capped=capped)


def budget_lines(standing: Standing) -> bytes:
    """The header lines x-budget (the budget's consequence: warn, flash_only), x-budget-used (its used part) and
    x-budget-of (caller, all); b"" while the budget has no consequence."""
    if not standing.budget or not standing.budget_of:
        return b""
    told = standing.budget.encode(), standing.budget_used, standing.budget_of.encode()
    return b"x-budget: %b\r\nx-budget-used: %.3f\r\nx-budget-of: %b\r\n" % told


def limit_lines(found: Admitted) -> bytes:
    """The header lines x-ratelimit-{limit,remaining,reset}-requests, and -tokens where they are limited. reset: the
    time, in OpenAI's form, until the whole limit is free again, if all that is held is used."""
    limits = found.limits
    lines = REQUESTS % (limits.requests_per_minute, found.remaining, duration(found.spent))
    most = limits.tokens_per_minute
    if most is None:
        return lines
    return lines + TOKENS % (most, max(0, most - found.tokens), duration(found.tokens_spent))


def duration(microseconds: int) -> bytes:
    """A duration as OpenAI writes it, rounded up to a millisecond: "12ms", "1.5s", "6m0s", "1h0m0s"."""
    milliseconds = -(-microseconds // 1000)
    if milliseconds < 1000:
        return SHORT[milliseconds]
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%gs" % (hours, minutes, rest / 1000)
    return b"%dm%gs" % (minutes, rest / 1000) if minutes else b"%gs" % (rest / 1000)


def enforcement(callers: Callers, state: State) -> Mapping[str, str]:
    """How each limit is enforced at present, by name: shared, local (in this process), deny, or allow (not at all)."""
    modes = callers.on_store_failure
    if state == "down":
        return {name: getattr(modes, name) for name in LIMITS}
    return dict.fromkeys(LIMITS, "shared" if state == "ok" else "local")
