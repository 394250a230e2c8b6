"""What is a text about, in a few whole numbers?   The first of a static embedding, for a calibration to weigh.

They hold no words, but whoever guesses a prompt can check the guess by them.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.score.pieces import Cutter
from gateway.score.remembered import Words

LEAST = 8  # tokens of a text that they tell of: those of a single word could be looked up
MOST = 64
NAMES = tuple(f"axis{at}" for at in range(1, MOST + 1))
STEPS = 16  # to the root mean square of the tokens' numbers; texts of one set differ by one to three
FINE = 64  # parts of a step that tokens are kept in
HALF = 1 << 15  # stands for 0: what is kept is never negative, and below 1 << 16


def summed(cutter: Cutter, tokens: Mapping[str, int]) -> Words[int]:
    """By word the sum of its tokens."""
    return Words(lambda word: sum(map(tokens.__getitem__, cutter.cut(word))))


@dataclass(frozen=True, slots=True)
class Axes:
    """`sums` hold `size` numbers in one integer, then of how many tokens, 32 bits each: one addition adds them all.
    `digest`: 12 hex digits of the files' SHA-256."""

    cutter: Cutter
    sums: Words[int]
    size: int
    digest: str

    def measures(self, text: str) -> Mapping[str, float]:
        """The means over the text's tokens, in whole steps, by name; {} for a text of less than LEAST tokens. A text of
        65,536 tokens would overflow."""
        whole = sum(map(self.sums.__getitem__, self.cutter.words(text)))
        *sums, count = struct.unpack(f"<{self.size + 1}I", whole.to_bytes(4 * self.size + 4, "little"))
        if count < LEAST:
            return {}
        return {name: float(round((one / count - HALF) / FINE)) for name, one in zip(NAMES, sums, strict=False)}


def packed(vectors: Iterable[Sequence[float]], size: int) -> list[int]:
    """The first `size` numbers of each vector, and that it is one, in one integer. Raises ValueError where there are
    not so many, and for numbers that are not finite."""
    numbers = [vector[:size] for vector in vectors]
    if not 1 <= size <= min(MOST, len(numbers[0])):
        raise ValueError(f"{size} axes of {len(numbers[0])} numbers; at most {MOST}")
    flat = [number for vector in numbers for number in vector]
    deviation = math.sqrt(sum(number * number for number in flat) / len(flat))
    if not (math.isfinite(deviation) and deviation):
        raise ValueError("its numbers are not finite, or all 0")
    fine = FINE * STEPS / deviation
    return [
        int.from_bytes(struct.pack(f"<{size + 1}I", *(_kept(x * fine) for x in one), 1), "little") for one in numbers
    ]


def _kept(amount: float) -> int:
    return min(max(round(amount) + HALF, 0), 2 * HALF - 1)
