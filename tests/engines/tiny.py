"""What is the smallest model that a real engine serves?   Qwen3-MoE, weights by chance, one token a byte.

By the standard library alone: config.json, tokenizer.json with a chat template, model.safetensors in bfloat16. What it
says means nothing; what the engine does around it is what it does for trained weights.
"""

import json
import random
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD = 256, 2, 4, 2, 64
EXPERTS, TOP_K, EXPERT = 8, 2, 128
CONTEXT = 16_384
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PLAIN = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]  # parsers see them
TEMPLATE = """\
{%- if tools %}<|im_start|>system
Tools: {{ tools | tojson }}<|im_end|>
{% endif -%}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{{ m.content | tojson }}{% endif -%}
{% if m.tool_calls %}<tool_call>{{ m.tool_calls | tojson }}</tool_call>{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif -%}
"""
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "moe_intermediate_size": EXPERT,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "bos_token_id": None,
    "eos_token_id": 258,
}


def pair(place: Path) -> tuple[Path, Path]:
    """Flash's model and Pro's, in folders below `place`."""
    return make(place / "flash", seed=0), make(place / "pro", seed=1)


def make(place: Path, seed: int) -> Path:
    """The folder `place` with a model in it, about 5 MB."""
    place.mkdir(parents=True, exist_ok=True)
    names = [*letters().values(), *SPECIAL, *PLAIN]
    _write(place / "config.json", CONFIG | {"vocab_size": len(names)})
    _write(place / "tokenizer.json", tokenizer(SPECIAL, PLAIN))
    _write(place / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
        "chat_template": TEMPLATE,
    })  # fmt: skip
    _write(place / "generation_config.json", {"eos_token_id": [258, 256], "pad_token_id": 256})
    _weights(place / "model.safetensors", random.Random(seed), len(names))
    return place


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False))


def letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def tokenizer(special: Sequence[str], plain: Sequence[str]) -> dict[str, Any]:
    """A byte-level BPE without a merge: ids 0 to 255 are bytes, then come the `special` tokens and the `plain` ones."""
    known = list(letters().values())
    added = [*special, *plain]
    vocabulary = {letter: n for n, letter in enumerate(known)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(known) + n, "content": text, "special": text in special, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for n, text in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocabulary, "merges": []},
    }  # fmt: skip


def _weights(file: Path, chance: random.Random, vocabulary: int) -> None:
    """model.safetensors: a length, a JSON header, the numbers one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    at = 0
    for name, shape in _shapes(vocabulary).items():
        part = _ones(shape[0]) if len(shape) == 1 else by_chance(chance, *shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(part)]}
        at += len(part)
        parts.append(part)
    head = json.dumps(header).encode()
    file.write_bytes(b"".join((struct.pack("<Q", len(head)), head, *parts)))


def _shapes(vocabulary: int) -> dict[str, list[int]]:
    shapes = {"model.embed_tokens.weight": [vocabulary, HIDDEN], "model.norm.weight": [HIDDEN],
              "lm_head.weight": [vocabulary, HIDDEN]}  # fmt: skip
    for layer in range(LAYERS):
        inside = {"input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN],
                  "self_attn.q_norm": [HEAD], "self_attn.k_norm": [HEAD],
                  "self_attn.q_proj": [HEADS * HEAD, HIDDEN], "self_attn.k_proj": [KV_HEADS * HEAD, HIDDEN],
                  "self_attn.v_proj": [KV_HEADS * HEAD, HIDDEN], "self_attn.o_proj": [HIDDEN, HEADS * HEAD],
                  "mlp.gate": [EXPERTS, HIDDEN]}  # fmt: skip
        for expert in range(EXPERTS):
            inside |= {f"mlp.experts.{expert}.{name}_proj": [EXPERT, HIDDEN] for name in ("gate", "up")}
            inside[f"mlp.experts.{expert}.down_proj"] = [HIDDEN, EXPERT]
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return shapes


def _ones(count: int) -> bytes:
    return struct.pack("<H", 0x3F80) * count


def by_chance(chance: random.Random, rows: int, columns: int) -> bytes:
    """Even numbers around 0, in bfloat16: the upper half of each float."""
    most = (3.0 / columns) ** 0.5
    whole = array("f", (chance.uniform(-most, most) for _ in range(rows * columns))).tobytes()
    half = bytearray(len(whole) // 2)
    half[::2], half[1::2] = whole[2::4], whole[3::4]
    return bytes(half)
