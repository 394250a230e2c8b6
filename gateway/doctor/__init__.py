"""What is wrong with the set-up, and how is it put right?   Nothing is changed; models are asked short questions."""

from gateway.doctor.examine import examine
from gateway.doctor.finding import Finding, Level, error, warning

__all__ = ["Finding", "Level", "error", "examine", "warning"]
