"""Which certificate do callers see?   That of two PEM files, followed as they change."""

import _ssl
import asyncio
import logging
import math
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

LOOK = 0.5  # seconds between two looks at the files
WEEK, LATE = 7 * 86_400, 4  # seconds, and the part of its time, before a certificate's end by when machines renewed it
log = logging.getLogger("gateway")


class Life(NamedTuple):
    """Of a certificate, in Unix seconds: when it `ends`, and since when there should have been another one (`due`)."""

    ends: float = math.inf
    due: float = math.inf


class Certificate:
    """The certificate chain of one file with the key of another, for handshakes to come.

    `context` is replaced, never changed: each handshake has the one that it began with. While the files are missing,
    are no PEM or do not belong together, that of the pair before stays. `problem` says what is wrong with them, None:
    nothing. `life` is that of the certificate in force. Their whole content is compared, as that of a file of keys is.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        """Raises OSError when the pair cannot be used."""
        self._files = chain, key
        self._seen = self._used = self._text()
        self.context, self.life = loaded(chain, key), life(chain)
        self.problem: str | None = None

    @property
    def state(self) -> Literal["ok", "expired", "broken"]:
        """For /ready; one that has expired is shown on."""
        return "expired" if self.life.ends <= time.time() else "broken" if self.problem else "ok"

    async def watch(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Use the pair if it changed, is the same as at the look before (one file is written after the other), and is
        valid; logs when it is used, and when it becomes invalid.
        """
        text = self._text()
        settled, self._seen = text == self._seen, text
        if not settled or (text == self._used and not self.problem):
            return
        try:
            self.context, self.life = loaded(*self._files), life(self._files[0])
        except OSError as error:
            self._tell(str(error))
            return
        self._used, self.problem = text, None
        log.warning("certificate: %s is shown from here on", self._files[0])

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("certificate: the one read before stays in force: %s", problem)
        self.problem = problem

    def _text(self) -> tuple[bytes, bytes] | None:
        chain, key = self._files
        try:
            return None if chain.is_fifo() or key.is_fifo() else (chain.read_bytes(), key.read_bytes())
        except OSError:
            return None


def loaded(chain: Path, key: Path) -> ssl.SSLContext:
    """What shows this certificate. Raises OSError, which names the files."""
    if chain.is_fifo() or key.is_fifo():  # who opens one to which nobody writes waits for ever
        raise OSError(f"{chain} with the key {key}: a pipe is no file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's and Red Hat's Pythons leave it to the machine
    try:
        context.load_cert_chain(chain, key, password="")  # else OpenSSL asks for one at the terminal
    except OSError as error:
        raise OSError(f"{chain} with the key {key}: {error.strerror or error}") from None
    return context


def life(chain: Path) -> Life:
    """That of the file's first certificate, the server's own; without end where it cannot be read. The standard library
    reads files of certificates under a private name only, which may go."""
    with suppress(OSError, ValueError, AttributeError):
        found = _ssl._test_decode_cert(str(chain))  # type: ignore[attr-defined]
        begins, ends = (ssl.cert_time_to_seconds(found[name]) for name in ("notBefore", "notAfter"))
        return Life(ends, ends - min(WEEK, (ends - begins) / LATE))
    return Life()
