"""How do several processes serve one port, and count as one?"""

from gateway.workers.member import Member
from gateway.workers.supervisor import Failed, Supervisor

__all__ = ["Failed", "Member", "Supervisor"]
