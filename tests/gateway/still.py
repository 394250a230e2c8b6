"""A worker that says that it serves, and then stands still; a file of its own, as the worker's process imports it."""

import socket
import time
from typing import Any


def work(_: Any, line: socket.socket) -> None:
    line.sendall(b"serving 0 0\n")
    time.sleep(60)
