"""What does speculation win, and what does it waste, as more prompts turn out complex?

    python -m loadtest.speculation [--rounds 40] [--characters 1600] [--shares 0 0.1 0.25 0.5 0.75]

One run, one machine; the ways are interleaved request by request, each with simulated tiers of its own at the speed of
published figures (backends/sim/settings.py). Beside what was measured stands the arithmetic over three times of the
same run: v to a verdict (POST /v1/route), f and p to the first event of Flash and of Pro, asked directly. At a share s
of complex prompts, serial triage takes v + (1-s) f + s p on the mean, speculation (1-s) max(v, f) + s (v + p).
`early` is when_idle with Pro started early for each prompt of a high score: (1-s) max(v, f) + s max(v, p) at best.
Wasted are the tokens that servers made for drafts that were dropped, by their own count and by the gateway's metric.
`won` is what the gateway counts itself: the mean time, over all requests, that kept drafts saved.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gateway.http1 import Client
from loadtest.servers import Sim, gateway, policy, sim
from loadtest.ttft import WARM, WORDS, first

SERIAL = "never"  # serial triage
EARLY = "early"
WAYS = {SERIAL: "null", "always": "null", "when_idle": "null", EARLY: "{score: 0.95, max_share: 1.0}"}
SIMPLE = "Which cake is it now?"
COMPLEX = "Prove the theorem step by step, derive the equation that x^2 = y + 1 must satisfy, and analyse why it holds."
COUNTED = re.compile(r'gateway_draft_tokens_total\{outcome="wasted"\} ([0-9.e+]+)')
WON = re.compile(r"gateway_draft_won_seconds_sum ([0-9.e+-]+)")


@dataclass
class Way:
    """A gateway and its tiers; `seen` holds seconds to the first event."""

    flash: Sim
    pro: Sim
    url: str
    seen: list[float] = field(default_factory=list)

    def begin(self) -> tuple[float, float]:
        """Forget what was seen; the gateway's counts so far."""
        self.seen.clear()
        for tier in (self.flash, self.pro):
            tier.reset()
        return self.counted()

    def wasted(self) -> int:
        """Tokens of dropped drafts, by the servers' own count."""
        seen = self.flash.seen() + self.pro.seen()
        return sum(entry["tokens"] for entry in seen if entry["state"] == "aborted")

    def counted(self) -> tuple[float, float]:
        """Tokens wasted and seconds won, as the gateway counts them."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        tokens, seconds = (float(found[1]) if (found := told.search(text)) else 0.0 for told in (COUNTED, WON))
        return tokens, seconds


def body(model: str, name: str, hard: bool, characters: int) -> bytes:
    """A request whose first words differ from all others, so that no prefix is in the KV cache yet."""
    filler = (WORDS * (characters // len(WORDS) + 1))[:characters]
    text = f"Note {name}. {filler}\n\n{COMPLEX if hard else SIMPLE}"
    told = {"model": model, "stream": True, "max_tokens": 64, "messages": [{"role": "user", "content": text}]}
    if model != "auto" and not hard:
        told["chat_template_kwargs"] = {"thinking": False, "enable_thinking": False}
    return json.dumps(told).encode()


def hard(turn: int, share: float) -> bool:
    """Spreads a share of complex prompts evenly over the turns."""
    return int((turn + 1) * share + 1e-9) > int(turn * share + 1e-9)


async def measure(ways: dict[str, Way], share: float, rounds: int, characters: int) -> None:
    """Fills each way's `seen`. Raises RuntimeError when the classifier does not tell the prompts apart."""
    client = Client()
    for turn in range(rounds):
        for way in ways.values():
            wanted = hard(turn, share)
            seconds, tier = await first(client, way.url, body("auto", f"{share} {turn}", wanted, characters))
            if tier != ("pro" if wanted else "flash"):
                raise RuntimeError(f"a {'complex' if wanted else 'simple'} prompt went to {tier}")
            way.seen.append(seconds)
    client.close()


async def alone(way: Way, rounds: int, characters: int) -> tuple[float, float, float]:
    """Mean seconds to a verdict, and to the first event of Flash and of Pro."""
    client = Client()
    times: tuple[list[float], ...] = ([], [], [])
    for turn in range(rounds + WARM):
        asked = (
            (way.url, body("auto", f"v {turn}", turn % 2 == 0, characters), "/v1/route"),
            (way.flash.url, body(way.flash.model, f"f {turn}", False, characters), "/v1/chat/completions"),
            (way.pro.url, body(way.pro.model, f"p {turn}", True, characters), "/v1/chat/completions"),
        )
        for found, one in zip(times, asked, strict=True):
            seconds, _ = await first(client, *one)
            found.append(seconds)
    client.close()
    v, f, p = (statistics.fmean(found[WARM:]) for found in times)
    return v, f, p


@contextlib.contextmanager
def servers() -> Iterator[dict[str, Way]]:
    with contextlib.ExitStack() as stack:
        ways = {}
        for name, early in WAYS.items():
            flash, pro = stack.enter_context(sim("flash")), stack.enter_context(sim("pro"))
            speculate = "when_idle" if name == EARLY else name
            text = policy(threshold="0.9", strategy="json_logprobs", waste="null", speculate=speculate, early=early)
            ways[name] = Way(flash, pro, stack.enter_context(gateway(text, flash, pro)))
        yield ways


def report(
    ways: dict[str, Way], share: float, before: dict[str, tuple[float, float]], expected: dict[str, float]
) -> Iterator[str]:
    base = statistics.fmean(ways[SERIAL].seen)
    for name, way in ways.items():
        mean = statistics.fmean(way.seen)
        sums = expected.get(name, expected["speculation"])
        tokens, won = ((now - then) / len(way.seen) for now, then in zip(way.counted(), before[name], strict=True))
        wasted = way.wasted() / len(way.seen)
        yield (
            f"| {share:.0%} | {name} | {mean * 1000:.1f} | {mean / base:.2f} | {sums * 1000:.1f} "
            f"| {wasted:.1f} | {tokens:.1f} | {won * 1000:.1f} |"
        )


def run(shares: Sequence[float], rounds: int, characters: int) -> Iterator[str]:
    with servers() as ways:
        v, f, p = asyncio.run(alone(ways[SERIAL], rounds, characters))
        yield f"v {v * 1000:.1f} ms, f {f * 1000:.1f} ms, p {p * 1000:.1f} ms; {rounds} requests a cell\n"
        yield "| complex | speculate | TTFT, ms | of serial | arithmetic, ms | tokens wasted | metric | won, ms |"
        yield "|---|---|---|---|---|---|---|---|"
        asyncio.run(measure(ways, 0.5, 2 * WARM, characters))
        for share in shares:
            before = {name: way.begin() for name, way in ways.items()}
            asyncio.run(measure(ways, share, rounds, characters))
            expected = {SERIAL: v + (1 - share) * f + share * p}
            expected[EARLY] = (1 - share) * max(v, f) + share * max(v, p)
            expected["speculation"] = (1 - share) * max(v, f) + share * (v + p)
            yield from report(ways, share, before, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean TTFT and wasted tokens against the share of complex prompts.")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--characters", type=int, default=1600)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 0.75])
    told = parser.parse_args()
    for line in run(told.shares, told.rounds, told.characters):
        print(line, flush=True)


if __name__ == "__main__":
    main()
