"""What is a request called?"""

import os
import re
from collections.abc import Iterator, Mapping

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's id for the request if it is in our form, else one of ours."""
    given = headers.get("x-request-id")
    return given if given and _ID.fullmatch(given) else next(_ours)


def _fresh() -> Iterator[str]:
    """Ids of 128 random bits each; the system is asked for many at once."""
    while True:
        yield from re.findall(".{32}", os.urandom(2048).hex())


_ours = _fresh()
