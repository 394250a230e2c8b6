"""How are log lines written to a reader that may stall?   By a thread of their own: nothing else waits for it."""

import fcntl
import logging
import os
import stat
from queue import SimpleQueue
from select import PIPE_BUF
from threading import Event, Thread
from typing import TextIO

PAUSE = 0.05  # seconds that lines gather before they are written together
MOST = 4096  # pieces that wait to be written; while so many wait, further ones are lost
LAST = 1.0  # seconds for what still waits when the process ends
log = logging.getLogger("gateway")


class Outlet:
    """Writes text to a file descriptor, in order, soon after it was given. While the reader stalls or is gone, lines
    are lost, which the log counts; nothing waits.
    """

    def __init__(self, file: TextIO | None) -> None:
        """`file` None: the process has none, and all is lost."""
        # The descriptor: at the end of a process Python waits for the lock of a file object that is being written.
        self._descriptor = _to_its_end(file.fileno()) if file else -1
        self._waiting: SimpleQueue[str | Event] = SimpleQueue()
        self._lost = self._told = 0  # lines that found no room, in all and when that was last said
        self._failed = 0  # lines that could not be written since one was
        self._cut = 0  # 1: the last line that was is half of one, as on a full disk
        self._ending = Event()  # from then on lines gather no more
        Thread(target=self._run, name="log lines", daemon=True).start()

    def write(self, text: str) -> None:
        """Whole lines."""
        if self._waiting.qsize() < MOST:
            self._waiting.put(text)
        else:
            self._lost += text.count("\n")

    def flush(self) -> None:
        """Nothing: who writes must not wait."""

    def close(self) -> None:
        """Returns when all is written, after LAST seconds at most; more may follow."""
        written = Event()
        self._ending.set()
        self._waiting.put(written)
        written.wait(LAST)

    def _run(self) -> None:
        while True:
            due = [self._waiting.get()]
            self._ending.wait(PAUSE)
            due += [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
            if text := "".join(piece for piece in due if isinstance(piece, str)):
                self._put(text)
            for written in [piece for piece in due if isinstance(piece, Event)]:
                written.set()

    def _put(self, text: str) -> None:
        """Whole lines, as many at once as a pipe takes in one piece: those of other processes come before or after."""
        data, at, cut = b"\n" * self._cut + text.encode("utf-8", "backslashreplace"), 0, self._cut
        try:
            while at < len(data):
                end = data.rfind(b"\n", at, at + PIPE_BUF) + 1 or data.find(b"\n", at) + 1 or len(data)
                at += os.write(self._descriptor, data[at:end])
        except OSError as error:
            if not self._failed:
                log.warning("log lines cannot be written: %s", error)
            self._failed += data.count(b"\n", max(at, cut))
            self._cut = int(data[at - 1] != 10) if at else cut
            return
        lost, self._told, self._failed, self._cut = self._failed + self._lost - self._told, self._lost, 0, 0
        if lost:
            log.warning("%d log lines were lost: the disk was full, or who reads them was gone or stood still", lost)


def _to_its_end(descriptor: int) -> int:
    """Has a file written at its end, as `>` alone does not say: one that is emptied once its lines are copied, as by
    logrotate's copytruncate, would go on where it was, behind as many zeros. Returns the descriptor."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    return descriptor
