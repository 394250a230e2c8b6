"""What do callers notice while the policy is written again and again, often wrongly?"""

import asyncio
import itertools
import json
import shutil
import statistics
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from gateway.http1 import Client, Origin, TransportError, fetch
from loadtest.faults.client import JSON, LIMITS, PATH
from loadtest.servers import MODELS, running, sim

POLICY = """\
schema: 1
name: written
revision: r{number}
tiers: {{flash: {{model: {model}, replicas: ["${{FLASH_URL}}"]}}}}
rules: [{{id: all, route: flash}}]
callers: {{default: {{plan: p}}, plans: {{p: {{requests_per_minute: 1000000, concurrency: 10000}}}}}}
tests: [{{name: all goes to flash, request: {{prompt: hi}}, expect: {{rule: {rule}}}}}]
{more}
"""
# An unknown key, a name that dangles, a test that fails, no YAML.
WRONG = ({"more": "budgett: {usd: 1}"}, {"rule": "none"}, {"rule": "caller"}, {"more": "rules: ["})
EVERY, TURNS = 10, (2, 5, 8)  # of so many writes these are wrong
BODY = json.dumps({"model": "flash", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).encode()


class Answer(NamedTuple):
    """`revision` is the policy's that decided it, "" for no answer; times by the loop's clock."""

    status: int
    revision: str
    started: float
    seconds: float


class Reloaded(NamedTuple):
    """The answers; when each right revision was written; what /ready says in the end (policy)."""

    answers: list[Answer]
    written: dict[str, float]
    ready: dict[str, object]

    @property
    def lags(self) -> list[float]:
        """Seconds for which a revision that an answer was decided by had been replaced when its request came."""
        names, times = list(self.written), list(self.written.values())
        after = dict(zip(names, [*times[1:], float("inf")], strict=True))
        return [max(0.0, one.started - after[one.revision]) for one in self.answers if one.revision in after]


def text(number: int) -> tuple[str, bool]:
    """The policy of a write, and whether it is right."""
    right = number % EVERY not in TURNS
    told = {"rule": "all", "more": "", **({} if right else WRONG[number % len(WRONG)])}
    return POLICY.format(number=number, model=MODELS["flash"], **told), right


def mount(place: Path, content: str, number: int) -> None:
    """As a kubelet writes a ConfigMap: a new folder, and a link that is swapped to it."""
    fresh = place / f"..{number}"
    fresh.mkdir()
    (fresh / "policy.yaml").write_text(content)
    (place / "..data_tmp").symlink_to(fresh.name)
    (place / "..data_tmp").replace(place / "..data")
    shutil.rmtree(place / f"..{number - 2}", ignore_errors=True)


async def ask(client: Client, url: str) -> Answer:
    loop = asyncio.get_running_loop()
    started, status, revision = loop.time(), 0, ""
    try:
        status, headers, _ = await fetch(client, Origin.parse(url), PATH, LIMITS, JSON, body=BODY)
        revision = headers.get(b"x-route-policy", b"").decode().partition("@")[2].partition("+")[0]
    except TransportError:
        pass
    return Answer(status, revision, started, loop.time() - started)


async def write(place: Path, writes: int, seconds: float) -> dict[str, float]:
    """When each right revision was there."""
    loop, written = asyncio.get_running_loop(), {"r0": 0.0}
    started = loop.time()
    for number in range(1, writes + 1):
        await asyncio.sleep(max(0.0, started + number * seconds / writes - loop.time()))
        content, right = text(number)
        await asyncio.to_thread(mount, place, content, number)
        if right:
            written[f"r{number}"] = loop.time()
    return written


async def drive(url: str, place: Path, writes: int, seconds: float) -> Reloaded:
    client, answers = Client(), list[Answer]()
    ended = asyncio.Event()

    async def call() -> None:
        while not ended.is_set():
            answers.append(await ask(client, url))

    try:
        callers = [asyncio.create_task(call()) for _ in range(4)]
        written = await write(place, writes, seconds)
        for _ in range(150):  # looks at whether the last one is in force
            if answers and answers[-1].revision == list(written)[-1]:
                break
            await asyncio.sleep(0.02)
        ended.set()
        await asyncio.gather(*callers)
    finally:
        client.close()
    return Reloaded(answers, written, await asyncio.to_thread(ready, url))


def ready(url: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
        found: dict[str, object] = json.loads(answer.read())["policy"]
        return found


def measure(writes: int, seconds: float) -> Reloaded:
    with tempfile.TemporaryDirectory() as made, sim("flash", "--speed", "0") as flash:
        place = Path(made)
        mount(place, text(0)[0], 0)
        (place / "policy.yaml").symlink_to("..data/policy.yaml")
        with running(place / "policy.yaml", [flash]) as (url, _):
            return asyncio.run(drive(url, place, writes, seconds))


def report(writes: int, seconds: float) -> None:
    found = measure(writes, seconds)
    still = statistics.quantiles([one.seconds * 1000 for one in measure(1, seconds / 6).answers], n=100)
    failed = sum(one.status != 200 for one in found.answers)
    wrong = writes + 1 - len(found.written)
    seen = [revision for revision, _ in itertools.groupby(one.revision for one in found.answers)]
    late = statistics.quantiles([one.seconds * 1000 for one in found.answers], n=1000)
    print(f"{writes} swaps of a ConfigMap's link in {seconds:.0f} s, {wrong} of them wrong")
    print(f"  {failed} of {len(found.answers)} requests failed; p50 {late[499]:.1f} ms, p99 {late[989]:.1f} ms")
    print(f"  where nothing is written: p50 {still[49]:.1f} ms, p99 {still[98]:.1f} ms")
    print(f"  {len(set(seen))} revisions were in force, none of them wrong: {set(seen) <= found.written.keys()}")
    lags = statistics.quantiles(found.lags, n=100)
    print(f"  a replaced one was in force for {lags[49] * 1000:.0f} ms at p50, {max(found.lags) * 1000:.0f} ms at most")
    print(f"  in the end: {found.ready}")
