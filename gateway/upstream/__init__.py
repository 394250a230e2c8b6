"""The door to the model servers; the package's one public module."""

from gateway.upstream.door import Attempt, Upstream
from gateway.upstream.loads import Load, loads
from gateway.upstream.waste import Waste

__all__ = ["Attempt", "Load", "Upstream", "Waste", "loads"]
