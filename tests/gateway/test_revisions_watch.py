"""Whoever waits for a change in a folder wakes by it, however it comes about."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.revisions.watch import Watch, folders
from tests.stores import at_once

LONG = 20.0  # seconds; a wake by the time alone would end the test in failure


def write(place: Path) -> None:
    (place / "p.yaml").write_text("schema: 1")


def swap(place: Path) -> None:
    """As a kubelet swaps a ConfigMap: the file is a link into a link, which another one takes the place of."""
    (place / "next").symlink_to("there")
    (place / "next").rename(place / "..data")


def remove(place: Path) -> None:
    (place / "old").unlink()


@pytest.mark.parametrize("change", [write, swap, remove])
async def test_a_change_wakes_who_waits_and_that_once(tmp_path: Path, change: Callable[[Path], None]) -> None:
    (tmp_path / "old").touch()
    watch = Watch()
    try:
        watch.look([tmp_path, tmp_path / "not there"])
        asyncio.get_running_loop().call_later(0.02, change, tmp_path)
        await asyncio.wait_for(watch.wait(LONG), LONG / 2)
        with pytest.raises(AssertionError, match="it waits"):
            await at_once(watch.wait(LONG))
    finally:
        watch.close()


async def test_a_file_that_is_still_being_written_wakes_nobody(tmp_path: Path) -> None:
    watch = Watch()
    try:
        with (tmp_path / "p.yaml").open("w") as file:
            watch.look([tmp_path])
            file.write("half")
            file.flush()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(watch.wait(LONG), 0.1)
        await asyncio.wait_for(watch.wait(LONG), LONG / 2)
    finally:
        watch.close()


async def test_waiting_ends_by_its_time_and_by_a_wake(tmp_path: Path) -> None:
    watch = Watch()
    try:
        await asyncio.wait_for(watch.wait(0.01), LONG)
        watch.wake()
        await asyncio.wait_for(watch.wait(LONG), LONG / 2)
    finally:
        watch.close()


def test_a_link_is_followed_to_its_targets_folder_and_one_to_itself_nowhere(tmp_path: Path) -> None:
    link, knot = tmp_path / "link", tmp_path / "knot"
    link.symlink_to(tmp_path / "there" / "p.yaml")
    knot.symlink_to(knot.name)
    assert folders([str(link)]) == {tmp_path, tmp_path / "there"}
    assert folders([str(knot)]) == {tmp_path}
