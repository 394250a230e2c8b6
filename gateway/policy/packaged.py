"""Which policy files come with the program?"""

from pathlib import Path

import gateway


def packaged(name: str = "default.yaml") -> Path:
    """Such a file: beside the package in a checkout, inside it when installed."""
    package = Path(gateway.__file__).parent
    beside = package.parent / "policies" / name
    return beside if beside.is_file() else package / "policies" / name
