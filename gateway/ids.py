"""What is a request called?"""

import os
import re
from collections.abc import Mapping
from itertools import chain, repeat

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's id for the request if it is in our form, else one of ours."""
    given = headers.get("x-request-id")
    return given if given and _ID.fullmatch(given) else next(_ours)


def _fresh(count: int) -> list[str]:
    """Ids of 128 random bits each; the system is asked for many at once."""
    digits = os.urandom(16 * count).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


_ours = chain.from_iterable(map(_fresh, repeat(128)))
