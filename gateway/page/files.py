"""Which files is the page made of?   None holds a secret: the data that they show is fetched with the admin key."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PLACE = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Only our own files run or style anything, only we are asked, and no text becomes markup. Nobody frames the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class File(NamedTuple):
    """A file and the headers that it goes with."""

    body: bytes
    headers: Mapping[str, str]


def files() -> Mapping[str, File]:
    """Each file by its path below /ui/; the page itself is ""."""
    paths = [path for path in PLACE.rglob("*") if path.suffix in TYPES]
    found = {path.relative_to(PLACE).as_posix(): _file(path) for path in paths}
    return {**found, "": found["index.html"]}


def _file(path: Path) -> File:
    body = path.read_bytes()
    return File(
        body,
        {
            "content-type": TYPES[path.suffix],
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(body).hexdigest()[:16]}"',
        },
    )
