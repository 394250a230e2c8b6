"""The door to the model servers; the package's one public module."""

from gateway.upstream.door import Upstream
from gateway.upstream.loads import SERIES, Load, loads
from gateway.upstream.triage_response import TriageResponse

__all__ = ["SERIES", "Load", "TriageResponse", "Upstream", "loads"]
