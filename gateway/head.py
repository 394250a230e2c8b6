"""Is a request's head unambiguous, or one that was found so before?   One that two parsers could read differently is
refused. Pure."""

import re
from collections.abc import Collection, Sequence

from gateway.errors import BadRequest, Misdirected

_HOST = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_URL = re.compile(rb"(?i:https?)://([^/?#]+)([/?][^#]*)?")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_DIGITS = re.compile(rb"(?<=\r\ncontent-length: )[0-9]+(?=\r\n)", re.IGNORECASE)
_LENGTH = "A request's length is told once, and chunked is the only transfer encoding."
_KEY = "A request shows one key."  # one server may take the first, the next one the last: two callers
_HOSTED = "A request names one valid Host."
_ONCE = {"host": _HOSTED, "transfer-encoding": _LENGTH, "authorization": _KEY, "x-api-key": _KEY}


def checked_headers(headers: Sequence[tuple[bytes, bytes]], version: str, hosts: Collection[str]) -> dict[str, str]:
    """The headers by name, in lower case; of a repeated header the last one.

    Raises BadRequest for an ambiguous head, Misdirected for a Host that is not in `hosts` (empty: any is served).
    """
    found = [(name.lower().decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    said = dict(found)
    names = [name for name, _ in found]
    if twice := next((name for name in _ONCE if names.count(name) > 1), None):
        raise BadRequest(_ONCE[twice])
    if version not in {"1.1", "1.0"}:
        raise BadRequest("This server speaks HTTP/1.1.")
    host = said.get("host", "")
    if ("host" in said or version != "1.0") and not _HOST.fullmatch(host):
        raise BadRequest(_HOSTED)
    if host and hosts and _PORT.sub("", host).lower() not in hosts:
        raise Misdirected(f"The host '{host}' is not served here: GATEWAY_HOSTS names those that are.")
    coding = said.get("transfer-encoding", "chunked").lower()
    if coding != "chunked" or ("transfer-encoding" in said and (version == "1.0" or "content-length" in said)):
        raise BadRequest(_LENGTH)
    return said


def out_of_url(
    target: bytes, headers: Sequence[tuple[bytes, bytes]], version: str
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Path and headers of a request whose target is a whole URL, as proxies are sent it: its host takes the place of
    the header's (RFC 9112, 3.2.2), which is mandatory all the same from HTTP/1.1 on. Raises BadRequest.
    """
    found = _URL.fullmatch(target)
    if not found:
        raise BadRequest("The request target must be a path, or a URL.")
    host, path = found[1], found[2] or b"/"
    told = [(name, host if name.lower() == b"host" else value) for name, value in headers]
    if version == "1.0" and not any(name.lower() == b"host" for name, _ in told):
        told.append((b"host", host))
    return path if path.startswith(b"/") else b"/" + path, told


def without_upgrade(method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's head without its Upgrade header, which a server may ignore (RFC 9110, 7.8)."""
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0].lower() != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), b"".join(lines))


def around_length(data: bytes, size: int) -> tuple[bytes, bytes] | None:
    """The head that `data` begins with, before and after the digits of its content-length; None where it has none, or
    where other than `size` bytes follow it."""
    head = data[: data.find(b"\r\n\r\n") + 4]
    found = _DIGITS.search(head)
    return (head[: found.start()], head[found.end() :]) if found and size == len(data) - len(head) else None


def announced(data: bytes, before: bytes, behind: bytes) -> int:
    """The content-length of a head that has `before` and `behind` around it, if `data` is such a head; else 0, as for
    one of more than nine digits or with leading zeros."""
    start, end = len(before), len(data) - len(behind)
    digits = data[start:end] if end <= start + 9 else b""  # else much of a body would be copied
    if not digits.isdigit() or digits.startswith(b"0"):
        return 0
    return int(digits) if data.startswith(before) and data.endswith(behind) else 0
