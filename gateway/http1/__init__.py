"""How do bytes reach a model server and come back?   Pooled HTTP/1.1; the package's one public module."""

from gateway.http1.client import Client, Origin, Response
from gateway.http1.connection import Limits, TransportError
from gateway.http1.fetch import fetch

__all__ = ["Client", "Limits", "Origin", "Response", "TransportError", "fetch"]
