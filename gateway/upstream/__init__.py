"""The door to the model servers; the package's one public module."""

from gateway.upstream.door import Attempt, Upstream

__all__ = ["Attempt", "Upstream"]
