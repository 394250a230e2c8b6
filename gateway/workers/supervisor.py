"""Who starts the workers, restarts them, and adds up their metrics?"""

import asyncio
import itertools
import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.settings import Settings
from gateway.workers.messages import BEAT, Message, receive, send
from gateway.workers.sums import counts, total

STEADY = 60.0  # seconds that a worker must have run for its end not to count as one more in a series of crashes
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a worker is started again, doubled within a series
ENDING = 5.0  # seconds for a process to end once its work is done
SILENT = 15  # beats without a word after which a worker that serves is taken to stand still
SPAWN = multiprocessing.get_context("spawn")
log = logging.getLogger("gateway")
Work = Callable[[Settings, socket.socket], None]


class Failed(Exception):
    """A worker ended before any had served; it may have said why."""


@dataclass(eq=False)
class Worker:
    """One process. `silent`: beats since its last word; `text`: the metrics that it said last; `answers`: the questions
    that it has not answered yet.
    """

    process: multiprocessing.process.BaseProcess
    writer: asyncio.StreamWriter
    serves: bool = False
    silent: int = 0
    text: bytes = b""
    answers: dict[int, asyncio.Future[bytes]] = field(default_factory=dict)


class Supervisor:
    """Keeps `settings.workers` processes running that do `work`. They ignore signals, and leave when told to or when
    the supervisor is gone. One that stands still is killed: the kernel would go on to give it its share of the callers.
    Metrics are summed here, so that no counter falls when a worker dies and no stream waits for it.
    """

    def __init__(self, settings: Settings, work: Work, beat: float = BEAT) -> None:
        self._settings, self._work, self._beat = settings, work, beat
        self._workers: set[Worker] = set()
        self._ended = b""  # the counts of workers that are gone
        self._served = False
        self._leaving = asyncio.Event()
        self._questions = itertools.count()
        self._telling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, and until all have left. Raises Failed."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._leave)
        loop.add_signal_handler(signal.SIGHUP, self._tell, "reload")
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as slots:
                for _ in range(self._settings.workers):
                    slots.create_task(self._keep_running())
        except* Failed as failed:
            raise failed.exceptions[0] from None
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Counts beats, not seconds: where the whole machine stood still, no worker is to blame."""
        while True:
            await asyncio.sleep(self._beat)
            for worker in self._workers:
                worker.silent += worker.serves
            for worker in [one for one in self._workers if one.silent == SILENT]:
                log.warning("a worker stands still: process %d is killed", worker.process.pid)
                worker.process.kill()

    def _leave(self) -> None:
        loop, settings = asyncio.get_running_loop(), self._settings
        self._tell("leave")
        if self._leaving.is_set():
            loop.call_later(ENDING, self._kill)
            return
        self._leaving.set()
        loop.call_later(settings.pause + settings.drain + ENDING, self._kill)

    def _tell(self, word: str) -> None:
        for worker in self._workers:
            send(worker.writer, Message(word, 0))

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()

    async def _keep_running(self) -> None:
        """Runs one worker after another, until leaving. Raises Failed."""
        pause = FIRST_PAUSE
        while not self._leaving.is_set():
            started = time.monotonic()
            try:
                ended = await self._run_worker()
            except OSError as error:  # no process, file or memory is left; that may pass, and the others serve
                ended = f"a worker cannot be started: {error}"
            if not self._served and not self._leaving.is_set():
                raise Failed(ended)
            if time.monotonic() - started > STEADY:
                pause = FIRST_PAUSE
            if not self._leaving.is_set():
                log.warning("%s; another one takes its place in %g s", ended, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run_worker(self) -> str:
        """Runs a worker to its end; returns how it ended. Raises OSError where it cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = SPAWN.Process(target=self._work, args=(self._settings, theirs))
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # one to all of us would end it while it starts
            try:
                process.start()
            except OSError:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = Worker(process, writer)
        self._workers.add(worker)
        if self._leaving.is_set():  # the others were told to while this one was being started
            send(writer, Message("leave", 0))
        try:
            while message := await receive(reader):
                self._receive(worker, message)
            await asyncio.to_thread(process.join, ENDING)
            status = process.exitcode
            how = f"signal {-status}" if status and status < 0 else f"status {status}"
            return f"a worker ended: process {process.pid}, {how}"
        finally:
            process.kill()
            self._workers.discard(worker)
            self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        worker.writer.close()
        worker.process.join()
        self._ended = total([self._ended, counts(worker.text)])
        for answer in worker.answers.values():
            answer.cancel()
        self._tell_alive()

    def _receive(self, worker: Worker, message: Message) -> None:
        worker.silent = 0
        if message.word == "serving":
            self._served = worker.serves = True
            self._tell_alive()
        elif message.word == "ask":
            task = asyncio.create_task(self._answer(worker, message))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        elif message.word != "here" and (answer := worker.answers.get(message.number)):
            worker.text = message.data if message.word == "told" else worker.text
            answer.set_result(message.data)

    def _tell_alive(self) -> None:
        alive = sum(worker.serves for worker in self._workers)
        for worker in self._workers:
            send(worker.writer, Message("alive", alive))

    async def _answer(self, asker: Worker, asked: Message) -> None:
        """Ask everyone and answer `asker`."""
        question, loop = next(self._questions), asyncio.get_running_loop()
        answers = {worker: loop.create_future() for worker in self._workers if worker.serves}
        for worker, answer in answers.items():
            worker.answers[question] = answer
            send(worker.writer, Message("tell", question, asked.data))
        if answers:  # for who does not tell within a beat, what it told last counts
            await asyncio.wait(answers.values(), timeout=self._beat)
        for worker in answers:
            del worker.answers[question]
        if asked.data:
            said = [answer.result() for answer in answers.values() if answer.done() and not answer.cancelled()]
            send(asker.writer, Message("all", asked.number, b"".join(said)))
        else:
            texts = [worker.text for worker in self._workers]
            send(asker.writer, Message("all", asked.number, total([self._ended, *texts])))
