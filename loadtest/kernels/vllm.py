"""vLLM's Triton kernel on the same tensors, where it is there: installed, or its `fused_moe.py` in a folder.

Only the kernel and its rules for tiles are taken out of that file, so neither vLLM nor what it needs is imported. It is
somebody else's code: it is read where it lies and never becomes part of this repository. Its list of blocks is made
beforehand (vLLM's own takes its C++), which favours it; between its two products stands a kernel as lean as its own.
"""

import ast
import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from backends.flashmoe.kernels.align import align
from loadtest.kernels.clock import Call
from loadtest.kernels.layers import Draw, Layer

KERNEL, RULES, HELPS = "fused_moe_kernel", "get_default_config", "write_zeros_to_output"
WIDTH = 1024  # values that a program of the activation takes
NAIVE = 4  # times fewer slots than experts: then each slot is a block, and no list is needed


class Unfit(ValueError):
    """Raised when a rival cannot be compared; the message says why."""


@triton.jit
def act_kernel(both, inner, LIMIT: tl.constexpr, INNER: tl.constexpr, WIDTH: tl.constexpr):
    """silu(gate) * up of rows [gate, up], cut at LIMIT unless that is 0."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    real = column < INNER
    gate = tl.load(both + row * 2 * INNER + column, mask=real, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * INNER + INNER + column, mask=real, other=0.0).to(tl.float32)
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    tl.store(inner + row * INNER + column, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=real)


class Vllm:
    """The kernel, found once."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder or _installed()
        self.kernel: Any = None
        self.rules: Callable[..., dict[str, int]] | None = None

    def prepared(self, layer: Layer, batch: int) -> Callable[[Draw], Call]:
        """Raises Unfit where it is not there, or has become something else than this knows."""
        if self.kernel is None:
            self._find()
        config = self._config(layer, batch)

        def prepare(draw: Draw) -> Call:
            work = _work(draw, layer.shape.experts, config)
            return lambda: self._run(layer, draw, work)

        return prepare

    def _find(self) -> None:
        file = self.folder / "fused_moe.py" if self.folder else None
        if file is None or not file.exists():
            raise Unfit("vLLM is not there")
        source = file.read_text()
        parts = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        if not {KERNEL, RULES, HELPS} <= parts.keys():
            raise Unfit("this vLLM's fused_moe.py has another kernel")
        lines = source.splitlines()
        texts = (_text(lines, parts[name]) for name in (HELPS, KERNEL))
        made = Path(tempfile.mkdtemp()) / "rival.py"  # a file, because Triton reads the source of what it compiles
        made.write_text("import triton\nimport triton.language as tl\n\n\n" + "\n\n\n".join(texts) + "\n")
        spec = importlib.util.spec_from_file_location("rival", made)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        names: dict[str, Any] = {"envs": SimpleNamespace(VLLM_BATCH_INVARIANT=False)}
        names["current_platform"] = SimpleNamespace(is_rocm=lambda: False)
        exec(_text(lines, parts[RULES]), names)  # vLLM's own code, as if it were imported
        self.kernel, self.rules = getattr(found, KERNEL), names[RULES]

    def _config(self, layer: Layer, batch: int) -> dict[str, int]:
        """vLLM's tuned tiles for an H200 if it has some for the shape, else by its heuristics."""
        shape = layer.shape
        tuned = Path(self.folder or ".") / "configs" / f"E={shape.experts},N={shape.inner},device_name=NVIDIA_H200.json"
        if tuned.exists():
            found = {int(size): one for size, one in json.loads(tuned.read_text()).items() if size.isdigit()}
            return {"SPLIT_K": 1} | found[min(found, key=lambda size: abs(size - batch))]
        assert self.rules is not None
        return {"SPLIT_K": 1} | self.rules(batch, shape.experts, shape.inner, shape.hidden, shape.top, None)

    def _run(self, layer: Layer, draw: Draw, work: "Work") -> Tensor:
        (tokens, top), shape = draw.ids.shape, layer.shape
        both = draw.hidden.new_empty(tokens * top, 2 * shape.inner)
        self._product(work, draw.hidden, layer.up.data, both, top)
        inner = draw.hidden.new_empty(tokens * top, shape.inner)
        limit = layer.act.limit
        act_kernel[(tokens * top, triton.cdiv(shape.inner, WIDTH))](both, inner, limit, shape.inner, WIDTH)
        out = draw.hidden.new_empty(tokens * top, shape.hidden)
        self._product(work, inner, layer.down.data, out, 1)
        return out.view(tokens, top, -1).sum(1)

    def _product(self, work: "Work", a: Tensor, b: Tensor, c: Tensor, top: int) -> None:
        """c [slots, N] = rows of a times each slot's expert of b [E, N, K]; weighted where a has a row a slot."""
        values = {
            "a_ptr": a, "b_ptr": b, "c_ptr": c, "b_bias_ptr": None, "a_scale_ptr": None, "b_scale_ptr": None,
            "topk_weights_ptr": work.share, "sorted_token_ids_ptr": work.slots, "expert_ids_ptr": work.experts,
            "num_tokens_post_padded_ptr": work.padded, "N": b.shape[1], "K": b.shape[2], "EM": work.most,
            "num_valid_tokens": len(c), "stride_am": a.stride(0), "stride_ak": a.stride(1),
            "stride_be": b.stride(0), "stride_bk": b.stride(2), "stride_bn": b.stride(1),
            "stride_cm": c.stride(0), "stride_cn": c.stride(1), "naive_block_assignment": work.slots is None,
            "MUL_ROUTED_WEIGHT": top == 1, "top_k": top, "compute_type": tl.bfloat16,
        }  # fmt: skip
        rows, columns = work.config["BLOCK_SIZE_M"], work.config["BLOCK_SIZE_N"]
        grid = (triton.cdiv(work.most, rows) * triton.cdiv(b.shape[1], columns),)
        given = values | work.config
        given |= {name: 0 for name in self.kernel.arg_names if name not in given and name != "USE_TD"}  # of no format
        self.kernel[grid](**given)


@dataclass(frozen=True, slots=True)
class Work:
    """Its list: slots by expert in blocks of as many rows as its tile has, each filled up with the number of slots.

    Without `slots` each slot is a block. `most`: rows that the launch has room for.
    """

    config: dict[str, int]
    share: Tensor
    slots: Tensor | None
    experts: Tensor
    padded: Tensor
    most: int


def _work(draw: Draw, experts: int, config: dict[str, int]) -> Work:
    pairs, rows = draw.ids.numel(), config["BLOCK_SIZE_M"]
    if pairs * NAIVE <= experts:
        padded = torch.tensor([pairs * rows], dtype=torch.int32, device=draw.ids.device)
        return Work(config, draw.share, None, draw.ids.reshape(-1), padded, pairs * rows)
    found = align(draw.ids, experts, rows)
    slots = found.slots.masked_fill(found.slots < 0, pairs).reshape(-1)
    most = min(slots.numel(), pairs * rows) if len(draw.ids) < rows else slots.numel()
    return Work(config, draw.share, slots, found.expert, (found.work[:1] * rows).int(), most)


def _text(lines: list[str], node: ast.FunctionDef) -> str:
    """The function's own lines, with its decorators."""
    start = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return "\n".join(lines[start - 1 : node.end_lineno])


def _installed() -> Path | None:
    spec = importlib.util.find_spec("vllm")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "model_executor" / "layers" / "fused_moe" if places else None
