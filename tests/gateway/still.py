"""Workers that do not serve as they should; a file of their own, as the worker's process imports it."""

import os
import signal
import socket
import time
from typing import Any

from gateway.settings import Settings


def work(_: Any, line: socket.socket) -> None:
    """Says that it serves, and then stands still."""
    line.sendall(b"serving 0 0\n")
    time.sleep(60)


def late(settings: Settings, line: socket.socket) -> None:
    """Says that it serves only once it is told to leave. What it has heard until it asks for something is kept where
    records would be."""
    with line.makefile("rb") as lines:
        heard = [lines.readline()]
        line.sendall(b"serving 0 0\nask 0 0\n")
        while not heard[-1].startswith((b"tell ", b"all ")):
            heard.append(lines.readline())
    assert settings.records
    settings.records.write_bytes(b"".join(heard))


def killed(_: Any, __: socket.socket) -> None:
    """As by a kernel without memory."""
    os.kill(os.getpid(), signal.SIGKILL)


COUNTED = b"# HELP asked_total How many?\n# TYPE asked_total counter\nasked_total 3.0\n"


def mute(settings: Settings, line: socket.socket) -> None:
    """Tells its metrics until those of all have them. What it hears when it asks once more is kept where records would
    be."""
    assert settings.records
    line.sendall(b"serving 0 0\nask 0 0\n")
    with line.makefile("rb") as lines:
        heard = b""
        while True:
            word, number, length = lines.readline().split()
            data = lines.read(int(length))
            if word == b"all" and heard:
                settings.records.write_bytes(data)
            elif word == b"all":
                heard = data
                line.sendall(b"ask 0 0\n")
            elif word == b"tell" and not heard:
                line.sendall(b"told %b %d\n%b" % (number, len(COUNTED), COUNTED))
