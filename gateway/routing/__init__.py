"""Which tiers answer?   Pure and synchronous: explain, tests and replay call the same function."""

from gateway.routing.chosen import IDLE_SHARE, band, band_reason, effective_verdict, first_match, route, steps_of
from gateway.routing.reach import lacks, permitted_route, permitted_tier, reachable

__all__ = [
    "IDLE_SHARE", "band", "band_reason", "effective_verdict", "first_match", "lacks", "permitted_route",
    "permitted_tier", "reachable", "route", "steps_of",
]  # fmt: skip
