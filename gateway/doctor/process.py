"""Can the gateway listen, and write what it is to write?"""

import os
import resource
import ssl
import time
from contextlib import closing
from pathlib import Path

from gateway.certificate import life, loaded
from gateway.doctor.finding import Finding, error, ok, warning
from gateway.http1 import Client, Limits, Origin, TransportError, fetch
from gateway.server import bind
from gateway.settings import Settings

LIMITS = Limits(connect=1.0, first_byte=1.0, idle=1.0, total=2.0)
ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  the address at which this machine reaches them
FILES = 4096  # open files; a caller takes one, and each of its calls to a server another


async def port(settings: Settings) -> list[Finding]:
    where = settings.authority
    try:
        for listening in bind(settings, shared=False):
            listening.close()
    except OSError as wrong:
        if await _ours(settings):
            return [ok("port", f"{where}: a Tiergate serves here")]
        told = f"cannot listen on {where}: {wrong.strerror or wrong}"
        return [error("port", told, f"--port N (GATEWAY_PORT), or end what has it: ss -ltnp sport = :{settings.port}")]
    return [ok("port", f"{where} is free")]


async def _ours(settings: Settings) -> bool:
    _, said = await _asked(settings, "/ready")
    return b'"policy"' in said or b"GATEWAY_HOSTS" in said  # the latter where its hosts have other names


async def wants_keys(settings: Settings) -> bool:
    """Whether a gateway serves here that refuses who shows no key."""
    status, _ = await _asked(settings, "/v1/models")
    return status == 401


async def _asked(settings: Settings, path: str) -> tuple[int, bytes]:
    """Status and body of what is answered on our port; 0 where nobody answers. Nothing secret is sent: the certificate,
    which is for another name than ours here, need not be right."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    origin = Origin(ANY.get(settings.host, settings.host), settings.port, settings.tls_cert is not None, "")
    try:
        with closing(Client(trusting)) as client:
            found = await fetch(client, origin, f"GET {path}", LIMITS)
    except TransportError:
        return 0, b""
    return found.status, found.body


def certificate(settings: Settings) -> list[Finding]:
    cert, key = settings.tls_cert, settings.tls_key
    if (cert is None) != (key is None):
        told = "a certificate without its key, or a key without"
        return [error("tls", told, "set both GATEWAY_TLS_CERT and GATEWAY_TLS_KEY")]
    if cert is None or key is None:
        return []
    try:
        loaded(cert, key)
    except OSError as wrong:
        return [error("tls", str(wrong), "are they PEM files, and do they belong together?")]
    now, found, fix = time.time(), life(cert), "renew it: what is put there is shown without a restart"
    if found.ends <= now:
        return [error("tls", f"{cert} has expired: it is shown, and callers refuse it", fix)]
    told = f"{cert} ends in {(found.ends - now) / 86_400:.1f} days"
    return [warning("tls", told, fix) if found.due <= now else ok("tls", str(cert))]


def files(settings: Settings) -> list[Finding]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # `serve` allows itself all of it
    found = []
    if 0 <= most < FILES:
        told = f"this process may open {most} files, half of them connections of callers"
        found.append(warning("files", told, "ulimit -Hn 65536"))
    if settings.records and not _writable(settings.records):
        found.append(error("files", f"GATEWAY_RECORDS={settings.records} cannot be written", "correct path or rights"))
    if settings.records and settings.workers > 1:
        told = f"GATEWAY_RECORDS is a file of one process, and {settings.workers} workers serve: it will not start"
        found.append(error("files", told, "record.stream in the policy"))
    return found


def _writable(path: Path) -> bool:
    return not path.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK)
