"""The door to the model servers; the package's one public module."""

from gateway.upstream.door import Attempt, Upstream
from gateway.upstream.waste import Waste

__all__ = ["Attempt", "Upstream", "Waste"]
