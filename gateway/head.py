"""Can a request's head be read in one way only?   Pure."""

import re
from collections.abc import Collection, Sequence

from gateway.errors import BadRequest, Misdirected

_HOST = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_LENGTH = "A request's length is told once, and chunked is the only transfer encoding."
_KEY = "A request shows one key."  # who reads the first one and who reads the last see two callers
_HOSTED = "A request names one valid Host."
_ONCE = {"host": _HOSTED, "transfer-encoding": _LENGTH, "authorization": _KEY, "x-api-key": _KEY}


def told(headers: Sequence[tuple[bytes, bytes]], version: str, hosts: Collection[str]) -> dict[str, str]:
    """The headers, names in lower case; of several the last one.

    Raises BadRequest for a head that two readers could read in two ways, Misdirected for a host that is none of `hosts`
    (none: any is served).
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


def without_upgrade(method: bytes, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A request's head but for its offer of another protocol, which a server may pass over (RFC 9110, 7.8)."""
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0].lower() != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), b"".join(lines))
