"""How hard does it look to a static embedding of its words?   A table of one number for each token.

A text's embedding is the mean of its tokens' vectors, and a head (logistic regression) weighs it; so each token's
vector may be weighed once and for all when the folder is read, and a text costs no more than finding its tokens.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Any

from gateway.score.pieces import Pieces, pieces

MODEL, TOKENIZER, HEAD = "model.safetensors", "tokenizer.json", "head.json"
FORMATS = {"F32": ("f", 4), "F16": ("e", 2)}


@dataclass(frozen=True, slots=True)
class Table:
    """`weights` by token: what the head makes of its vector. `digest`: 12 hex digits of the files' SHA-256."""

    pieces: Pieces
    weights: Mapping[str, float]
    bias: float
    digest: str

    def value(self, text: str) -> float | None:
        """From 0 (simple) to 1; None for a text without a known token."""
        found = [self.weights[token] for token in self.pieces.of(text)]
        if not found:
            return None
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.bias + sum(found) / len(found)))))


def read(folder: Path) -> Table:
    """A model's folder: `model.safetensors` with `embeddings` (tokens x size), `tokenizer.json` (BERT's), and
    `head.json`, {"weights": [...], "bias": x}, fitted to means that are not normalised. Raises OSError, ValueError.
    """
    model, tokenizer, head = ((folder / name).read_bytes() for name in (MODEL, TOKENIZER, HEAD))
    try:
        told = json.loads(head)
        weights, bias = [float(weight) for weight in told["weights"]], float(told["bias"])
        found, numbers = pieces(json.loads(tokenizer))
        sums = [sum(map(mul, row, weights)) for row in rows(model, len(weights))]
        table = {token: sums[number] for token, number in numbers.items()}
    except (KeyError, TypeError, IndexError, AttributeError, struct.error, RecursionError) as error:
        raise ValueError(f"no static embedding with a head: {error!r}") from None
    if not all(map(math.isfinite, (bias, *sums))):
        raise ValueError("its numbers are not finite")
    return Table(found, table, bias, hashlib.sha256(model + tokenizer + head).hexdigest()[:12])


def rows(data: bytes, size: int) -> Iterator[tuple[float, ...]]:
    """The vectors of a safetensors file. Raises ValueError where they have not that size or another format."""
    (length,) = struct.unpack_from("<Q", data)
    tensors: dict[str, Any] = json.loads(data[8 : 8 + length])
    if others := tensors.keys() - {"__metadata__", "embeddings"}:
        raise ValueError(f"tensors that have no meaning here: {', '.join(sorted(others))}")
    told = tensors["embeddings"]
    letter, width = FORMATS.get(told["dtype"], ("", 0))
    count, wide = told["shape"]
    begin, end = told["data_offsets"]
    raw = data[8 + length + begin : 8 + length + end]
    if not letter or wide != size or len(raw) != count * wide * width:
        raise ValueError(f"{told['dtype']} embeddings of {wide} numbers for a head of {size}; known: F32, F16")
    return struct.iter_unpack(f"<{wide}{letter}", raw)
