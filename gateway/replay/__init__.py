"""What would another policy have done with recorded requests?   The package's one public module."""

from gateway.replay.choices import Unrecorded, refuse_unrecorded
from gateway.replay.compared import Arm, Move, Replay, between, replay

__all__ = ["Arm", "Move", "Replay", "Unrecorded", "between", "refuse_unrecorded", "replay"]
