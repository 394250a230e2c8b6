"""What are the latencies of one streamed answer: TTFT, TPOT and the total?"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


class Failed(Exception):
    """The gateway refused, or the answer did not come whole."""


@dataclass(slots=True)
class Answer:
    """One stream as the caller saw it. Times are milliseconds since the request was due."""

    pieces: list[float] = field(default_factory=list)
    end: float = 0.0
    tokens: int = 0

    def times(self) -> dict[str, float]:
        """Times by kind; a kind that a short answer does not have is left out."""
        found = {"e2e": self.end}
        if self.pieces:
            found["ttft"] = self.pieces[0]
        if self.pieces and self.tokens > 1:
            found["tpot"] = (self.end - self.pieces[0]) / (self.tokens - 1)
        if len(self.pieces) > 1:
            found["itl_p99"] = quantile([b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)], 0.99)
        return found


def quantile(values: Sequence[float], part: float) -> float:
    """The percentile by nearest rank: the smallest value that is not below that part of `values`."""
    return sorted(values)[max(math.ceil(part * len(values)), 1) - 1]


def read(lines: Iterator[bytes], start: float, answer: Answer) -> None:
    """Fills `answer` from server-sent events. Raises Failed on an error event, or an end without [DONE]."""
    done = False
    for line in lines:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            raise Failed(f"error in the stream: {chunk['error'].get('code') or chunk['error'].get('type')}")
        if has_text(chunk):
            answer.pieces.append(since(start))
        if chunk.get("usage"):
            answer.tokens = chunk["usage"]["completion_tokens"]
    if not done:
        raise Failed("the stream ended without [DONE]")


def has_text(chunk: dict[str, Any]) -> bool:
    deltas = [choice["delta"] for choice in chunk["choices"]]
    names = ("content", "reasoning", "reasoning_content", "tool_calls")
    return any(delta.get(name) for delta in deltas for name in names)


def refusal(status: int, body: bytes) -> str:
    """Status and OpenAI error code: few different texts, so that Locust groups them."""
    try:
        error = json.loads(body)["error"]
        return f"{status} {error['code'] or error['type']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}, no error object"


def since(start: float) -> float:
    return (time.perf_counter() - start) * 1000.0
