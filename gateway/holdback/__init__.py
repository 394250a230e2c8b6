"""Is the start of this answer good enough to be let out?   The package's one public module."""

from gateway.holdback.again import again, answered, unrecorded, watches
from gateway.holdback.hold import hold

__all__ = ["again", "answered", "hold", "unrecorded", "watches"]
