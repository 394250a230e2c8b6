"""The door to the model servers; the package's one public module."""

from gateway.upstream.asking import Asking
from gateway.upstream.door import Upstream
from gateway.upstream.loads import SERIES, Load, loads
from gateway.upstream.waste import Waste

__all__ = ["SERIES", "Asking", "Load", "Upstream", "Waste", "loads"]
