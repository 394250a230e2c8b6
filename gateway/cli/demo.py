"""How does a newcomer see it work?   Two simulated tiers, a Valkey, the gateway, a dozen prompts and a table."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import msgspec
import typer

from gateway.embedded import NotInstalled, embedded
from gateway.http1 import Client, Limits, Origin, TransportError, fetch
from gateway.key_records import new_admin_key
from gateway.sse import Splitter, data_of

READY = 30.0  # seconds for a server to answer
LOGGED = 0.15  # seconds in which the gateway has written what it logs of its start, which would stand within the table
LIMITS = Limits(connect=2.0, first_byte=30.0, idle=30.0, total=120.0)
HOST = "127.0.0.1"
TIERS = ("flash", "pro")
MEMO = "Our meeting moved from Tuesday to Thursday at ten, room B. Please bring the figures of the last quarter. " * 12
PROMPTS: list[tuple[str, dict[str, Any]]] = [
    ("hi there!", {}),
    ("What is the capital of Australia?", {}),
    ("Translate into French: The train leaves at nine.", {}),
    ("Prove that there are infinitely many primes of the form 4k+3.", {}),
    ("Write a Python function that reverses a string.", {}),
    ("Design a lock-free queue in C++, prove it linearizable and analyse its memory ordering step by step.", {}),
    ("Sum up this memo in one sentence: " + MEMO, {}),
    ("Beweise Schritt für Schritt, dass die Wurzel aus 2 irrational ist, und verallgemeinere auf n-te Wurzeln.", {}),
    ("Name three colours of the rainbow, please.", {"temperature": 0}),
    ("Name three colours of the rainbow, please.", {"temperature": 0}),
    ("Which tier answers when I ask for one by name?", {"model": "pro"}),
    ("And which one is the fast one, if I may ask?", {"model": "auto:fast"}),
]
ROW = "{:<30.30} {:<8} {:<5} {:<6} {:<14} {:>7} {:>6}"
EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="http://{host}:{port}/v1", api_key="anything")
answer = client.chat.completions.with_raw_response.create(
    model="auto", messages=[{{"role": "user", "content": "Prove that the square root of 2 is irrational."}}])
print(answer.headers["x-route-tier"], answer.headers["x-route-reason"], answer.parse().choices[0].message.content)"""


def demo(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 8080,
    speed: Annotated[float, typer.Option(help="How much faster than the published figures the tiers are.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="End after the table.")] = False,
) -> None:
    """Show it: simulated tiers, a Valkey, the gateway and a dozen prompts; stays up until Ctrl-C."""
    if _taken(port):
        typer.echo(f"port {port} is taken; try: tiergate demo --port {port + 1}", err=True)
        raise typer.Exit(1)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_demo(port, speed, once))


async def _demo(port: int, speed: float, once: bool) -> None:
    started, task, loop = time.perf_counter(), asyncio.current_task(), asyncio.get_running_loop()
    for end in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(end, task.cancel if task else loop.stop)
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = await stack.enter_async_context(embedded())
        except (NotInstalled, TimeoutError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        admin, _ = new_admin_key(b"")
        env, ports = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}, {}
        env |= {"GATEWAY_LOG_EXCHANGES": "false", "GATEWAY_ADMIN_KEY": admin}
        for tier in TIERS:
            ports[tier] = _free_port()
            env[f"{tier.upper()}_URL"] = f"http://{HOST}:{ports[tier]}"
            command = ["-m", "backends.sim", "--tier", tier, "--port", str(ports[tier]), "--speed", str(speed)]
            await stack.enter_async_context(_process(command, env))
        command = ["-m", "gateway", "serve", "--host", HOST, "--port", str(port), "--redis", store]
        await stack.enter_async_context(_process(command, env))
        client = Client()
        stack.callback(client.close)
        for asked in (*ports.values(), port):
            await _ready(client, asked)
        await asyncio.sleep(LOGGED)
        print(f"Ready after {time.perf_counter() - started:.1f} s. A dozen prompts, all to the same endpoint:\n")
        print(ROW.format("prompt", "verdict", "p", "tier", "rule", "TTFT ms", "own ms"))
        for prompt, extra in PROMPTS:
            print(ROW.format(*await _row(client, port, prompt, extra)), flush=True)
        print("\np: how sure Flash is that Pro is needed. own: the part of TTFT that is not waiting for a model.")
        _hints(port, ports, admin)
        if not once:
            await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _process(command: Sequence[str], env: dict[str, str]) -> AsyncIterator[None]:
    """A Python process that ends with the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()


async def _ready(client: Client, port: int) -> None:
    deadline = time.monotonic() + READY
    while True:
        try:
            await fetch(client, _origin(port), "GET /health", LIMITS)
            return
        except TransportError:
            if time.monotonic() > deadline:
                typer.echo(f"nothing answers on port {port} after {READY:.0f} s", err=True)
                raise typer.Exit(1) from None
            await asyncio.sleep(0.05)


async def _row(client: Client, port: int, prompt: str, extra: dict[str, Any]) -> list[str]:
    """Stream one prompt with its explanation."""
    asked = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": prompt}], **extra}
    body = msgspec.json.encode(asked)
    started = time.perf_counter()
    response = await client.request(_origin(port), _head(len(body)), body, LIMITS)
    try:
        chunk = await response.chunk()
        first, events, splitter = time.perf_counter() - started, [], Splitter()
        while chunk:
            events += splitter.feed(chunk)
            chunk = await response.chunk()
    finally:
        response.close()
    told = next((data_of(event) for event in events if b'"route":' in event), b'{"route": {}}')
    verdict = msgspec.json.decode(told)["route"].get("verdict") or {}
    p_complex = verdict.get("p_complex")
    unasked = "cached" if response.header(b"x-route-cache") == b"hit" else "-"
    return [
        prompt,
        verdict.get("label") or verdict.get("reason") or unasked,
        "" if p_complex is None else f"{p_complex:.2f}",
        response.header(b"x-route-tier").decode(),
        response.header(b"x-route-rule").decode(),
        f"{first * 1000:.0f}",
        f"{float(response.header(b'x-gateway-overhead-ms')):.1f}",
    ]


def _hints(port: int, ports: dict[str, int], admin: str) -> None:
    url = f"http://{HOST}:{port}"
    print(f"\nLook at it: {url}/ui with this run's admin key, {admin}")
    print("\nTry it:")
    print(f"  curl -s {url}/v1/chat/completions -H 'x-route-explain: 1' \\")
    print('    -d \'{"model": "auto", "messages": [{"role": "user", "content": "hello"}]}\'')
    print(f"  curl -s {url}/v1/models")
    print(f"  curl -s {url}/metrics | grep gateway_decisions")
    print(f"  curl -s {url}/admin/usage -H 'Authorization: Bearer {admin}'")
    print(f"  curl -s http://{HOST}:{ports['flash']}/admin/state    # what the simulated Flash saw")
    print("\nOr from Python (pip install openai):\n")
    print(EXAMPLE.format(host=HOST, port=port))
    print("\nCtrl-C ends everything.")


def _origin(port: int) -> Origin:
    return Origin(HOST, port, False, "")


def _head(length: int) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", f"host: {HOST}", f"content-length: {length}", "x-route-explain: 1"]
    return ("\r\n".join([*lines, "content-type: application/json"]) + "\r\n\r\n").encode()


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
