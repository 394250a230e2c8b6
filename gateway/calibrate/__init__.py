"""Where should the threshold be on this traffic?"""

from gateway.calibrate.file import dump, load
from gateway.calibrate.fitted import Calibration, Split, Unproven, calibrate
from gateway.calibrate.logistic import Layer, fit
from gateway.calibrate.outcomes import Example, Outcome, RecordError, SaidVerdict, line, read, told
from gateway.calibrate.target import FORMS, Target, TargetError, parse

__all__ = [
    "FORMS",
    "Calibration",
    "Example",
    "Layer",
    "Outcome",
    "RecordError",
    "SaidVerdict",
    "Split",
    "Target",
    "TargetError",
    "Unproven",
    "calibrate",
    "dump",
    "fit",
    "line",
    "load",
    "parse",
    "read",
    "told",
]
