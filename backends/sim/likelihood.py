"""How likely does the model find the prompt itself?   What `echo` and `prompt_logprobs` add to a text completion."""

import math
import zlib
from typing import Any

from backends.sim.tokens import pieces, token_id

JSON = dict[str, Any]


def logprob(model: str, piece: str) -> float:
    """A value that is the model's own and the same each time: that of a probability from 0.05 to 0.95."""
    return math.log(0.05 + 0.9 * (zlib.crc32(f"{model} {piece}".encode()) % 1000) / 1000)


def values(model: str, prompt: str) -> list[tuple[str, float | None]]:
    """The prompt's tokens; the first has no value, as nothing stands before it."""
    found = pieces(prompt)
    return [(piece, logprob(model, piece) if at else None) for at, piece in enumerate(found)]


def echoed(choice: JSON, prompt: str, model: str) -> JSON:
    """The choice with its prompt in front, in its logprobs, too."""
    told = {**choice, "text": prompt + choice["text"]}
    if choice["logprobs"] is None:
        return told
    own, before = choice["logprobs"], values(model, prompt)
    offsets = [sum(len(piece) for piece, _ in before[:at]) for at in range(len(before))]
    tops = [None if value is None else {piece: value} for piece, value in before]
    told["logprobs"] = {
        "text_offset": [*offsets, *(len(prompt) + at for at in own["text_offset"])],
        "token_logprobs": [*(value for _, value in before), *own["token_logprobs"]],
        "tokens": [*(piece for piece, _ in before), *own["tokens"]],
        "top_logprobs": [*tops, *own["top_logprobs"]],
    }
    return told


def scored(prompt: str, model: str) -> list[JSON | None]:
    """vLLM's `prompt_logprobs`: for each token but the first its id with its value."""
    found: list[JSON | None] = []
    for piece, value in values(model, prompt):
        told = {"logprob": value, "rank": 1, "decoded_token": piece}
        found.append(None if value is None else {str(token_id(piece)): told})
    return found
