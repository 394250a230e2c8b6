"""Do prefill, decoding, the queue and the prefix cache take the time they should?"""

import asyncio
import time
from typing import Any

import httpx2
import pytest

from backends.sim.engine import CHUNK, Engine, Sequence
from backends.sim.metrics import Metrics
from backends.sim.settings import parser, settings
from loadtest.faults.arithmetic import Loop
from tests.backends.sim.servers import JSON, OFF, chat, entry, served

SLOW = ("--prefill-overhead", "10ms", "--prefill-time-per-token", "1ms", "--inter-token-latency", "2ms",
        "--time-factor-under-load", "1", "--block-size", "16")  # fmt: skip
LONG = "Describe the sea in great detail. " * 30


async def together(url: str, *bodies: JSON) -> list[JSON]:
    """Send chats at the same moment; gives their replies in the order of the bodies."""
    async with httpx2.AsyncClient(timeout=10, verify=False, trust_env=False) as client:
        sent = [
            client.post(f"{url}/v1/chat/completions", json={"chat_template_kwargs": OFF, **body}) for body in bodies
        ]
        return [reply.json() for reply in await asyncio.gather(*sent)]


def ttft(url: str, name: str) -> float:
    """Milliseconds from receipt to first token."""
    seen = entry(url, name)
    return float(seen["first_token_ms"] - seen["received_ms"])


def ask(text: str, name: str, **fields: Any) -> JSON:
    """A body of one short answer."""
    return {"messages": [{"role": "user", "content": text}], "request_id": name, "max_tokens": 1, **fields}


def decoded(*flags: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first and to the last of so many tokens after a prompt of 100, exact: in virtual time."""
    made = settings(parser().parse_args(["--tier", "flash", "--port", "1", *flags]))

    async def run() -> tuple[float, float]:
        engine, sequence = Engine(made), Sequence(["word"] * 100)
        async with engine.slot(sequence):
            await engine.prefill(sequence)
            for _ in range(tokens):
                await engine.token(sequence, "word")
        return sequence.first_token, asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(run())


def test_something_in_the_figures_moves_with_each_step_also_of_a_long_prompt() -> None:
    made = settings(parser().parse_args(["--tier", "flash", "--port", "1", *SLOW]))

    async def run() -> list[bytes]:
        engine, metrics, sequence = Engine(made), Metrics(made), Sequence(["word"] * 3 * CHUNK)
        told = [metrics.text(engine)]
        async with engine.slot(sequence):
            read = asyncio.create_task(engine.prefill(sequence))
            for _ in range(3):
                await asyncio.sleep(CHUNK / 1000)
                told.append(metrics.text(engine))
            await read
            for _ in range(3):
                await engine.token(sequence, "word")
                told.append(metrics.text(engine))
        return told

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert len(set(told := runner.run(run()))) == len(told)


def test_a_cached_prefix_costs_less_and_salts_do_not_share() -> None:
    with served(*SLOW) as url:
        first = chat(url, LONG, request_id="cold", max_tokens=1).json()["usage"]
        second = chat(url, LONG + "And now?", request_id="warm", max_tokens=1).json()["usage"]
        salted = chat(url, LONG, request_id="salt", max_tokens=1, cache_salt="s").json()["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] == 0
        assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 32
        assert salted["prompt_tokens_details"]["cached_tokens"] == 0
        assert ttft(url, "cold") >= first["prompt_tokens"] * 0.95
        assert ttft(url, "warm") < ttft(url, "cold") / 3


def test_two_that_start_together_share_one_prefill() -> None:
    with served(*SLOW) as url:
        suffix = {"messages": [{"role": "user", "content": LONG}, {"role": "user", "content": "How hard?"}]}
        used = asyncio.run(together(url, ask(LONG, "a"), {**ask("", "b"), **suffix}))
        cached = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in used]
        assert min(cached) == 0
        assert max(cached) >= used[0]["usage"]["prompt_tokens"] - 32
        seen = [entry(url, name) for name in "ab"]
        begun = min(one["received_ms"] for one in seen)
        assert min(one["first_token_ms"] for one in seen) - begun >= 0.95 * used[0]["usage"]["prompt_tokens"]


def test_effort_high_breaks_the_prefix_and_low_does_not() -> None:
    with served("--speed", "0", "--block-size", "16") as url:
        chat(url, LONG, max_tokens=1)
        shared = {}
        for effort in ("low", "high"):
            kwargs = {"thinking": True, "reasoning_effort": effort}
            used = chat(url, LONG, max_tokens=1, chat_template_kwargs=kwargs).json()["usage"]
            shared[effort] = used["prompt_tokens_details"]["cached_tokens"]
        assert shared["low"] > 0
        assert shared["high"] == 0


def test_an_answer_is_cached_for_the_next_turn() -> None:
    with served("--speed", "0", "--block-size", "16") as url:
        said = chat(url, "Explain tides").json()
        turns = [
            {"role": "user", "content": "Explain tides"},
            {"role": "assistant", "content": said["choices"][0]["message"]["content"]},
            {"role": "user", "content": "Shorter, please"},
        ]
        used = chat(url, messages=turns).json()["usage"]
        assert used["prompt_tokens_details"]["cached_tokens"] >= said["usage"]["total_tokens"] - 16


def test_a_server_is_as_slow_as_it_is_configured() -> None:
    with served(*SLOW) as url:
        started = time.monotonic()
        chat(url, "hi", max_tokens=101, ignore_eos=True, request_id="pace")
        took = (time.monotonic() - started) * 1000 - ttft(url, "pace")
        assert took >= 190
        assert entry(url, "pace")["tokens"] == 101


def test_prefill_and_tokens_take_what_is_configured() -> None:
    first, last = decoded(*SLOW, tokens=101)
    assert first == pytest.approx(0.010 + 100 * 0.001)
    assert last - first == pytest.approx(100 * 0.002)


def test_the_queue_is_first_come_unless_priorities_are_on() -> None:
    async def run(url: str, low: JSON, high: JSON) -> None:
        first = asyncio.create_task(together(url, ask("Tell me. " * 60, "x")))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(together(url, ask("one", "low", **low)))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, second, together(url, ask("two", "high", **high)))

    for policy, order in (("fcfs", ["x", "low", "high"]), ("priority", ["x", "high", "low"])):
        with served(*SLOW, "--max-num-seqs", "1", "--scheduling-policy", policy) as url:
            ranks: list[JSON] = [{"priority": 9}, {"priority": -9}] if policy == "priority" else [{}, {}]
            asyncio.run(run(url, *ranks))
            assert sorted(order, key=lambda name: float(entry(url, name)["first_token_ms"])) == order


def test_load_slows_every_sequence() -> None:
    flags = ("--inter-token-latency", "2ms", "--time-factor-under-load", "5", "--max-num-seqs", "8")
    with served(*flags, "--prefill-overhead", "1ms") as url:

        def body(name: str) -> JSON:
            return ask("hi", name, max_tokens=25, ignore_eos=True)

        asyncio.run(together(url, body("alone")))
        asyncio.run(together(url, *(body(f"many{i}") for i in range(8))))
        alone, many = entry(url, "alone"), entry(url, "many3")
        pace = [(e["ended_ms"] - e["first_token_ms"]) / 24 for e in (alone, many)]
        assert pace[1] > 3 * pace[0]


def test_speed_divides_all_times() -> None:
    plain, fast = decoded(*SLOW, tokens=100), decoded(*SLOW, "--speed", "100", tokens=100)
    assert fast == pytest.approx([seconds / 100 for seconds in plain])
