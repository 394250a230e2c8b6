"""What are TTFT and TPOT with each way to run experts?   Whole models of random weights, in transformers.

Random weights ask their experts nearly uniformly and say nothing of sense: these are times, and no quality. Prompts are
never skipped, and above 256 tokens our way runs them by torch's grouped product. A decode step at a fixed context is
recorded and replayed where that works, and launched from Python where it does not; the row says which.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    DynamicCache,
    PreTrainedConfig,
    Qwen3MoeConfig,
    StaticCache,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from backends.flashmoe.kernels.gate_up import SWIGLU, Activation
from backends.flashmoe.kernels.launch import ROUTED, Format, Shape
from backends.flashmoe.kernels.weights import Weights
from backends.flashmoe.policy import Piggyback, Routing, TopK, decide, skip
from loadtest.kernels.clock import Timing, device, timed
from loadtest.kernels.layers import Draw, Layer, launched, ours
from loadtest.kernels.parts import Book

OURS, SKIPPING = "ours", "ours, skipping"  # experts implementations
WAYS = ("eager", "grouped_mm", "batched_mm", OURS, SKIPPING)
SPARE = 8  # places of a cache beyond the prompt


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is asked of a model. `context`: tokens before a decode step."""

    prompts: tuple[int, ...]
    batches: tuple[int, ...]
    context: int


FULL, SMALL = Sizes((128, 512, 2048), (1, 4, 16, 64), 512), Sizes((4,), (2,), 4)


@dataclass(frozen=True, slots=True)
class Asked:
    """One figure: `ttft` of a prompt of so many tokens, or `tpot` of so many sequences."""

    kind: str
    count: int
    way: str

    @property
    def name(self) -> str:
        return f"{self.way} {self.kind} {self.count}"


QWEN = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip
SMALL_QWEN = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64,
}  # fmt: skip
SMALL_V4 = {
    "hidden_size": 128, "num_attention_heads": 2, "head_dim": 32, "q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 32,
    "moe_intermediate_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64,
}  # fmt: skip


def config(name: str, tiny: bool) -> PreTrainedConfig:
    """Qwen3-30B-A3B whole; six layers of V4-Flash with attention to a window, as its own cache cannot be recorded."""
    if name == "qwen3-30b":
        return Qwen3MoeConfig(**(SMALL_QWEN if tiny else QWEN), norm_topk_prob=True)
    count = 2 if tiny else 6
    kinds = {"layer_types": ["sliding_attention"] * count, "mlp_layer_types": ["moe"] * count}
    return DeepseekV4Config(**(SMALL_V4 if tiny else {}), **kinds, num_hidden_layers=count)


def measure(book: Book, name: str, tiny: bool) -> None:
    """Writes a time for each way, prompt and batch."""
    ALL_EXPERTS_FUNCTIONS.register(OURS, lambda *asked: _ours(*asked, skipping=False))
    ALL_EXPERTS_FUNCTIONS.register(SKIPPING, lambda *asked: _ours(*asked, skipping=True))
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(config(name, tiny), dtype=torch.bfloat16).eval().requires_grad_(False)
    sizes = SMALL if tiny else FULL
    for asked in book.within(list(wanted(sizes)), lambda one: f"{name} {one.name}"):
        with book.figure(f"{name} {asked.name}"):
            model.set_experts_implementation(asked.way)
            timing, how = first(model, asked.count) if asked.kind == "ttft" else step(model, asked, sizes.context)
            told = {"seconds": timing.seconds, "noise": round(timing.noise, 4), "runs": timing.runs, "how": how}
            book.write("time", model=name, measured=asked.kind, count=asked.count, way=asked.way, **told)
        if device().type == "cuda":
            torch.cuda.empty_cache()  # of a graph's own memory, and after there was too little


def wanted(sizes: Sizes) -> Iterator[Asked]:
    """The shortest prompt, then all steps, then the other prompts."""
    ways = ("eager", "grouped_mm", OURS)  # of prompts: the others are for steps
    prompts = [Asked("ttft", count, way) for count in sizes.prompts for way in ways]
    yield from prompts[: len(ways)]
    yield from (Asked("tpot", count, way) for count in sizes.batches for way in WAYS)
    yield from prompts[len(ways) :]


@torch.inference_mode()
def first(model: Any, tokens: int) -> tuple[Timing, str]:
    """From a prompt on the device to its next token, launched from Python."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), device=device())

    def go() -> Tensor:
        logits = model(input_ids=ids, past_key_values=DynamicCache(config=model.config), logits_to_keep=1).logits
        found: Tensor = logits.argmax(-1)
        return found

    return timed([go], graphed=False), "launched"


@torch.inference_mode()
def step(model: Any, asked: Asked, context: int) -> tuple[Timing, str]:
    """One token of each sequence, after so many of context."""
    token = torch.randint(model.config.vocab_size, (asked.count, 1), device=device())
    go = _stepping(model, token, StaticCache(config=model.config, max_cache_len=context + SPARE), context)
    if asked.way == "eager" or device().type == "cpu":
        return timed([go], graphed=False), "launched"
    try:
        return timed([go]), "recorded"
    except RuntimeError as error:  # what cannot be recorded says so here
        print(f"{asked.name}: {error}", flush=True)
        torch.cuda.synchronize()
        return timed([go], graphed=False), "launched"


def _stepping(model: Any, token: Tensor, cache: Any, context: int) -> Callable[[], Tensor]:
    """A repeated decode step after `context` tokens. The KV cache is not filled: its values do not change the time."""
    places = torch.full((1, 1), context, device=token.device)

    def go() -> Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context)
            if hasattr(layer, "cumulative_length_int"):  # of a window
                layer.cumulative_length_int = context
        logits = model(input_ids=token, past_key_values=cache, position_ids=places).logits
        found: Tensor = logits[:, -1].argmax(-1)
        return found

    return go


def _ours(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor, *, skipping: bool) -> Tensor:
    """A layer's experts by our kernels; prompts that one program cannot route, by torch's grouped product."""
    if len(hidden) > ROUTED:
        run: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
        whole: Tensor = run(experts, hidden, ids, weights)
        return whole
    if skipping:
        one = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        routing = Routing(0, experts.num_experts, ids, weights, weights.float(), one, 1)
        ids, weights = skip(routing, decide(routing, (TopK(ids.shape[1] // 2), Piggyback())))
    shape = Shape(experts.num_experts, ids.shape[1], hidden.shape[1], experts.down_proj.shape[2])
    none = hidden.new_empty(0, dtype=torch.float32)
    first, last = (Weights(Format.BF16, matrix.data, none) for matrix in (experts.gate_up_proj, experts.down_proj))
    act = Activation(limit=experts.limit) if hasattr(experts, "limit") else SWIGLU
    draw = Draw(hidden.contiguous(), ids.int().contiguous(), weights.float().contiguous())
    layer = Layer(shape, Format.BF16, first, last, act)
    return ours(layer, draw, launched(shape, Format.BF16, len(hidden)))
