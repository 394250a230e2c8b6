"""What a program that a model wrote may do, and how its end is judged."""

import os
import socket
from pathlib import Path

import pytest

from backends.evals.sandbox import executed
from loadtest.servers import until


@pytest.mark.parametrize(
    ("program", "passed", "why"),
    [
        ("assert 1 + 1 == 2", True, "passed"),
        ("open('mine', 'w').write('x'); assert open('mine').read() == 'x'", True, "passed"),
        ("assert 1 + 1 == 3", False, "AssertionError"),
        ("def f(: pass", False, "SyntaxError"),
        ("import sys; sys.exit(0)", False, "SystemExit: 0"),  # leaving early is not passing
        ("import os; os._exit(0)", False, "ended without a word"),
        ("print('passed'); raise ValueError('x' * 1000)", False, "xxx"),
        ("held = 'x' * (2 << 30)", False, "MemoryError"),
        ("open('large', 'wb').write(bytes(4 << 20))", False, "File too large"),
        ("while True: pass", False, "not done after 1 s"),
        ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", False, "not done"),
    ],
)
def test_a_program_passes_when_it_comes_to_its_end_without_an_error(program: str, passed: bool, why: str) -> None:
    found = executed(program, seconds=1.0)
    assert (found.passed, why in found.why) == (passed, True), found


def test_a_program_changes_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    found = executed(f"open({str(tmp_path / 'made')!r}, 'w')")
    if "files" not in found.held:
        pytest.skip("this kernel has no Landlock")
    assert "Permission denied" in found.why
    (tmp_path / "kept").write_text("")
    assert "Permission denied" in executed(f"import os; os.remove({str(tmp_path / 'kept')!r})").why
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_program_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = executed(f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)")
    if "network" not in found.held:
        pytest.skip("this kernel grants no network namespace")
    assert "Network is unreachable" in found.why


def test_what_a_program_starts_ends_with_it() -> None:
    program = """\
import os, time
heard, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.write(told, b"apart")
    time.sleep(60)
assert os.read(heard, 9) == b"apart"
"""
    seconds = 10 + os.getpid() / 2**30  # which tells its processes from those of other tests
    found = executed(program, seconds)
    assert found.passed
    if "processes" not in found.held:
        pytest.skip("this kernel grants no PID namespace")
    own = str(seconds).encode()
    until(lambda: not any(own in read(path) for path in Path("/proc").glob("[0-9]*/cmdline")))


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
