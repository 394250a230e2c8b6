"""Which id has a request, or a text?"""

import hashlib
import os
import re
from collections.abc import Mapping
from itertools import chain, repeat

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's x-request-id if it is 1 to 128 of A-Z a-z 0-9 . _ -, else a random one."""
    given = headers.get("x-request-id")
    return given if given and _ID.fullmatch(given) else next(_ours)


def fingerprint(text: str) -> str:
    """The first 12 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fresh(count: int) -> list[str]:
    """Ids of 128 random bits each, so many from one call to the system."""
    digits = os.urandom(16 * count).hex()
    return [digits[at : at + 32] for at in range(0, len(digits), 32)]


_ours = chain.from_iterable(map(_fresh, repeat(128)))
