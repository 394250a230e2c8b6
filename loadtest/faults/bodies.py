"""For how long does one body hold the process?   By what is in it, beside as many bytes of text."""

import time
from collections.abc import Iterator

from gateway.dialects import read
from gateway.errors import Refusal
from gateway.facts import observe
from gateway.policy import Policy, load_policy
from gateway.pricing import bound
from gateway.splice import changes, refuse_links
from gateway.triage import question
from gateway.types import Caller, ChatRequest
from loadtest.servers import policy

CHAT, TEXTS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TALK = b'"messages":[{"role":"user","content":"hi"}]'
MANY = {  # what repeats (%d: its number), between what, on which path
    "text": (b"words ", b'{"messages":[{"role":"user","content":"', b'"}]}', CHAT),
    "members": (b'"%d":0,', b"{" + TALK + b",", b'"x":0}', CHAT),
    "messages": (b'{"role":""},', b'{"messages":[', b'{"role":"user","content":"hi"}]}', CHAT),
    "pieces": (b'{"type":""},', b'{"messages":[{"role":"user","content":[', b'{"type":""}]}]}', CHAT),
    "tools": (b"{},", b"{" + TALK + b',"tools":[', b"{}]}", CHAT),
    "template arguments": (b'"%d":0,', b"{" + TALK + b',"chat_template_kwargs":{', b'"x":0}}', CHAT),
    "metadata": (b"[],", b"{" + TALK + b',"metadata":{"x":[', b"[]]}}", CHAT),
    "prompts": (b'"a",', b'{"prompt":[', b'"a"]}', TEXTS),
    "numbers": (b"1,", b'{"prompt":[', b"1]}", TEXTS),
    "lists of numbers": (b"[1],", b'{"prompt":[', b"[1]]}", TEXTS),
    "items": (b"{},", b'{"input":[', b'{"role":"user","content":"hi"}]}', RESPONSES),
    "tools of a response": (b"{},", b'{"input":"hi","tools":[', b"{}]}", RESPONSES),
}


def filled(name: str, size: int) -> bytes:
    unit, before, after, _ = MANY[name]
    if b"%d" not in unit:
        return before + unit * ((size - len(before) - len(after)) // len(unit)) + after
    return before + b"".join(numbered(unit, size - len(before) - len(after))) + after


def numbered(unit: bytes, size: int) -> Iterator[bytes]:
    at = 0
    while size > len(unit) + 7:
        piece = unit % at
        yield piece
        size, at = size - len(piece), at + 1


def decided(path: str, data: bytes, rules: Policy) -> None:
    """All that is done with a body before a model server is asked. Raises Refusal."""
    caller = Caller("ann", "ann", rules.callers.default.plan, "salt")
    body, fields = read(path, data)
    request = ChatRequest("r", caller, path, body, fields, {}, time.perf_counter())
    refuse_links(request)
    bound(request, tuple(rules.tiers), rules)
    observe(request, rules, {})
    question(request, rules)
    body.edit(changes(request, rules.tiers["flash"], rules.callers.plans[caller.plan]))


def measure(size: int) -> dict[str, tuple[float, str]]:
    """Milliseconds of CPU by what is in the body, and what came of it."""
    rules = load_policy(policy(), {"FLASH_URL": "http://flash", "PRO_URL": "http://pro"})
    found = {}
    for name, (_, _, _, path) in MANY.items():
        data, told = filled(name, size), "served"
        started = time.process_time()
        try:
            decided(path, data, rules)
        except Refusal as refusal:
            told = refusal.message
        found[name] = ((time.process_time() - started) * 1000, told)
    return found


def report(*sizes: int) -> None:
    for size in sizes:
        print(f"one body of {size >> 20} MiB: milliseconds of CPU")
        for name, (milliseconds, told) in measure(size).items():
            print(f"  {name:<20} {milliseconds:7.0f}  {told[:80]}")
