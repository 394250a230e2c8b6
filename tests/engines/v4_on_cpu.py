"""What does vLLM 0.32 lack to run DeepSeek-V4 on a CPU?   A general plug-in of vLLM's, for the tests alone.

Its model, attention and experts have kernels for CPUs. What is computed before them, for each step, has not: with no
Triton for CPUs beside it the launch of a kernel ends in "'function' object is not subscriptable", and one dictionary
lacks two keys that its reader wants. And of 256 experts a token can be routed to 6 or 8 only ("unsupported routed_topk
4"). Here these are written in torch, for the one way V4 uses them on a CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router import cpu_router
from vllm.models.deepseek_v4.cpu.cpu_mla import DeepseekV4CPUSparseSWAMetadataBuilder as Builder
from vllm.triton_utils.dispatcher import _registry, register_kernels

MLA = "vllm.v1.attention.backends.mla"


def register() -> None:
    """Called by vLLM in each of its processes."""
    kernels = {
        "vllm.v1.attention.ops.metadata._token_request_mapping_kernel": requests_of_tokens,
        f"{MLA}.compressor_utils.CompressedSlotMappingKernel.kernel": compressed_slots,
        f"{MLA}.indexer.BuildPrefillChunkMetadataKernel.kernel": seen_by_tokens,
        # What these two write is read by the kernels of GPUs only.
        f"{MLA}.sparse_swa.ComputeSWAIndicesAndLensKernel.kernel": unread,
        f"{MLA}.sparse_swa.ComputePrefillMetadataKernel.kernel": unread,
    }
    if not kernels.keys() & _registry.keys():
        register_kernels(kernels)
        Builder.build_tile_scheduler = no_plan
        cpu_router._sqrtsoftplus_bias_topk = partial(routed, cpu_router._sqrtsoftplus_bias_topk)


def routed(kernel: Callable[..., Any], **asked: Any) -> Any:
    """Weights and ids [tokens, k]: by the kernel where it can; else of the table's experts, or the best ones."""
    top_k, table, bias = (asked[name] for name in ("top_k", "hash_indices_table", "e_score_correction_bias"))
    if top_k in (6, 8):
        return kernel(**asked)
    scores = torch.nn.functional.softplus(asked["router_logits"]).sqrt()
    ids = (scores + bias).topk(top_k).indices if table is None else table[asked["input_ids"]].long()
    weights = scores.gather(1, ids)
    return weights / weights.sum(1, keepdim=True) * asked["routed_scaling_factor"], ids.int()


def no_plan(_self: Any, _tokens: int) -> dict[str, None]:
    """A plan for the kernels of GPUs. 0.32 has it without the last two, whose reader looks for them."""
    return dict.fromkeys(("swaonly", "c4a", "c128a", "c1a", "c2a"))


def unread(*_inputs: Any, **_named: Any) -> None: ...


def requests_of_tokens(starts: Tensor, out: Tensor, _requests: int, mapped: int, tokens: int, **_: int) -> None:
    """The number of each token's request; 0 from `mapped` on."""
    out[:tokens] = 0
    found = torch.searchsorted(starts[1:], torch.arange(mapped, dtype=starts.dtype), right=True)
    out[:mapped] = found.clamp(max=len(starts) - 2)


def compressed_slots(
    out: Tensor, slots: Tensor, starts: Tensor, lengths: Tensor, table: Tensor, _stride: int, block: int, *rest: int
) -> None:
    """Where each token's compressed entry is written: the last of `ratio` tokens has a slot, the others have none."""
    _ranks, _interleave, ratio, pad, _ = rest
    for request, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        position = torch.arange(end - start) + int(lengths[request]) - (end - start)
        writes = ((position + 1) % ratio == 0) & (slots[start:end] != pad)
        entry = torch.where(writes, position // ratio, 0)
        out[start:end] = torch.where(writes, table[request, entry // block].long() * block + entry % block, pad)


def seen_by_tokens(
    starts: Tensor, lengths: Tensor, _entries: Tensor, rows: Tensor, requests: Tensor, *rest: Any
) -> None:
    """From where to where in its requests' compressed entries, one after the other, each token may look."""
    first, last, begin, stop, _rank, _ranks, _interleave, _block, ratio = rest
    for request, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        token = torch.arange(max(start, begin), min(end, stop))
        seen = (int(lengths[request]) - end + token + 1) // ratio
        first[token - begin] = rows[request]
        last[token - begin] = rows[request] + seen.int()
