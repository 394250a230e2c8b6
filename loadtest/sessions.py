"""What do sessions save?   Verdicts, moves between tiers, cached tokens and cost of simulated agent conversations.

    python -m loadtest.sessions [--conversations 20]

Each conversation has a system prompt, tools, six user turns (one of them hard, one "yes, commit it") and five tool
results after each. The same conversations go through each way, one after another, to servers that begin empty. Cached
tokens are those that the simulators report (blocks of 256, nothing of another caller's); cost is by the prices of
policies/default.yaml, verdicts left out.
"""

import argparse
import json
import platform
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.policy import load_policy
from loadtest.servers import DEFAULT, MODELS, gateway, sim

JSON = dict[str, Any]
POLICY = """\
schema: 1
tiers:
  flash:
    model: {flash}
    replicas: ["${{FLASH_URL}}"]
    price: {{input_per_m: 0.14, cached_input_per_m: 0.028, output_per_m: 0.28}}
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
  pro:
    model: {pro}
    replicas: ["${{PRO_URL}}"]
    can: {{context: 200000}}
    price: {{input_per_m: 0.435, cached_input_per_m: 0.0036, output_per_m: 0.87}}
    set: {{chat_template_kwargs: {{thinking: false, enable_thinking: false}}}}
triage: {{tier: flash, timeout: 5s, speculate: never, unit: {unit}}}
{sessions}
rules: [{{id: triaged, route: {{simple: flash, complex: pro}}}}]
callers: {{default: {{plan: p}}, plans: {{p: {{requests_per_minute: 1000000, concurrency: 100, may: [pro]}}}}}}
"""
WAYS = {
    "each request by itself": ("request", ""),
    "each user turn, no sessions": ("user_turn", ""),
    "sessions, turn": ("user_turn", "sessions: {stay: turn}"),
    "sessions, until_escalated": ("user_turn", "sessions: {}"),
}
RULES = "Keep to the style of the file, run the tests after each change, and say what you changed. " * 120
TURNS = (
    "Please list the files of the parser package for me.",
    "Thanks. Which of them has the tokenizer in it?",
    "Prove that the algorithm cannot deadlock, then refactor the lock-free queue step by step under its constraints.",
    "Good. Rename the variable in the first line, please.",
    "Write a short note for the changelog about it.",
    "yes, commit it",
)
RESULTS = 5
OUTPUT = "-- 12 lines read; nothing else was found in this place, the listing ends here. " * 12
CALL = {"id": "a", "type": "function", "function": {"name": "run", "arguments": '{"command": "ls"}'}}
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]


@dataclass
class Sums:
    """What came of all conversations on one way."""

    requests: int = 0
    verdicts: int = 0
    moves: int = 0
    above: int = 0
    committed: int = 0
    prompt: int = 0
    cached: int = 0
    usd: float = 0.0


def conversation(number: int) -> Iterator[tuple[str, list[JSON]]]:
    """Each request of a conversation: the user's words that it follows, and its messages."""
    talk: list[JSON] = [{"role": "system", "content": f"You are agent {number}. {RULES}"}]
    for text in TURNS:
        talk.append({"role": "user", "content": text})
        for _ in range(RESULTS):
            yield text, talk
            talk.append({"role": "assistant", "content": None, "reasoning_content": "I look.", "tool_calls": [CALL]})
            talk.append({"role": "tool", "tool_call_id": "a", "content": OUTPUT})
        yield text, talk
        talk.append({"role": "assistant", "content": "That is done."})


def ask(url: str, messages: list[JSON]) -> tuple[str, JSON]:
    """Who answered, and the server's usage object."""
    told = {"model": "auto", "messages": messages, "tools": TOOLS, "max_tokens": 32}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(told).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["x-route-tier"], json.loads(answer.read())["usage"]


def measure(way: str, conversations: int) -> Sums:
    unit, sessions = WAYS[way]
    prices = {name: tier.price for name, tier in load_policy(DEFAULT, {}).tiers.items()}
    text, sums = POLICY.format(unit=unit, sessions=sessions, **MODELS), Sums()
    with sim("flash", "--speed", "0") as flash, sim("pro", "--speed", "0") as pro, gateway(text, flash, pro) as url:
        probed = flash.state()["counters"]["triage"]  # what the gateway tried at its start
        for number in range(conversations):
            before = None
            for said, messages in conversation(number):
                tier, usage = ask(url, messages)
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                price, prompt = prices[tier], usage["prompt_tokens"]
                sums.usd += (prompt - cached) * price.input_per_m + cached * price.cached_input_per_m
                sums.usd += usage["completion_tokens"] * price.output_per_m
                sums.requests += 1
                sums.moves += before not in (None, tier)
                sums.above += tier == "pro"
                sums.committed += said == TURNS[-1] and tier == "pro"
                sums.prompt, sums.cached, before = sums.prompt + prompt, sums.cached + cached, tier
        sums.verdicts = flash.state()["counters"]["triage"] - probed
    return sums


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    reader.add_argument("--conversations", type=int, default=20)
    conversations = reader.parse_args().conversations
    print(f"{platform.machine()}, Python {platform.python_version()}; {conversations} conversations\n")
    print("| way | requests | verdicts | moves | on pro | last turn on pro | prompt tokens | cached | US dollars |")
    print("|---|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        found = measure(way, conversations)
        last = found.committed / (conversations * (RESULTS + 1))
        print(
            f"| {way} | {found.requests} | {found.verdicts} | {found.moves} | {found.above / found.requests:.2f} "
            f"| {last:.2f} | {found.prompt} | {found.cached / found.prompt:.3f} | {found.usd / 1e6:.4f} |"
        )


if __name__ == "__main__":
    main()
