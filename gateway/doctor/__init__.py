"""What is wrong with the set-up, and how is it put right?   Looks only: nothing is changed, no model is asked."""

from gateway.doctor.examine import examine
from gateway.doctor.finding import Finding, Level, error

__all__ = ["Finding", "Level", "error", "examine"]
