"""How much does a token use each expert of a hash-routed layer?   python -m backends.scores CHECKPOINT TEXTS OUT

Runs a V4 checkpoint in transformers over texts (JSON lines with `text`). The score of a token id and a column of its
`tid2eid` row is the mean of gate weight times the norm of the expert's output. OUT is a safetensors file for `convert
--tid2eid calibrated --calibration OUT`; tokens that occur in no text are NaN. Needs torch and transformers.
"""

import argparse
import re
import sys
from array import array
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from backends.evals.tasks import DataError, rows
from backends.shards import ShardError, write
from backends.tid2eid import SCORE
from backends.v4 import CheckpointError, read


class Tally:
    """Sums for one layer: `total` [vocabulary, top_k] of gate weight times norm, `seen` [vocabulary] of occurrences."""

    def __init__(self, block: Any, torch: Any) -> None:
        table = block.gate.tid2eid
        self.total = torch.zeros(table.shape, dtype=torch.float64)
        self.seen = torch.zeros(table.shape[0], dtype=torch.float64)
        self._torch = torch
        self._hook = block.register_forward_hook(self._take, with_kwargs=True)

    def _take(self, block: Any, given: tuple[Any, ...], named: dict[str, Any], _: Any) -> None:
        """Forward hook: runs each column's expert alone on the block's input."""
        tokens = named["input_ids"].reshape(-1)
        states = given[0].reshape(-1, given[0].shape[-1])
        _logits, weights, experts = block.gate(given[0], named["input_ids"])
        self.seen.index_add_(0, tokens, self._torch.ones(len(tokens), dtype=self.seen.dtype))
        for column in range(experts.shape[1]):
            one = slice(column, column + 1)
            alone = block.experts(states, experts[:, one], self._torch.ones_like(weights[:, one]))
            self.total[:, column].index_add_(0, tokens, (weights[:, column] * alone.norm(dim=-1)).double())

    def mean(self) -> bytes:
        """The scores [vocabulary, top_k] as F32 bytes, row-major; NaN for tokens never seen. Removes the hook."""
        self._hook.remove()
        return array("f", (self.total / self.seen[:, None]).flatten().tolist()).tobytes()


def measured(place: Path, texts: list[str]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors (dtype, shape, bytes) of the file of scores. Raises CheckpointError, ShardError, OSError."""
    names = {layer(name): (name, table.shape) for name, (_, table) in read(place).tables.items() if "layers." in name}
    torch, transformers = import_module("torch"), import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()
    blocks = {
        layer(name): block for name, block in model.named_modules() if hasattr(getattr(block, "gate", None), "tid2eid")
    }
    tallies = {number: Tally(block, torch) for number, block in blocks.items()}
    with torch.inference_mode():
        for text in track(texts, "texts", console=Console(stderr=True)):
            model(tokenizer(text, return_tensors="pt")["input_ids"])
    return {name + SCORE: ("F32", shape, tallies[number].mean()) for number, (name, shape) in names.items()}


def layer(name: str) -> int:
    """The layer's number in the name of a tensor or module. Raises CheckpointError without one."""
    found = re.search(r"layers\.(\d+)\.", name)
    if found is None:
        raise CheckpointError(f"{name} belongs to no layer")
    return int(found[1])


def main() -> None:
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("checkpoint", type=Path)
    said.add_argument("texts", type=Path)
    said.add_argument("out", type=Path)
    told = said.parse_args()
    try:
        write(told.out, measured(told.checkpoint, [row["text"] for row in rows(told.texts)]), {})
    except (CheckpointError, ShardError, DataError, OSError) as error:
        sys.exit(f"scores: {error}")


if __name__ == "__main__":
    main()
