"""What is the smallest DeepSeek-V4 that vLLM serves on a CPU?   Weights by chance, one token a byte, V4's own markers.

Each kind of its layers once: sliding window, CSA with its indexer, HCA; the first routes by a table of token ids. The
sizes in KERNELS are those that vLLM's kernels for CPUs take; what is said of `tiny` holds here too.
"""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from backends.encoding import ASSISTANT, BOS, DSML, END_THINK, EOS, TASKS, THINK, USER
from backends.shards import write
from tests.engines.tiny import CONTEXT, tokenizer

HIDDEN, HEADS, Q_RANK, O_RANK, O_GROUPS, STREAMS = 128, 4, 64, 64, 2, 4
EXPERTS, TOP_K, EXPERT, FEWER = 256, 6, 32, 4
HEAD, INDEX_HEAD, INDEX_HEADS = 512, 128, 64
RATIOS = [0, 4, 128]  # tokens that one entry of the layer's compressed cache stands for; 0: window alone
HASHED = 1
SPECIAL = [BOS, EOS, "<｜▁pad▁｜>"]
PLAIN = [USER, ASSISTANT, THINK, END_THINK, DSML, *TASKS.values()]
VOCABULARY = 256 + len(SPECIAL) + len(PLAIN)
SHARD = "model-00001-of-00001.safetensors"  # beside an index, as V4's are
KERNELS = {
    "head_dim": HEAD,
    "qk_rope_head_dim": 64,
    "index_head_dim": INDEX_HEAD,
    "index_n_heads": INDEX_HEADS,
    "index_topk": 512,
    "n_routed_experts": EXPERTS,
}
CONFIG: dict[str, Any] = KERNELS | {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "dtype": "bfloat16",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": len(RATIOS),
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "q_lora_rank": Q_RANK,
    "o_lora_rank": O_RANK,
    "o_groups": O_GROUPS,
    "compress_ratios": RATIOS,
    "sliding_window": 128,
    "num_hash_layers": HASHED,
    "num_experts_per_tok": TOP_K,
    "n_shared_experts": 1,
    "moe_intermediate_size": EXPERT,
    "topk_method": "noaux_tc",
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "hidden_act": "silu",
    "hc_mult": STREAMS,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0,
    "rope_scaling": {"rope_type": "default", "type": "default"},
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def pair(place: Path) -> tuple[Path, Path]:
    """Flash's model, converted to FEWER experts a token, and Pro's, in folders below `place`."""
    whole, fewer = make(place / "whole", seed=0), place / "flash"
    convert = [sys.executable, "-m", "gateway", "backends", "convert", str(whole), str(fewer)]
    subprocess.run([*convert, "--top-k", str(FEWER), "--shards", "own"], check=True, capture_output=True)
    return fewer, make(place / "pro", seed=1)


def make(place: Path, seed: int) -> Path:
    """The folder `place` with a checkpoint in it, its tensors named as DeepSeek names them; 24 MB."""
    place.mkdir(parents=True, exist_ok=True)
    told = {
        "config.json": CONFIG,
        "tokenizer.json": tokenizer(SPECIAL, PLAIN),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": SPECIAL[2],
            "model_max_length": CONTEXT,
        },
        "generation_config.json": {"eos_token_id": 257, "pad_token_id": 258},
        "model.safetensors.index.json": {"metadata": {}, "weight_map": dict.fromkeys(_shapes(), SHARD)},
    }
    for name, value in told.items():
        (place / name).write_text(json.dumps(value, ensure_ascii=False))
    chance = random.Random(seed)
    tensors = {name: _tensor(chance, name, shape) for name, shape in _shapes().items()}
    write(place / SHARD, tensors, {"format": "pt"})
    return place


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (VOCABULARY, HIDDEN), "head.weight": (VOCABULARY, HIDDEN),
              "norm.weight": (HIDDEN,), "hc_head_fn": (STREAMS, STREAMS * HIDDEN), "hc_head_base": (STREAMS,),
              "hc_head_scale": (1,)}  # fmt: skip
    for layer, ratio in enumerate(RATIOS):
        inside = {**_attention(ratio), **_experts(layer), **_streams("attn"), **_streams("ffn")}
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in inside.items()}
    return shapes


def _attention(ratio: int) -> dict[str, tuple[int, ...]]:
    shapes = {"wq_a.weight": (Q_RANK, HIDDEN), "q_norm.weight": (Q_RANK,), "wq_b.weight": (HEADS * HEAD, Q_RANK),
              "wkv.weight": (HEAD, HIDDEN), "kv_norm.weight": (HEAD,), "attn_sink": (HEADS,),
              "wo_a.weight": (O_GROUPS * O_RANK, HEADS * HEAD // O_GROUPS),
              "wo_b.weight": (HIDDEN, O_GROUPS * O_RANK)}  # fmt: skip
    if ratio:
        shapes |= _compressor("compressor", ratio, HEAD)
    if ratio == 4:
        shapes |= {"indexer.wq_b.weight": (INDEX_HEADS * INDEX_HEAD, Q_RANK),
                   "indexer.weights_proj.weight": (INDEX_HEADS, HIDDEN),
                   **_compressor("indexer.compressor", ratio, INDEX_HEAD)}  # fmt: skip
    return {f"attn.{name}": shape for name, shape in shapes.items()} | {"attn_norm.weight": (HIDDEN,)}


def _compressor(name: str, ratio: int, head: int) -> dict[str, tuple[int, ...]]:
    width = 2 * head if ratio == 4 else head  # CSA's windows overlap
    return {f"{name}.wkv.weight": (width, HIDDEN), f"{name}.wgate.weight": (width, HIDDEN),
            f"{name}.ape": (ratio, width), f"{name}.norm.weight": (head,)}  # fmt: skip


def _experts(layer: int) -> dict[str, tuple[int, ...]]:
    table = {"gate.tid2eid": (VOCABULARY, TOP_K)} if layer < HASHED else {"gate.bias": (EXPERTS,)}
    shapes = {"gate.weight": (EXPERTS, HIDDEN), **table}
    for expert in ("shared_experts", *(f"experts.{number}" for number in range(EXPERTS))):
        shapes |= {f"{expert}.{name}.weight": (EXPERT, HIDDEN) for name in ("w1", "w3")}
        shapes[f"{expert}.w2.weight"] = (HIDDEN, EXPERT)
    return {f"ffn.{name}": shape for name, shape in shapes.items()} | {"ffn_norm.weight": (HIDDEN,)}


def _streams(part: str) -> dict[str, tuple[int, ...]]:
    """How the residual streams are mixed into a part of a layer, and back: into, out of, and among them."""
    mixes = (2 + STREAMS) * STREAMS
    return {f"hc_{part}_fn": (mixes, STREAMS * HIDDEN), f"hc_{part}_base": (mixes,), f"hc_{part}_scale": (3,)}


def _tensor(chance: random.Random, name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    """Norms are ones, tables different experts a token, biases zeros or so, all else even numbers around 0."""
    if name.endswith("tid2eid"):
        rows = (chance.sample(range(EXPERTS), TOP_K) for _ in range(shape[0]))
        return "I32", shape, b"".join(struct.pack(f"<{TOP_K}i", *row) for row in rows)
    if "norm" in name:
        return "BF16", shape, struct.pack("<H", 0x3F80) * shape[0]
    if len(shape) == 1 or "hc_" in name or name.endswith("ape"):
        size = shape[0] * (shape[1] if len(shape) == 2 else 1)
        return "F32", shape, struct.pack(f"<{size}f", *(chance.uniform(-0.1, 0.1) for _ in range(size)))
    return "BF16", shape, _by_chance(chance, *shape)


def _by_chance(chance: random.Random, rows: int, columns: int) -> bytes:
    """Numbers of either sign in bfloat16, as large as keeps a product with so many columns at about its input."""
    size = rows * columns
    exponent = (127 - columns.bit_length() // 2) >> 1  # the upper seven of eight bits: the lowest is by chance
    signs = chance.randbytes(size).translate(bytes((byte & 0x80) | exponent for byte in range(256)))
    made = bytearray(2 * size)
    made[::2], made[1::2] = chance.randbytes(size), signs
    return bytes(made)
