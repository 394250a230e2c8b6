import asyncio
import json
import os
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from multiprocessing import active_children, current_process
from pathlib import Path

import pytest
import uvloop
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.errors import Overloaded
from gateway.settings import Settings
from gateway.workers import Failed, Member, Supervisor
from gateway.workers.messages import Message
from gateway.workers.sums import counts, read, total
from gateway.workers.supervisor import ENDING, SILENT, Worker
from loadtest.servers import POLICY, READY, Process, Sim, running, until
from tests.gateway import still
from tests.gateway.serving import PATIENCE, Port, body, eventually
from tests.tiers import JSON

ADMIN = secrets.token_hex(32)

ANSWERED = b'gateway_requests_total{status="200",tier="flash"}'
RELOADS = b'gateway_policy_reloads_total{result="accepted"}'


@contextmanager
def two(flash: Sim, pro: Sim, triage: str = "", **settings: str) -> Iterator[tuple[Port, Process]]:
    """Two workers on one port, and their supervisor."""
    policy = POLICY.format(triage=triage, limit=100_000, flash=flash.model, pro=pro.model)
    settings |= {"REDIS_URL": "embedded", "WORKERS": "2", "ADMIN_KEY": ADMIN}
    with running(policy, (flash, pro), **settings) as (url, process):
        gate = Port(int(url.rpartition(":")[2]))
        until(lambda: alive(gate) == 2, READY)
        yield gate, process


def alive(gate: Port) -> int:
    return int(asyncio.run(gate.get("/ready")).json()["workers"])


def counted(gate: Port, name: bytes = ANSWERED) -> int:
    """Requests answered with 200 by Flash, or another count, as /metrics of whichever worker has it."""
    text = asyncio.run(gate.get("/metrics")).data
    found = re.search(re.escape(name) + rb" ([0-9.]+)", text)
    return int(float(found[1])) if found else 0


def listed(gate: Port, query: str = "") -> list[JSON]:
    """The records as whichever worker is asked lists them."""
    lines = asyncio.run(gate.get("/admin/records" + query, authorization=f"Bearer {ADMIN}")).data.splitlines()
    return [json.loads(line) for line in lines]


def workers(process: Process) -> list[int]:
    """The worker processes' ids."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def asked(gate: Port, count: int) -> None:
    answers = await asyncio.gather(*(gate.ask(body(model="flash")) for _ in range(count)))
    assert [one.status for one in answers] == [200] * count


async def drained(gate: Port, process: Process, flash: Sim) -> None:
    """SIGTERM lets the streams of all workers end."""
    stream = body(model="flash", stream=True, max_tokens=40)
    tasks = [asyncio.create_task(gate.ask(stream)) for _ in range(20)]
    while len(await asyncio.to_thread(flash.seen)) < 20:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for pid in (process.pid, *workers(process)):  # as a terminal or systemd does: the supervisor alone heeds it
        os.kill(pid, signal.SIGTERM)
    answers = await asyncio.gather(*tasks)
    assert [(one.status, one.events()[-1]) for one in answers] == [(200, b"[DONE]")] * 20


def test_two_workers_serve_one_port_count_as_one_replace_one_that_dies_and_leave_in_order(flash: Sim, pro: Sim) -> None:
    with two(flash, pro) as (gate, process):
        asyncio.run(asked(gate, 40))
        until(lambda: counted(gate) == 40)  # an exchange is counted when it is settled, after its answer
        seen = [counted(gate) for _ in range(4)]
        assert seen == [40] * 4, "whichever worker is asked"
        assert [len(listed(gate)) for _ in range(4)] == [40] * 4
        ends = [one["at"] for one in listed(gate, "?limit=9")]
        assert (len(ends), ends) == (9, sorted(ends))
        assert len(listed(gate, f"?after={ends[4]}")) == sum(end > ends[4] for end in ends)
        victim, other = workers(process)
        files = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, files[1]))
        os.kill(victim, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{victim}").exists())
        assert counted(gate) == 40, "what a dead worker counted stays"
        asyncio.run(asked(gate, 10))
        time.sleep(0.3)  # in which none can be started
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, files)
        until(lambda: alive(gate) == 2, READY)
        assert other in workers(process)
        until(lambda: counted(gate) == 50)
        reloads = counted(gate, RELOADS)
        os.kill(process.pid, signal.SIGHUP)
        until(lambda: counted(gate, RELOADS) == reloads + 2)
        flash.reset()
        flash.config(drip=0.004, drip_bytes=64)
        asyncio.run(drained(gate, process, flash))
        assert process.wait(60) == 0


def test_a_worker_that_dies_is_replaced_by_one_with_the_last_good_policy_and_none_outlives_the_supervisor(
    flash: Sim, pro: Sim, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fitted, layer = tmp_path / "fitted.json", {"intercept": 0.0, "weights": {}, "means": {}, "scales": {}}
    fitted.write_text(json.dumps({"schema": 1, "layer": layer, "edges": [0.5]}))
    with two(flash, pro, f", calibration: {fitted}") as (gate, process):
        good = asyncio.run(gate.get("/ready")).json()["policy"]["digest"]
        words = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
        Path(words[words.index("--policy") + 1]).write_text("schema: 2\n")
        fitted.unlink()
        victim, _ = workers(process)
        os.kill(victim, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{victim}").exists())
        until(lambda: len(workers(process)) == 2 and alive(gate) == 2, READY)
        told = asyncio.run(gate.get("/ready")).json()["policy"]
        assert (told["digest"], len(told["problems"])) == (good, 2)
        said = capfd.readouterr().err
        assert re.search(rf"^[0-9-]{{10}}T[0-9:]{{8}}Z a worker ended: process {victim}, signal 9;", said, re.MULTILINE)
        assert f"({good}) is in force on 127.0.0.1:{gate.port}, store " in said
        assert "Traceback" not in said
        left = workers(process)
        process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


@pytest.mark.parametrize(
    ("redis", "words"),
    [("", "share"), ("redis://127.0.0.1:1", "does not answer"), ("redis://:secret@host:abc", "--redis host:abc: ")],
)
def test_several_workers_need_a_store_that_answers(redis: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0", "--workers", "2"], env={"GATEWAY_REDIS_URL": redis})
    assert done.exit_code == 1
    assert (done.stderr + capfd.readouterr().err).count(words) == 1, "said once, not by each worker"


def ignores(pid: int, sig: signal.Signals) -> bool:
    found = re.search(r"^SigIgn:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> (sig - 1) & 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_told_and_a_sighup_before_that_ends_nothing(workers: str, valkey: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:  # as another gateway's workers have it
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "gateway", "serve", "--port", port, "--redis", valkey, "--workers", workers]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
            until(lambda: ignores(starting.pid, signal.SIGHUP))
            starting.send_signal(signal.SIGHUP)
            _, told = starting.communicate(timeout=60)
    assert starting.returncode == 1
    assert "cannot listen" in told


# -- sums --------------------------------------------------------------------------------------------------------------


def metrics(asked: int, up: float, inflight: int) -> bytes:
    registry = CollectorRegistry()
    Counter("asked", "How many?\nReally.", ["name"], registry=registry).labels('a "b" {c} \\ \n').inc(asked)
    Histogram("took_seconds", "Time.", buckets=(1, 2), registry=registry).observe(1.5)
    Gauge("gateway_store_up", "Up.", registry=registry).set(up)
    Gauge("gateway_certificate_expiration_timestamp_seconds", "End.", registry=registry).set(asked)
    Gauge("gateway_policy_info", "Info.", ["name"], registry=registry).labels("p").set(1)
    Gauge("gateway_inflight_requests", "Open.", registry=registry).set(inflight)
    return generate_latest(registry)


def test_counts_and_gauges_are_summed_and_the_worst_state_speaks_for_all() -> None:
    text = total([metrics(1, 1, 2), metrics(2, 0, 3)])
    samples = {name: value for family in read(text).values() for name, value in family.samples.items()}
    assert samples['asked_total{name="a \\"b\\" {c} \\\\ \\n"}'] == 3
    assert (samples['took_seconds_bucket{le="2.0"}'], samples["took_seconds_sum"]) == (2, 3.0)
    assert (samples["gateway_store_up"], samples["gateway_inflight_requests"]) == (0, 5)
    assert samples["gateway_certificate_expiration_timestamp_seconds"] == 1
    assert samples['gateway_policy_info{name="p"}'] == 1
    assert samples['asked_created{name="a \\"b\\" {c} \\\\ \\n"}'] < time.time()


def test_the_sum_of_one_is_that_one_and_of_none_is_none() -> None:
    one = metrics(1, 1, 2)
    assert read(total([one])) == read(one)
    assert [line for line in total([one]).splitlines() if line[:1] == b"#"] == [
        line for line in one.splitlines() if line[:1] == b"#"
    ]
    assert total([b"", b""]) == b""


def test_who_has_ended_counts_but_is_not_open_any_more() -> None:
    text = counts(metrics(4, 1, 2))
    assert b"asked_total" in text
    assert b"took_seconds_bucket" in text
    assert b"gateway_inflight_requests" not in text
    assert total([text, metrics(1, 1, 0)]).count(b"# TYPE asked_total counter") == 1


def test_a_worker_that_stands_still_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        running = asyncio.create_task(Supervisor(Settings(workers=1), still.work, beat=0.002).run())
        await eventually(lambda: caplog.text.count("another one takes its place") >= 2)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(main())
    numbers = [re.findall(r"process (\d+) is killed", message)[0] for message in caplog.messages[:4:2]]
    assert caplog.messages[1:4:2] == [
        f"a worker ended: process {number}, signal 9; another one takes its place in {pause} s"
        for number, pause in zip(numbers, ("0.1", "0.2"), strict=True)
    ]


async def test_how_a_worker_ended_before_any_served_is_told() -> None:
    with pytest.raises(Failed, match=r"^a worker ended: process \d+, signal 9$"):
        await Supervisor(Settings(workers=1), still.killed).run()


async def test_what_a_worker_told_last_counts_while_it_tells_nothing(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    running = asyncio.create_task(Supervisor(Settings(workers=1, records=heard), still.mute, beat=0.1).run())
    await eventually(lambda: heard.exists() and heard.read_bytes() == still.COUNTED)
    running.cancel()
    await asyncio.wait([running])


def test_workers_that_die_at_once_do_not_end_the_supervisor_that_tells_one_of_the_others() -> None:
    async def main() -> None:
        supervisor = Supervisor(Settings(workers=2), still.work)
        for _ in range(2):
            ours, theirs = socket.socketpair()
            _, writer = await asyncio.open_connection(sock=ours)
            supervisor._workers.add(Worker(current_process(), writer, serves=True))
            theirs.close()
        for _ in range(3):  # the first one finds out that the other end is gone
            supervisor._tell_alive()
            await asyncio.sleep(0)
        assert all(worker.writer.is_closing() for worker in supervisor._workers)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_any_word_of_a_worker_ends_its_silence() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    worker = Worker(current_process(), writer, serves=True, silent=SILENT - 1)
    Supervisor(Settings(workers=1), still.work)._receive(worker, Message("here", 0))
    assert worker.silent == 0
    writer.close()
    theirs.close()


async def test_a_worker_that_does_not_leave_when_told_to_is_killed_once_its_time_is_over() -> None:
    soon = Settings(workers=1).model_copy(update={"drain": 0.01 - ENDING})
    supervisor = Supervisor(soon, still.work)
    running = asyncio.create_task(supervisor.run())
    await eventually(lambda: bool(supervisor._workers))
    supervisor._leave()
    await asyncio.wait_for(running, PATIENCE)


@pytest.mark.parametrize("known", [False, True])
async def test_a_worker_that_begins_to_serve_when_all_leave_is_told_so_once_and_a_sighup_is_none_of_its_business(
    known: bool, tmp_path: Path
) -> None:
    supervisor = Supervisor(Settings(workers=1, records=tmp_path / "heard"), still.late)
    running = asyncio.create_task(supervisor.run())
    while not (supervisor._workers if known else active_children()):  # noqa: ASYNC110
        await asyncio.sleep(0)
    for child in active_children():
        os.kill(child.pid or 0, signal.SIGHUP)  # as systemd sends it, to all
    supervisor._leave()  # as at SIGTERM, before another turn of the loop
    await asyncio.wait_for(running, PATIENCE)
    heard = (tmp_path / "heard").read_bytes().splitlines()
    assert heard == [b"leave 0 0", b"alive 1 0", b"tell 0 0"], "a second time would end it, with whom it has let in"


async def test_a_worker_that_serves_says_again_and_again_that_it_is_there() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    async with aclosing(await Member.join(theirs, beat=0.01)) as member:
        member.serving()
        assert [await reader.readline() for _ in range(3)] == [b"serving 0 0\n", b"here 0 0\n", b"here 0 0\n"]
    writer.close()


async def test_a_worker_hears_on_when_an_answer_comes_as_its_question_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    reloads: asyncio.Queue[None] = asyncio.Queue()
    async with aclosing(await Member.join(theirs)) as member:
        member.hear(lambda: None, lambda: reloads.put_nowait(None))
        for turns in range(8):
            asked = asyncio.create_task(member.metrics())
            number = (await reader.readline()).split()[1]
            writer.write(b"all %b 4\ntold" % number)
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
            writer.write(b"reload 0 0\n")
            await asyncio.wait_for(reloads.get(), 20)
    writer.close()


async def test_a_supervisor_that_does_not_answer_in_time_is_a_503_and_is_heard_again_later() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=ours)
    async with aclosing(await Member.join(theirs, patience=0.01)) as member:
        member.hear(lambda: None, lambda: None)
        with pytest.raises(Overloaded, match="does not come together") as refusal:
            await member.metrics()
        assert refusal.value.retry_after == 1.0
        writer.write(b"all 0 4\nlatealive 2 0\n")
        await eventually(lambda: member.alive == 2)
    writer.close()
