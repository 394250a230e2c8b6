"""What would another policy have done with recorded requests?   The package's one public module."""

from gateway.replay.choices import Decided, Deciding, Unrecorded, refuse_unrecorded
from gateway.replay.compared import Arm, Move, Replay, between, replay

__all__ = ["Arm", "Decided", "Deciding", "Move", "Replay", "Unrecorded", "between", "refuse_unrecorded", "replay"]
