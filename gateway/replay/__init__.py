"""What would another policy have done with these requests?   The package's one public module."""

from gateway.replay.choices import UNDECIDED, Choice, Unrecorded, Way, choices, refuse_unrecorded
from gateway.replay.compared import Arm, Move, Replay, moved, replay, shuffled

__all__ = [
    "UNDECIDED",
    "Arm",
    "Choice",
    "Move",
    "Replay",
    "Unrecorded",
    "Way",
    "choices",
    "moved",
    "refuse_unrecorded",
    "replay",
    "shuffled",
]
