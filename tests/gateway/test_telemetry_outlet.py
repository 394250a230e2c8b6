"""A log whose reader stands still, is gone, or was never there."""

import contextlib
import logging
import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest

from gateway.telemetry import Outlet
from gateway.telemetry.outlet import MOST
from tests.gateway.serving import PATIENCE
from tests.gateway.test_telemetry import record, telemetry

LINE = "x" * 99 + "\n"
ROOM = 1 << 16  # bytes of a pipe


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The end of a pipe that nobody reads from, and the one to write to."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        yield reading, file


def test_a_reader_that_stands_still_holds_nobody_up_and_what_it_missed_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pipe() as (reading, file):
        outlet, written = Outlet(file), 3 * MOST

        def write() -> None:
            for _ in range(written):
                outlet.write(LINE)

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(PATIENCE)
        assert not writing.is_alive()
        found, lost, end = b"", 0, time.monotonic() + PATIENCE
        os.set_blocking(reading, False)
        while found.count(b"\n") + lost < written and time.monotonic() < end:
            time.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                found += os.read(reading, ROOM)
            lost = sum(map(int, re.findall(r"(\d+) log lines were lost", caplog.text)))
        os.close(reading)
        outlet.close()
        assert {*found.splitlines()} == {LINE.strip().encode()}
        assert found.count(b"\n") == written - lost < written


def test_exchanges_do_not_wait_for_who_reads_their_lines() -> None:
    with pipe() as (reading, file):
        with redirect_stdout(file):
            made = telemetry(log=True)

        def work() -> None:
            for n in range(ROOM // 100):
                made.record(record(id=f"i{n}"))

        recording = threading.Thread(target=work, daemon=True)
        recording.start()
        recording.join(PATIENCE)
        assert not recording.is_alive()
        os.close(reading)
        made.close()


def test_a_file_that_was_emptied_by_who_rotates_logs_goes_on_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        outlet = Outlet(file)
        outlet.write("first\n")
        outlet.close()
        assert log.read_text() == "first\n"
        os.truncate(log, 0)
        outlet.write("second\n")
        outlet.close()
    assert log.read_bytes() == b"second\n"


def test_a_full_disk_spoils_no_line_but_those_that_it_did_not_take_which_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, before = tmp_path / "log", resource.getrlimit(resource.RLIMIT_FSIZE)
    with log.open("w") as file:
        outlet = Outlet(file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))
        try:
            for _ in range(2):
                outlet.write(4 * LINE)
                outlet.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        outlet.write(LINE)
        outlet.close()
    whole = LINE.strip()
    assert log.read_text().splitlines() == [whole, whole, "x" * 50, whole]
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "log lines cannot be written",
        "6 log lines were lost",
    ]


def test_lines_of_several_processes_on_one_pipe_stay_whole() -> None:
    with pipe() as (reading, file):
        outlets = [Outlet(file), Outlet(file)]
        for letter, outlet in zip("ab", outlets, strict=True):
            for _ in range(2 * ROOM // 500):
                outlet.write(letter * 499 + "\n")
        found = b""
        while len(found) < 4 * (ROOM // 500) * 500:
            found += os.read(reading, 1000)
        os.close(reading)
        assert {*found.splitlines()} == {b"a" * 499, b"b" * 499}
        for outlet in outlets:
            outlet.close()


def test_a_reader_that_is_gone_is_told_of_once_and_what_it_missed_when_another_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pipe() as (reading, file), caplog.at_level(logging.WARNING):
        os.close(reading)
        outlet = Outlet(file)
        for _ in range(2):
            outlet.write(LINE)
            outlet.close()
            assert [message.partition(":")[0] for message in caplog.messages] == ["log lines cannot be written"]
        anew = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
        for _ in range(2):
            outlet.write(LINE)
            outlet.close()
        assert os.read(anew, ROOM) == 2 * LINE.encode()
        os.close(anew)
        assert [message.partition(":")[0] for message in caplog.messages[1:]] == ["2 log lines were lost"]


def test_a_process_without_standard_output_goes_on() -> None:
    outlet = Outlet(None)
    outlet.write(LINE)
    outlet.close()
