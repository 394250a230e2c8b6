"""Which MoE layers of a transformers model can our Triton kernels compute, and how?

The kernels read the model's own bf16 tensors, without a copy. Matrices of classes that store them transposed are put
into row-major order once, in place.
"""

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from backends.flashmoe import experts as loop
from backends.flashmoe.kernels.align import align
from backends.flashmoe.kernels.devices import Device, known
from backends.flashmoe.kernels.down import down
from backends.flashmoe.kernels.gate_up import SWIGLU, Activation, activated, gate_up
from backends.flashmoe.kernels.launch import Format, Launch, Shape
from backends.flashmoe.kernels.weights import INTERPRETED, Weights

OLDEST = 80  # the first compute capability, times ten, with bf16 tensor cores and asynchronous copies
INTERPRETER = Device(OLDEST, processors=1, shared=0, measured={})
AT_ONCE = 8192  # tokens of one launch; partial products take four bytes for each slot and hidden unit
PROBED = 64  # points of gate and up at which an activation is compared


def mix(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """As `experts.mix`, by the kernels, in chunks of `at_once` tokens. Raises ValueError when they cannot run this
    layer."""
    wrong = unfit(experts, hidden, weights)
    if wrong:
        raise ValueError(f"the kernels cannot run this layer: {wrong}")
    if not len(ids):
        return torch.empty_like(hidden)
    parts = zip(*(tensor.split(at_once) for tensor in (hidden, ids, weights)), strict=True)
    answers = [_run(experts, *part) for part in parts]
    return answers[0] if len(answers) == 1 else torch.cat(answers)


def mix_where_fit(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """As `experts.mix`: by the kernels on CUDA where they can, else in torch."""
    fit = hidden.is_cuda and not unfit(experts, hidden, weights)
    return (mix if fit else loop.mix)(experts, hidden, ids, weights)


def unfit(experts: Any, hidden: Tensor, weights: Tensor) -> str:
    """Why the kernels cannot run this module of experts on these tokens; "" if they can."""
    if not INTERPRETED and (
        not hidden.is_cuda or torch.version.hip or _device(hidden.get_device()).capability < OLDEST
    ):
        return f"they need CUDA with compute capability {OLDEST / 10}"
    if torch.is_grad_enabled() and any(part.requires_grad for part in (hidden, weights, *experts.parameters())):
        return "they give no gradients, so run it under torch.no_grad()"
    normed = getattr(experts, "has_post_expert_norm", False)  # not in 5.17
    if not experts.has_gate or normed or _activation(experts) is None:
        return "its activation is none of theirs"
    if {hidden.dtype, experts.gate_up_proj.dtype, experts.down_proj.dtype} != {torch.bfloat16}:
        return "they take torch.bfloat16 only"
    try:
        _launch(hidden.get_device(), _shape(experts, weights.shape[1]), 1)
    except ValueError as error:
        return str(error)
    return ""


def _run(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    launch = _launch(hidden.get_device(), _shape(experts, ids.shape[1]), len(ids))
    asked, share = ids.int().contiguous(), weights.float().contiguous()
    blocks = align(asked, experts.num_experts, launch.down.rows)
    first, last, act = _matrix(experts, "gate_up_proj"), _matrix(experts, "down_proj"), _activation(experts)
    inner = gate_up(hidden.contiguous(), first, blocks, act or SWIGLU, launch.gate_up, launch.programs)
    return down(inner, last, asked, share, blocks, launch.down, launch.programs)


def _shape(experts: Any, top: int) -> Shape:
    count, one, other = experts.down_proj.shape
    hidden, inner = (other, one) if experts.is_transposed else (one, other)
    return Shape(count, top, hidden, inner)


def _matrix(experts: Any, name: str) -> Weights:
    """The module's parameter `name` as row-major weights."""
    parameter = getattr(experts, name)
    if experts.is_transposed and not parameter.transpose(1, 2).is_contiguous():
        parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
    rows = parameter.transpose(1, 2) if experts.is_transposed else parameter
    bias = getattr(experts, f"{name}_bias").detach() if experts.has_bias else None
    return Weights(Format.BF16, rows.detach(), rows.new_empty(0, dtype=torch.float32), bias)


def _activation(experts: Any) -> Activation | None:
    """The kernels' activation that equals the module's own at the probed points; None if none does. Found once and
    kept on the module."""
    if not hasattr(experts, "flash_activation"):
        limit, alpha = getattr(experts, "limit", None) or 0.0, getattr(experts, "alpha", 1.0)
        ours = [SWIGLU, Activation(limit), Activation(limit, alpha, shift=1.0, interleaved=True)]
        both = torch.linspace(-2, 2, PROBED).outer(torch.tensor([1.0, 0.3, -1.0])).flatten()[:, None]
        both = (both + both.T).fmod(4) * max(limit, 1.0)
        theirs = experts._apply_gate(both)
        same = (act for act in ours if torch.allclose(activated(both, act), theirs, rtol=1e-4, atol=1e-4))
        experts.flash_activation = next(same, None)
    return experts.flash_activation


@cache
def _device(index: int) -> Device:
    """The GPU of that index; -1: the CPU, where Triton's interpreter runs."""
    if index < 0:
        return INTERPRETER
    facts = torch.cuda.get_device_properties(index)
    capability = 10 * facts.major + facts.minor
    computed = Device(capability, facts.multi_processor_count, facts.shared_memory_per_multiprocessor, {})
    return known(facts.name) or computed


@lru_cache(maxsize=4096)
def _launch(index: int, shape: Shape, tokens: int) -> Launch:
    return _device(index).launch(shape, Format.BF16, tokens)
