"""Which threshold on the probability of complex fits recorded traffic and a target?"""

from gateway.calibrate.file import dump
from gateway.calibrate.fitted import Calibration, calibrate
from gateway.calibrate.halves import SplitBy, Unproven
from gateway.calibrate.kept import moved
from gateway.calibrate.layer import counted
from gateway.calibrate.logistic import fit
from gateway.calibrate.outcomes import GOOD, Example, Narrowed, example, examples, told
from gateway.calibrate.target import FORMS, Target, TargetError, parse

__all__ = [
    "FORMS", "GOOD", "Calibration", "Example", "Narrowed", "SplitBy", "Target", "TargetError", "Unproven", "calibrate",
    "counted", "dump", "example", "examples", "fit", "moved", "parse", "told",
]  # fmt: skip
