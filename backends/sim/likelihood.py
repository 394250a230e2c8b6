"""Which log-probabilities do the prompt's tokens have?   For `echo` and `prompt_logprobs` of a text completion."""

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

from backends.sim.tokens import pieces, token_id

JSON = dict[str, Any]


def logprob(model: str, piece: str) -> float:
    """A made-up log-probability, a fixed function of model and token; the probability is from 0.05 to 0.95."""
    return math.log(0.05 + 0.9 * (zlib.crc32(f"{model} {piece}".encode()) % 1000) / 1000)


def values(model: str, prompt: str) -> list[tuple[str, float | None]]:
    """The prompt's tokens with their log-probabilities; None for the first, which has no context."""
    found = pieces(prompt)
    return [(piece, logprob(model, piece) if at else None) for at, piece in enumerate(found)]


def offsets(found: Sequence[str]) -> list[int]:
    """Where each piece begins in the text."""
    *begins, _ = itertools.accumulate(map(len, found), initial=0)
    return begins


def echoed(choice: JSON, prompt: str, model: str) -> JSON:
    """The choice with the prompt prepended to its text and logprobs."""
    told = {**choice, "text": prompt + choice["text"]}
    if choice["logprobs"] is None:
        return told
    own, before = choice["logprobs"], values(model, prompt)
    tokens = [*(piece for piece, _ in before), *own["tokens"]]
    tops = [None if value is None else {piece: value} for piece, value in before]
    told["logprobs"] = {
        "text_offset": offsets(tokens),
        "token_logprobs": [*(value for _, value in before), *own["token_logprobs"]],
        "tokens": tokens,
        "top_logprobs": [*tops, *own["top_logprobs"]],
    }
    return told


def scored(prompt: str, model: str) -> list[JSON | None]:
    """vLLM's `prompt_logprobs`: None for the first token, for others {id: {"logprob", ...}}."""
    found: list[JSON | None] = []
    for piece, value in values(model, prompt):
        told = {"logprob": value, "rank": 1, "decoded_token": piece}
        found.append(None if value is None else {str(token_id(piece)): told})
    return found
