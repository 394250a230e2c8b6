"""How is a connection to a server of the store opened?"""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

from gateway.resolver import Resolver

TIMEOUT = 0.1  # seconds without a reply, connecting and writing included, where the address has no socket_timeout
LONGEST = 60.0  # seconds of a socket_timeout: a request waits so long for a server that stands still
PORT = 6379
FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
OPTIONS = {"username", "password", "db", "socket_timeout", *FILES}
CERTIFICATES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
Word = bytes | str | float
Address = tuple[str, int]  # host and port


class Way(Protocol):
    """How to reach one server. `greeting`: packed commands that are sent before all others (AUTH, SELECT); `timeout` in
    seconds."""

    @property
    def greeting(self) -> tuple[bytes, ...]: ...

    @property
    def timeout(self) -> float: ...

    async def open(self) -> asyncio.Transport:
        """A transport without a protocol. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A Way by host and port, or by the path of a socket."""

    greeting: tuple[bytes, ...] = field(repr=False)
    timeout: float
    host: str = ""
    port: int = PORT
    path: str = ""
    tls: ssl.SSLContext | None = None
    names: Resolver = field(default_factory=Resolver, compare=False, repr=False)

    async def open(self) -> asyncio.Transport:
        if self.path:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_unix_connection(asyncio.Protocol, self.path)
        else:
            transport, _ = await self.names.connect(asyncio.Protocol, self.host, self.port, self.tls, self.timeout)
        return transport


def opening(url: str) -> Opening:
    """Parses redis://[user:password@]host[:port][/database], rediss:// or unix://[user:password@]path, each with
    ?OPTIONS. Raises ValueError."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if unknown := options.keys() - OPTIONS:
        raise ValueError(f"a store's address has no {min(unknown)}; known: {', '.join(sorted(OPTIONS))}")
    user = options.get("username") or unquote(parts.username or "")
    password = options.get("password") or unquote(parts.password or "")
    database = options.get("db") or ("" if parts.scheme == "unix" else parts.path.strip("/")) or "0"
    try:
        port, number = parts.port or PORT, int(database)
    except ValueError:  # whose text may be a part of the password
        told = "a store's port and database are numbers; in a password, / is written as %2F, # as %23, ? as %3F"
        raise ValueError(told) from None
    return Opening(
        greeting=tuple(map(written, _greeting(user, password, number))),
        timeout=_seconds(options["socket_timeout"]) if "socket_timeout" in options else TIMEOUT,
        host=parts.hostname or "localhost",
        port=port,
        path=unquote(parts.path) if parts.scheme == "unix" else "",
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )


def _seconds(told: str) -> float:
    with suppress(ValueError):
        if 0.0 < (found := float(told)) <= LONGEST:  # which is not so of nan
            return found
    raise ValueError(f"socket_timeout is a number of seconds, over 0 and at most {LONGEST:g}, not {told!r}")


def _greeting(user: str, password: str, database: int) -> list[tuple[Word, ...]]:
    found: list[tuple[Word, ...]] = []
    if user or password:
        found.append((b"AUTH", user, password) if user else (b"AUTH", password))
    if database:
        found.append((b"SELECT", database))
    return found


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    own = options.get("ssl_certfile")
    try:
        found = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if own:
            found.load_cert_chain(own, options.get("ssl_keyfile"))
    except OSError as error:
        raise ValueError(f"a file of a store's address cannot be used: {error}") from None
    if options.get("ssl_check_hostname", "true").lower() in {"false", "0", "no"}:
        found.check_hostname = False
    if wanted := options.get("ssl_cert_reqs"):
        if wanted not in CERTIFICATES:
            raise ValueError(f"ssl_cert_reqs is one of {', '.join(CERTIFICATES)}, not {wanted!r}")
        found.check_hostname &= wanted != "none"
        found.verify_mode = CERTIFICATES[wanted]
    return found


def written(command: tuple[Word, ...]) -> bytes:
    """The command in the server's protocol (RESP)."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub takes one element
    return packed
