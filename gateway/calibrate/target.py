"""What is a calibration's target?   pro_share=0.25 | shares=0.5/0.3/0.2 | cost=0.4 | flash_failure=0.05@0.95"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["shares", "flash_failure"]
FORMS = "pro_share=0.25, shares=0.5/0.3/0.2, cost=0.4 (of sending all to Pro), flash_failure=0.05@0.95"


class TargetError(Exception):
    """An invalid target; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """`text`: as the operator wrote it. Kind "shares": the tiers' `shares` of requests, the simplest first, sum 1.
    Kind "flash_failure": at most `rate` of the requests that stay on Flash fail, with `confidence`.
    """

    text: str
    kind: Kind
    shares: tuple[float, ...] = ()
    rate: float = 0.0
    confidence: float = 0.0


def parse(text: str, price_ratio: float | None = None) -> Target:
    """The target in `text`; `price_ratio`: Pro's price over Flash's. Raises TargetError."""
    name, _, said = text.partition("=")
    if name == "pro_share":
        share = _number(text, said)
        return Target(text, "shares", shares=(1 - share, share))
    if name == "shares":
        return Target(text, "shares", shares=_shares(text, said))
    if name == "cost":
        share = _affordable(text, _number(text, said), price_ratio)
        return Target(text, "shares", shares=(1 - share, share))
    if name == "flash_failure":
        rate, _, confidence = said.partition("@")
        return Target(text, "flash_failure", rate=_number(text, rate), confidence=_number(text, confidence or "0.95"))
    raise TargetError(f"{text}: unknown target; known: {FORMS}")


def _number(text: str, said: str) -> float:
    """A number between 0 and 1, neither included."""
    try:
        found = float(said)
    except ValueError:
        found = -1.0
    if not 0 < found < 1:
        raise TargetError(f"{text}: expected numbers between 0 and 1; known: {FORMS}")
    return found


def _shares(text: str, said: str) -> tuple[float, ...]:
    shares = tuple(_number(text, part) for part in said.split("/"))
    if len(shares) < 2 or abs(sum(shares) - 1) > 1e-6:
        raise TargetError(f"{text}: expected two shares or more that add up to 1")
    return shares


def _affordable(text: str, cost: float, price_ratio: float | None) -> float:
    """Pro's share of requests at which the cost is that part of the cost of Pro alone; lengths are taken as equal."""
    if price_ratio is None or price_ratio <= 1:
        raise TargetError(f"{text}: needs what Pro costs for one of Flash, more than 1 (--price-ratio)")
    least = 1 / price_ratio
    share = (cost - least) / (1 - least)
    if share <= 0:
        raise TargetError(f"{text}: all on Flash costs {least:.3f} already")
    return share
