"""When does something in a folder change?   By inotify."""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

# linux/inotify.h. Not IN_MODIFY: a file that is still being written is of no use to a reader.
CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
CHANGES = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
EVENTS = 1 << 16  # bytes


class Watch:
    """Wakes a task that waits for a change in some folders. Where the kernel tells of none (not Linux, or a network
    file system), only the time limit ends its waiting.

    Folders, not files: a mounted ConfigMap changes by a link beside the file, and an editor puts another file in its
    place; a watch on the file would stay with the old one.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._libc = ctypes.CDLL(None)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._queue = self._libc.inotify_init1(flags) if hasattr(self._libc, "inotify_init1") else -1
        if self._queue >= 0:
            asyncio.get_running_loop().add_reader(self._queue, self._hear)

    def look(self, folders: Iterable[Path]) -> None:
        """Watch these folders, too. One that is named again is watched even if it was deleted and made anew."""
        for folder in folders if self._queue >= 0 else ():
            self._libc.inotify_add_watch(self._queue, os.fsencode(folder), CHANGES)

    async def wait(self, seconds: float) -> None:
        """Until something changed since the last wait, or for `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """As if something had changed."""
        self._changed.set()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._queue, EVENTS)
        self._changed.set()

    def close(self) -> None:
        if self._queue >= 0:
            asyncio.get_running_loop().remove_reader(self._queue)
            os.close(self._queue)
            self._queue = -1


def folders(names: Iterable[str]) -> set[Path]:
    """The folders of these files, and of the targets of symbolic links among them; a link to itself has none."""
    return {path.parent for name in names for path in (Path(name).absolute(), Path(os.path.realpath(name)))}
