"""Is the start of this answer good enough to be let out?   The package's one public module."""

from gateway.holdback.hold import hold

__all__ = ["hold"]
