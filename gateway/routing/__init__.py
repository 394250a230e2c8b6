"""Which tiers answer?   Pure and synchronous: explain, tests and replay call the same function."""

from gateway.routing.chosen import IDLE_SHARE, band, first_match, route, stays, steps_of, weighed, why
from gateway.routing.reach import lacks, place, placed, reachable

__all__ = [
    "IDLE_SHARE", "band", "first_match", "lacks", "place", "placed", "reachable", "route", "stays", "steps_of",
    "weighed", "why",
]  # fmt: skip
