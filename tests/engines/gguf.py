"""How does the tiny model look to llama.cpp?   The same Qwen3-MoE, weights by chance, in one GGUF file of about 6 MB.

By the standard library alone: a header, typed keys, the tensors' shapes, then their numbers. Layout and names are those
of the GGUF specification, version 3.
"""

import random
import struct
from pathlib import Path
from typing import Any, NamedTuple

from tests.engines.tiny import (
    CONFIG,
    CONTEXT,
    EXPERT,
    EXPERTS,
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    PLAIN,
    SPECIAL,
    TEMPLATE,
    TOP_K,
    by_chance,
    letters,
)  # fmt: skip

# A call in a form that llama.cpp finds out from the template.
CALLS = (
    '{% for c in m.tool_calls %}<tool_call>\n{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
# The model's habits, without which grammars would end nowhere: how much it likes a token, since llama.cpp's grammars
# allow blanks without end and any text before a call, and that it says the line's end after the start of a call.
CALL, LINE = "<tool_call>", letters()[ord("\n")]
BLANKS = (letters()[byte] for byte in b" \t\r\n`")
LIKES = {CALL: 0.3, "s": 0.25, "c": 0.24} | dict.fromkeys(BLANKS, -1.0)
LOUD = 32.0  # an embedding's other numbers come to 1 together, what the layers add to some 20
ALIGNMENT = 32
F32, BF16 = 0, 30  # types of tensors
U32, I32, FLOAT, STRING, ARRAY = 4, 5, 6, 8, 9  # types of keys
NORMAL, CONTROL, USER = 1, 3, 4  # types of tokens
ARCH = "qwen3moe"


class Tensor(NamedTuple):
    """`shape` from the innermost dimension on."""

    name: str
    kind: int
    shape: tuple[int, ...]
    data: bytes


def make(file: Path, seed: int) -> Path:
    """The file, written."""
    tokens = [*letters().values(), *SPECIAL, *PLAIN]
    keys = _keys(tokens)
    tensors = _tensors(random.Random(seed), tokens)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys)) + b"".join(keys)
    at, parts = 0, []
    for one in tensors:
        shape = struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape)
        head += _string(one.name) + shape + struct.pack("<IQ", one.kind, at)
        parts.append(_padded(one.data))
        at += len(parts[-1])
    file.write_bytes(b"".join((_padded(head), *parts)))
    return file


def _keys(tokens: list[str]) -> list[bytes]:
    sizes = {
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "block_count": LAYERS,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "expert_count": EXPERTS,
        "expert_used_count": TOP_K,
        "expert_feed_forward_length": EXPERT,
    }
    rates = {"rope.freq_base": CONFIG["rope_theta"], "attention.layer_norm_rms_epsilon": CONFIG["rms_norm_eps"]}
    kinds = [CONTROL if token in SPECIAL else USER if token in PLAIN else NORMAL for token in tokens]
    template = TEMPLATE.replace("<tool_call>{{ m.tool_calls | tojson }}</tool_call>", CALLS)
    end, padding = tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")
    return [
        _key("general.architecture", STRING, ARCH),
        *(_key(f"{ARCH}.{name}", U32, size) for name, size in sizes.items()),
        *(_key(f"{ARCH}.{name}", FLOAT, rate) for name, rate in rates.items()),
        _key("tokenizer.ggml.model", STRING, "gpt2"),
        _key("tokenizer.ggml.pre", STRING, "default"),
        _key("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        _key("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        _key("tokenizer.ggml.merges", ARRAY, (STRING, [])),
        _key("tokenizer.ggml.eos_token_id", U32, end),
        _key("tokenizer.ggml.padding_token_id", U32, padding),
        _key("tokenizer.chat_template", STRING, template),
    ]


def _key(name: str, kind: int, value: Any) -> bytes:
    return _string(name) + struct.pack("<I", kind) + _value(kind, value)


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_value(inner, one) for one in values)
    return struct.pack({U32: "<I", I32: "<i", FLOAT: "<f"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def _tensors(chance: random.Random, tokens: list[str]) -> list[Tensor]:
    found = _ends(chance, tokens)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN, "attn_q_norm": HEAD, "attn_k_norm": HEAD}
        found += [_norm(f"{block}.{name}", size) for name, size in norms.items()]
        matrices = {"attn_q": (HIDDEN, HEADS * HEAD), "attn_k": (HIDDEN, KV_HEADS * HEAD),
                    "attn_v": (HIDDEN, KV_HEADS * HEAD), "attn_output": (HEADS * HEAD, HIDDEN),
                    "ffn_gate_inp": (HIDDEN, EXPERTS), "ffn_gate_exps": (HIDDEN, EXPERT, EXPERTS),
                    "ffn_up_exps": (HIDDEN, EXPERT, EXPERTS), "ffn_down_exps": (EXPERT, HIDDEN, EXPERTS)}  # fmt: skip
        found += [_matrix(f"{block}.{name}", chance, *shape) for name, shape in matrices.items()]
    return found


def _ends(chance: random.Random, tokens: list[str]) -> list[Tensor]:
    """What reads tokens and what says them. Habits are written where embeddings are loud: the first number of all, the
    second one of CALL."""
    first, last = (_matrix(name, chance, HIDDEN, len(tokens)) for name in ("token_embd", "output"))
    read, said = bytearray(first.data), bytearray(last.data)
    for row, token in enumerate(tokens):
        _put(read, row, 0, LOUD)
        _put(said, row, 0, LIKES.get(token, 0.0))
    _put(read, tokens.index(CALL), 1, LOUD)
    _put(said, tokens.index(LINE), 1, 2.0)
    return [first._replace(data=bytes(read)), _norm("output_norm", HIDDEN), last._replace(data=bytes(said))]


def _put(matrix: bytearray, row: int, column: int, value: float) -> None:
    """In bfloat16: the upper half of a float."""
    at = 2 * (HIDDEN * row + column)
    matrix[at : at + 2] = struct.pack("<f", value)[2:]


def _norm(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", F32, (size,), struct.pack("<f", 1.0) * size)


def _matrix(name: str, chance: random.Random, columns: int, rows: int, stack: int = 1) -> Tensor:
    shape = (columns, rows, stack) if stack > 1 else (columns, rows)
    return Tensor(f"{name}.weight", BF16, shape, by_chance(chance, rows * stack, columns))
