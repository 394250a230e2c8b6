"""Which policy is in force, which ones were, and what is wrong with the file?   The package's one public module."""

from gateway.revisions.follow import PREVIOUS, Revisions
from gateway.revisions.kept import History, Revision

__all__ = ["PREVIOUS", "History", "Revision", "Revisions"]
