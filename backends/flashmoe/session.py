"""How is a model run so that each decode step reads few experts?

A session stands between the router and the experts of every layer. It decides by its policies, counts what was read,
and lets a guard look. Prompts (more than one token a sequence) are run whole: their time is arithmetic, not reading.
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
    """What one layer read."""

    steps: int = 0
    tokens: int = 0
    experts: int = 0  # distinct, summed over steps
    slots: int = 0

    def add(self, routing: Routing, keep: Tensor) -> None:
        """Counts one call; the routing's steps are those that are really computed together."""
        read = per_expert(routing, keep.float()) > 0
        self.steps += len(read)
        self.tokens += len(keep)
        self.experts += int(read.sum())
        self.slots += int(keep.sum())


@dataclass(frozen=True, slots=True)
class Plan:
    """What is skipped, by policies in their order, and what runs the rest."""

    policies: Sequence[Policy]
    predictor: Predictor | None = None  # without one a slot is worth its weight
    renormalise: bool = False  # the kept weights up to the sum of all, as a checkpoint of smaller k does it
    batch_invariant: bool = False  # each token is a step of its own: what is skipped never depends on its batch
    kernels: str = "auto"  # as `running`


class Session:
    """Skipping for one model, from `open` to `close`."""

    def __init__(self, model: Any, plan: Plan, guard: Guard | None = None, *, lockstep: bool = False) -> None:
        """`lockstep`: sequences of many tokens are taken as so many decode steps, the n-th tokens of all sequences
        being one step. That is how a plan is measured without decoding."""
        self.model, self.plan, self.guard, self.lockstep = model, plan, guard, lockstep
        self.steps: Tensor | None = None  # of the tokens of this forward; None: nothing is skipped
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
        """The plan's, as far as the guard lets them."""
        pressure = self.guard.pressure if self.guard else 1.0
        return self.plan.policies if pressure == 1 else [policy.eased(pressure) for policy in self.plan.policies]

    def routing(self, layer: int, experts: int, hidden: Tensor, asked: tuple[Tensor, Tensor]) -> Routing:
        """What is known of the tokens before an expert is read."""
        ids, weights = asked
        worth = self.plan.predictor.worth(layer, hidden, ids, weights) if self.plan.predictor else weights.float()
        steps = torch.arange(len(ids), device=ids.device) if self.plan.batch_invariant else self.steps
        return Routing(layer, experts, ids, weights, worth.detach(), steps)

    @torch.no_grad()
    def audit(self, ids: Tensor) -> float:
        """How far the final answer is from the whole model's, on ids [B, T] taken as T decode steps: nats a token.

        Runs the model twice without its cache, so it is for a small part of the traffic. The guard is told.
        """
        guard, lockstep, logits = self.guard, self.lockstep, []
        self.guard = None
        try:
            for self.lockstep in (False, True):
                logits.append(self.model(input_ids=ids, use_cache=False).logits.flatten(0, 1).log_softmax(-1))
        finally:
            self.guard, self.lockstep = guard, lockstep
        apart = functional.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean").item()
        if guard:
            guard.watch("kl", apart)
        return apart

    @property
    def distinct(self) -> float:
        """Distinct experts read in a layer and step, on average."""
        return sum(tally.experts for tally in self.tallies) / max(1, sum(tally.steps for tally in self.tallies))

    @property
    def kept(self) -> float:
        """Experts kept of each token, on average."""
        return sum(tally.slots for tally in self.tallies) / max(1, sum(tally.tokens for tally in self.tallies))


def running(kernels: str) -> Runner:
    """What runs layers: `torch`, a product for each expert; `triton`, our kernels; `auto`, these where they can.

    ValueError: another word, or `triton` without Triton.
    """
    if kernels not in {"auto", "torch", "triton"}:
        raise ValueError(f"kernels are auto, torch or triton, not {kernels}")
    there = find_spec("triton") is not None
    if kernels == "triton" and not there:
        raise ValueError("kernels=triton needs Triton: pip install 'tiergate[kernels]'")
    if kernels == "torch" or not there:
        return mix
    from backends.flashmoe import fused  # noqa: PLC0415 - Triton is an extra

    return fused.mix if kernels == "triton" else fused.mix_where_fit


@torch.no_grad()
def decode(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """Feeds ids [B, T] one step at a time, with the cache: the logits [B, V] of each step."""
    cache = DynamicCache(config=model.config)
    for step in ids.split(1, dim=1):
        yield model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1]


def calibrated(model: Any, plan: Plan, ids: Tensor) -> Guard:
    """A guard for a plan, its bounds found by decoding ids [B, T]: text like that which it will see.

    A layer's bound is on its error a step, the final answer's (`kl`) on `Session.audit` of 32 tokens.
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
