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
