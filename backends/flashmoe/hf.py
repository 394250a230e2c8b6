"""How does a user of transformers load a model that skips experts?

    model = FlashMoEForCausalLM.from_pretrained("path", predictor_weights="predictor.safetensors", budget=0.1)

Returns the model in its own transformers class, with an open session as `model.flash`. Works for every class with an
experts implementation that can be chosen by name: DeepSeek-V4, Qwen3-MoE, Mixtral, gpt-oss and others.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from backends.flashmoe.experts import layers
from backends.flashmoe.policy import Piggyback, Policy, Price, TopK, named, written
from backends.flashmoe.predictor import Predictor, load
from backends.flashmoe.session import Plan, Session

KEPT, WEIGHTS = "flashmoe.json", "predictor.safetensors"  # beside a saved model: how it skips


class FlashMoEForCausalLM:
    """Loads and saves causal language models that skip experts."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        use_flash: bool = True,
        predictor_weights: str | Path | None = None,
        policy: Sequence[Policy] | None = None,
        budget: float | None = None,
        **options: Any,
    ) -> Any:
        """The model `name`, skipping by `policy`, or by the `Price` that costs at most `budget` perplexity.

        `budget` needs a predictor whose card has a price for it. Without `policy` and `budget`, the policy that was
        saved with the model is taken, else half of top_k with piggyback. Of `options`, `batch_invariant=True` makes
        what a token skips independent of the tokens decoded with it; `kernels` is "torch", "triton" or "auto" (Triton
        on CUDA for layers it can run). The others are transformers' own. Raises ValueError for a predictor of another
        model and for a budget without a price, OSError where `predictor_weights` is no file.
        """
        invariant, kernels = options.pop("batch_invariant", None), options.pop("kernels", "auto")
        model = AutoModelForCausalLM.from_pretrained(name, **options)
        if not use_flash:
            return model
        kept = _kept(Path(name))
        beside = Path(name) / WEIGHTS
        weights = predictor_weights or (beside if kept and beside.exists() else None)
        predictor = load(weights) if weights else None
        _check(model, predictor)
        if budget is not None:
            policy = [Price(price_for(predictor.card if predictor else {}, budget))]
        if policy is None:
            policy = [named(entry) for entry in kept["policy"]] if kept else default(model)
        invariant = kept.get("batch_invariant", False) if invariant is None else invariant
        model.flash = Session(model, Plan(policy, predictor, batch_invariant=invariant, kernels=kernels))
        model.flash.open()
        return model

    @staticmethod
    def save(model: Any, path: str | Path) -> None:
        """Writes the model, its predictor and its policy, so that `from_pretrained(path)` loads the same again."""
        path, session = Path(path), model.flash
        session.close()  # so that the saved configuration is one that transformers alone can load
        model.save_pretrained(path)
        session.open()
        if session.plan.predictor:
            session.plan.predictor.save(path / WEIGHTS)
        kept = {
            "policy": [written(policy) for policy in session.plan.policies],
            "batch_invariant": session.plan.batch_invariant,
        }
        (path / KEPT).write_text(json.dumps(kept, indent=1))


def default(model: Any) -> list[Policy]:
    """The policy if none is given: half of top_k, and slots whose experts other tokens of the step keep."""
    config = model.config.get_text_config()
    return [TopK(max(1, config.num_experts_per_tok // 2)), Piggyback()]


def price_for(card: dict[str, Any], budget: float) -> float:
    """The largest price on a predictor's card that costs at most `budget` perplexity. Raises ValueError without one."""
    within = [price for cost, price in card.get("prices", {}).items() if float(cost) <= budget]
    if not within:
        raise ValueError(f"no price for a budget of {budget}: it needs a predictor whose card has one")
    return float(max(within))


def _kept(path: Path) -> dict[str, Any]:
    file = path / KEPT
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return kept


def _check(model: Any, predictor: Predictor | None) -> None:
    found = layers(model)
    if not found:
        raise ValueError("the model has no routed experts that transformers can run by name")
    if predictor is None:
        return
    shape = (model.config.get_text_config().hidden_size, [experts.num_experts for experts in found])
    if shape != (predictor.hidden, predictor.experts):
        raise ValueError(f"the predictor is of another model: {(predictor.hidden, predictor.experts)}, not {shape}")
