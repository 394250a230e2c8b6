"""Have we answered this before, or are we answering it right now?   The package's one public module."""

from gateway.cache.entry import LONGEST
from gateway.cache.flights import AHEAD, Flights, worth_keeping
from gateway.cache.lookup import lookup, replay
from gateway.cache.verdicts import Verdicts, verdict_key

__all__ = ["AHEAD", "LONGEST", "Flights", "Verdicts", "lookup", "replay", "verdict_key", "worth_keeping"]
