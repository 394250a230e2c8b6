"""An example has as long as it takes: on a machine with more work than cores, slow is no defect."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
