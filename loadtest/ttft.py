"""What does triage cost the simple path?   TTFT direct to Flash, through the gateway with speculation, and without.

    python -m loadtest.ttft [--rounds 40] [--characters 1600 32000]

One run, one machine, all ways interleaved request by request, so the ratios hold where the absolutes do not. The tiers
are simulated at the speed of published figures (backends/sim/settings.py), which the head of the report repeats.
"""

import argparse
import asyncio
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Iterator

from backends.sim.settings import TIERS
from gateway.http1 import Client, Limits, Origin
from loadtest.servers import DEFAULT, gateway, policy, sim

LIMITS = Limits(connect=2.0, first_byte=30.0, idle=30.0, total=60.0)
WAYS = [
    ("speculation, json verdict", "json_logprobs", "always"),
    ("speculation, choice verdict", "choice", "always"),
    ("serial, json verdict", "json_logprobs", "never"),
]
WARM = 3  # rounds that open connections and warm code up
WORDS = "The meeting about the garden party was moved to Thursday, and the cake is now lemon instead of plum. "


def body(model: str, turn: int, characters: int) -> bytes:
    """A simple request whose first words differ from all others, so that no prefix is in the KV cache yet."""
    text = (
        f"Note {turn} for {model}. " + (WORDS * (characters // len(WORDS) + 1))[:characters] + " Which cake is it now?"
    )
    told = {"model": model, "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": text}]}
    if model != "auto":
        told["chat_template_kwargs"] = {"thinking": False, "enable_thinking": False}
    return json.dumps(told).encode()


async def first(client: Client, url: str, data: bytes, path: str = "/v1/chat/completions") -> tuple[float, str]:
    """Seconds to the first piece of the answer, and the tier that a gateway names. Raises RuntimeError unless 200."""
    origin = Origin.parse(url)
    head = f"POST {path} HTTP/1.1\r\nhost: {origin.host}\r\ncontent-type: application/json\r\n"
    started = time.perf_counter()
    response = await client.request(origin, f"{head}content-length: {len(data)}\r\n\r\n".encode(), data, LIMITS)
    await response.chunk()
    seconds = time.perf_counter() - started
    while await response.chunk():
        pass
    response.close()
    if response.status != 200:
        raise RuntimeError(f"refused with status {response.status}: {response.headers}")
    return seconds, response.header(b"x-route-tier").decode()


async def ttft(client: Client, url: str, data: bytes) -> float:
    """Seconds to the first event. Raises RuntimeError unless Flash answered."""
    seconds, tier = await first(client, url, data)
    if tier not in ("", "flash"):
        raise RuntimeError(f"not an answer of Flash but of {tier}")
    return seconds


async def measure(urls: dict[str, tuple[str, str]], rounds: int, characters: int) -> dict[str, list[float]]:
    client = Client()
    seen: dict[str, list[float]] = {name: [] for name in urls}
    for turn in range(rounds):
        for name, (url, model) in urls.items():
            seconds = await ttft(client, url, body(model, turn, characters))
            if turn >= WARM:
                seen[name].append(seconds)
    client.close()
    return seen


def default() -> str:
    """The default policy for one busy caller; its threshold is that of the other ways, so that long prompts are simple
    to the simulated classifier, too."""
    text, limits = DEFAULT.read_text(), "requests_per_minute: 120, tokens_per_minute: 200000, concurrency: 16"
    if limits not in text or "threshold: 0.5" not in text:
        raise ValueError("the default policy has other limits than this measurement knows")
    return text.replace(limits, "requests_per_minute: 1000000").replace("threshold: 0.5", "threshold: 0.9")


@contextlib.contextmanager
def servers() -> Iterator[dict[str, tuple[str, str]]]:
    with contextlib.ExitStack() as stack:
        flash, pro = stack.enter_context(sim("flash")), stack.enter_context(sim("pro"))
        urls = {"direct": (flash.url, flash.model)}
        urls["the default policy, auto"] = (stack.enter_context(gateway(default(), flash, pro)), "auto")
        for name, strategy, speculate in WAYS:
            text = policy(threshold="0.9", strategy=strategy, speculate=speculate)
            urls[name] = (stack.enter_context(gateway(text, flash, pro)), "auto")
        yield urls


def report(seen: dict[str, list[float]], characters: int) -> None:
    base = statistics.median(seen["direct"])
    print(f"\nprompt of {characters} characters, {len(seen['direct'])} requests each")
    for name, times in seen.items():
        middle, late = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        print(
            f"  {name:<28} TTFT p50 {middle * 1000:6.1f} ms  p95 {late * 1000:6.1f} ms  {middle / base:5.2f} x direct"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="TTFT of the simple path: direct, with speculation, serial.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--characters", type=int, nargs="+", default=[1600, 32000])
    asked = parser.parse_args()
    tier = TIERS["flash"]
    print(
        f"{platform.machine()}, Python {platform.python_version()}; simulated Flash: prefill {tier.prefill_overhead} ms"
    )
    print(f"+ {tier.prefill_time_per_token} ms a token, {tier.inter_token_latency} ms per output token (TPOT)")
    with servers() as urls:
        for characters in asked.characters:
            report(asyncio.run(measure(urls, asked.rounds + WARM, characters)), characters)


if __name__ == "__main__":
    main()
