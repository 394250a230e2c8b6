"""Have we answered this before, or are we answering it right now?   The package's one public module."""

from gateway.cache.flights import Flights
from gateway.cache.lookup import cache_key, cached_reply
from gateway.cache.verdicts import Verdicts, verdict_key

__all__ = ["Flights", "Verdicts", "cache_key", "cached_reply", "verdict_key"]
