"""What does a static embedding say of a text?   How hard it looks, where a head says so; else its first numbers.

A text's embedding is the mean of its tokens' vectors, and a head (logistic regression) weighs it; so each token's
vector may be weighed once and for all when the folder is read, and a text costs no more than finding its tokens.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Any

from gateway.score.axes import Axes, packed, summed
from gateway.score.pieces import Cutter, pieces, tokens
from gateway.score.spaced import spaced

EMBEDDED = "embedded"  # the measure that a head gives; the score is its value then
MODEL, TOKENIZER, HEAD = "model.safetensors", "tokenizer.json", "head.json"
FORMATS = {"F32": ("f", 4), "F16": ("e", 2)}


@dataclass(frozen=True, slots=True)
class Table:
    """`weights` by token: what the head makes of its vector. `digest`: 12 hex digits of the files' SHA-256."""

    cutter: Cutter
    weights: Mapping[str, float]
    bias: float
    digest: str

    def value(self, text: str) -> float | None:
        """From 0 (simple) to 1; None for a text without a known token."""
        found = [self.weights[token] for token in tokens(self.cutter, text)]
        if not found:
            return None
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.bias + sum(found) / len(found)))))

    def measures(self, text: str) -> Mapping[str, float]:
        """The value by its name; {} where there is none."""
        found = self.value(text)
        return {} if found is None else {EMBEDDED: round(found, 4)}


def read(folder: Path) -> Table | Axes:
    """A model's folder: `model.safetensors` with one tensor (tokens x size), `tokenizer.json` (BERT's, or
    SentencePiece's with bytes), and `head.json`: {"weights": [...], "bias": x}, fitted to means that are not
    normalised, or {"axes": n}, how many of a vector's first numbers are told. Raises OSError, ValueError.
    """
    files = [folder / name for name in (MODEL, TOKENIZER, HEAD)]
    if any(file.is_fifo() for file in files):  # who opens one to which nobody writes waits for ever
        raise ValueError("a pipe is no file")
    model, tokenizer, head = (file.read_bytes() for file in files)
    digest = hashlib.sha256(model + tokenizer + head).hexdigest()[:12]
    try:
        told, cuts = json.loads(head), json.loads(tokenizer)
        cutter, numbers = spaced(cuts["model"]) if cuts["model"]["type"] == "BPE" else pieces(cuts)
        if "axes" in told:
            kept = packed(rows(model), told["axes"])
            known = {token: kept[number] for token, number in numbers.items()}
            return Axes(cutter, summed(cutter, known), told["axes"], digest)
        weights, bias = [float(weight) for weight in told["weights"]], float(told["bias"])
        sums = [weighed(row, weights) for row in rows(model)]
        table = {token: sums[number] for token, number in numbers.items()}
    except (KeyError, TypeError, IndexError, AttributeError, struct.error, RecursionError) as error:
        raise ValueError(f"no static embedding with a head: {error!r}") from None
    if not all(map(math.isfinite, (bias, *sums))):
        raise ValueError("its numbers are not finite")
    return Table(cutter, table, bias, digest)


def weighed(row: Sequence[float], weights: Sequence[float]) -> float:
    if len(row) != len(weights):
        raise ValueError(f"embeddings of {len(row)} numbers for a head of {len(weights)}")
    return math.fsum(map(mul, row, weights))


def rows(data: bytes) -> Iterator[tuple[float, ...]]:
    """The vectors of a safetensors file with one tensor. Raises ValueError for more than one, and another format."""
    (length,) = struct.unpack_from("<Q", data)
    tensors: dict[str, Any] = json.loads(data[8 : 8 + length])
    tensors.pop("__metadata__", None)
    if len(tensors) != 1:
        raise ValueError(f"embeddings are one tensor, here are {', '.join(sorted(tensors)) or 'none'}")
    (told,) = tensors.values()
    letter, width = FORMATS.get(told["dtype"], ("", 0))
    count, wide = told["shape"]
    begin, end = told["data_offsets"]
    raw = data[8 + length + begin : 8 + length + end]
    if not letter or wide < 1 or len(raw) != count * wide * width:
        raise ValueError(f"{told['dtype']} embeddings of {wide} numbers, {len(raw)} bytes; known: F32, F16")
    return struct.iter_unpack(f"<{wide}{letter}", raw)
