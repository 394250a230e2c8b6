"""Which policy comes with the program?"""

from pathlib import Path

import gateway


def packaged() -> Path:
    """Its file: beside the package in a checkout, inside it when installed."""
    package = Path(gateway.__file__).parent
    beside = package.parent / "policies" / "default.yaml"
    return beside if beside.is_file() else package / "policies" / "default.yaml"
