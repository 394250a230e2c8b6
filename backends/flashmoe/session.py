"""How is a transformers model run so that each decode step reads few experts?

A session runs between the router and the experts of every MoE layer: it applies the policies, counts what was read, and
lets a guard compare. Prefill (more than one token a sequence) skips nothing: it is bound by compute, not by memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from backends.flashmoe.experts import Runner, install, layers, mix
from backends.flashmoe.guard import Guard, Terms, bound
from backends.flashmoe.policy import Policy, Routing, decide, per_expert, skip
from backends.flashmoe.predictor import Predictor


@dataclass(slots=True)
class Tally:
    """Counts of what one layer read."""

    steps: int = 0
    tokens: int = 0
    experts: int = 0  # distinct, summed over steps
    slots: int = 0  # kept

    def add(self, routing: Routing, keep: Tensor) -> None:
        """Counts one call; the routing's steps are those that are really computed together."""
        read = per_expert(routing, keep.float()) > 0
        self.steps += len(read)
        self.tokens += len(keep)
        self.experts += int(read.sum())
        self.slots += int(keep.sum())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is skipped, by policies in their order, and which implementation computes the rest."""

    policies: Sequence[Policy]
    predictor: Predictor | None = None  # without one a slot's worth is its router weight
    renormalise: bool = False  # scale the kept weights up to the sum of all, as a checkpoint of smaller k does
    batch_invariant: bool = False  # decide for each token by itself: what is skipped never depends on its batch
    kernels: str = "auto"  # one of the words that `running` takes


class Session:
    """Skipping for one model, from `open` to `close`."""

    def __init__(self, model: Any, plan: Plan, guard: Guard | None = None, *, lockstep: bool = False) -> None:
        """`lockstep`: a forward over sequences of T tokens is taken as T decode steps, the n-th tokens of all
        sequences forming one step. So a plan is measured by teacher forcing, without decoding."""
        self.model, self.plan, self.guard, self.lockstep = model, plan, guard, lockstep
        self.steps: Tensor | None = None  # [tokens of this forward]; None: prefill, nothing is skipped
        self.tallies = [Tally() for _ in layers(model)]
        self._mix = running(plan.kernels)
        self._hook: Any = None
        self._before = ""  # the experts implementation that `close` puts back

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        self._before = self.model.config._experts_implementation
        found = layers(self.model)
        install(self.model, [self._runner(index) for index in range(len(found))])
        self._hook = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)

    def close(self) -> None:
        install(self.model, [None] * len(self.tallies))
        self.model.set_experts_implementation(self._before)
        self._hook.remove()

    def _begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        asked = ids if ids is not None else kwargs["inputs_embeds"]
        sequences, length = asked.shape[:2]
        decoding = length == 1 or self.lockstep
        self.steps = torch.arange(length, device=asked.device).repeat(sequences) if decoding else None
        if self.guard and decoding:
            self.guard.begin(length)

    def _runner(self, layer: int) -> Any:
        def run(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            guard = self.guard
            if self.steps is None or not self.plan.policies or (guard and guard.exact and not guard.looking):
                return self._mix(experts, hidden, ids, weights)
            routing = self.routing(layer, experts.num_experts, hidden, (ids, weights))
            keep = decide(routing, self.policies)
            skipped = self._mix(experts, hidden, *skip(routing, keep, self.plan.renormalise))
            if guard and guard.looking:
                whole = self._mix(experts, hidden, ids, weights)
                guard.look(layer, skipped, whole)
                if guard.exact:
                    return whole
            self.tallies[layer].add(replace(routing, step=self.steps), keep)
            return skipped

        return run

    @property
    def policies(self) -> Sequence[Policy]:
        """The plan's policies, eased to the guard's pressure."""
        pressure = self.guard.pressure if self.guard else 1.0
        return self.plan.policies if pressure == 1 else [policy.eased(pressure) for policy in self.plan.policies]

    def routing(self, layer: int, experts: int, hidden: Tensor, asked: tuple[Tensor, Tensor]) -> Routing:
        """The router's output `asked`, ids and weights [N, k], with each slot's worth and step."""
        ids, weights = asked
        worth = self.plan.predictor.worth(layer, hidden, ids, weights) if self.plan.predictor else weights.float()
        steps = torch.arange(len(ids), device=ids.device) if self.plan.batch_invariant else self.steps
        return Routing(layer, experts, ids, weights, worth.detach(), steps)

    @torch.no_grad()
    def audit(self, ids: Tensor) -> float:
        """KL divergence of the model's output distribution from the one without skipping, nats a token, on ids [B, T]
        taken as T decode steps. The guard is told.

        Runs two forwards without the KV cache, so it is for a small part of the traffic.
        """
        guard, lockstep, plan, logits = self.guard, self.lockstep, self.plan, []
        self.guard, self.lockstep = None, True
        try:
            for self.plan in (replace(plan, policies=()), plan):
                logits.append(self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1).log_softmax(-1))
        finally:
            self.guard, self.lockstep, self.plan = guard, lockstep, plan
        apart = functional.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean").item()
        if guard:
            guard.watch("kl", apart)
        return apart

    @property
    def distinct(self) -> float:
        """Mean number of distinct experts read in a layer and step."""
        return sum(tally.experts for tally in self.tallies) / max(1, sum(tally.steps for tally in self.tallies))

    @property
    def kept(self) -> float:
        """Mean number of slots kept of a token in a layer."""
        return sum(tally.slots for tally in self.tallies) / max(1, sum(tally.tokens for tally in self.tallies))


def running(kernels: str) -> Runner:
    """The runner by its name: `torch`, a loop over experts; `triton`, our kernels; `auto`, the kernels where they can.

    Raises ValueError for another name, and for `triton` without Triton.
    """
    if kernels not in {"auto", "torch", "triton"}:
        raise ValueError(f"kernels are auto, torch or triton, not {kernels}")
    there = find_spec("triton") is not None
    if kernels == "triton" and not there:
        raise ValueError("kernels=triton needs Triton: pip install triton")
    if kernels == "torch" or not there:
        return mix
    from backends.flashmoe import fused  # noqa: PLC0415 - Triton is an extra

    return fused.mix if kernels == "triton" else fused.mix_where_fit


@torch.no_grad()
def decode(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """Decodes ids [B, T] step by step with the KV cache, teacher-forced: the logits [B, V] of each step."""
    cache = DynamicCache(config=model.config)
    for step in ids.split(1, dim=1):
        yield model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1]


def calibrated(model: Any, plan: Plan, ids: Tensor) -> Guard:
    """A guard for a plan, with bounds from decoding ids [B, T]; the text should be like that of the traffic.

    A layer's bound is on its relative error in a step (`distance`), that of `kl` on `Session.audit` of 32 tokens.
    Raises ValueError for T of up to 32: a bound needs two values.
    """
    terms = Terms()
    probe = Guard({}, Terms(every=1, smooth=1.0))
    seen: dict[str, list[float]] = {}
    with Session(model, plan, probe) as session:
        for _ in decode(model, ids):
            for gauge, value in probe.means.items():
                seen.setdefault(gauge, []).append(value)
        session.guard = None
        seen["kl"] = [session.audit(part) for part in ids.split(32, dim=1)]
    return Guard({gauge: bound(torch.tensor(values), terms.smooth) for gauge, values in seen.items()}, terms)
