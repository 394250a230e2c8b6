"""Which processes does a measurement need?   Started on free loopback ports, ended by their own handles."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

HOST = "127.0.0.1"
READY = 20.0  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def python(arguments: Sequence[str], port: int, **env: str) -> Iterator[str]:
    """A Python program that listens on `port`; its URL, once /health answers. Raises TimeoutError."""
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **env})
    url = f"http://{HOST}:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


@contextlib.contextmanager
def sim(tier: str, model: str, *flags: str) -> Iterator[str]:
    """A simulated tier."""
    port = free_port()
    command = ["-m", "backends.sim", "--tier", tier, "--port", str(port), "--served-model-name", model, *flags]
    with python(command, port) as url:
        yield url


@contextlib.contextmanager
def gateway(policy: str, flash: str, pro: str) -> Iterator[str]:
    """A gateway with a store of its own process, on a policy file."""
    port = free_port()
    command = ["-m", "gateway", "serve", "--policy", policy, "--port", str(port), "--redis", "embedded"]
    with python(command, port, FLASH_URL=flash, PRO_URL=pro, GATEWAY_LOG_EXCHANGES="false") as url:
        yield url


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health", timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"{process.args!r} does not answer")
