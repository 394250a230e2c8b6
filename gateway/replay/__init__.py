"""What would another policy have done with recorded requests?   The package's one public module."""

from gateway.replay.choices import Choice, Unrecorded, Way, choices, refuse_unrecorded
from gateway.replay.compared import Arm, Move, Replay, between, moved, replay, shuffled

__all__ = [
    "Arm",
    "Choice",
    "Move",
    "Replay",
    "Unrecorded",
    "Way",
    "between",
    "choices",
    "moved",
    "refuse_unrecorded",
    "replay",
    "shuffled",
]
