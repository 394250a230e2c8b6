"""Does a model fit on the hardware?   Weights and KV cache against each GPU's memory."""

from dataclasses import dataclass

from backends.recipes.hardware import Hardware, Impossible
from backends.recipes.models import GGUF, GIB, MODELS, THINK_MAX, Model

# GiB a GPU for activations, graphs, the driver and communication. An assumption, set so that the arithmetic allows Pro
# on eight H200 the 800,000 tokens that vLLM's recipe names as the most.
RESERVE = 6.0
UTILISATION = 0.9  # vLLM's default share of the memory


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for. `context`: tokens, None for the recipe's; `speculate`: none, mtp or dspark; `graphs`:
    a key of servers.GRAPHS, None for the recipe's; `quant`: for llama.cpp only."""

    tier: str
    hardware: Hardware
    strategy: str = "dep"
    engine: str = "vllm"
    context: int | None = None
    think_max: bool = False
    speculate: str = "none"
    graphs: str | None = None
    quant: str = "IQ2_XXS"

    @property
    def model(self) -> Model:
        return MODELS[self.tier]

    @property
    def tight(self) -> bool:
        """Pro on Hopper, for which vLLM's recipe has settings of its own to save memory."""
        return self.tier == "pro" and self.hardware.gpu.family == "hopper"

    @property
    def tokens(self) -> int:
        """The context length, in tokens, that a server is started with."""
        usual = 32_768 if self.engine == "llama.cpp" else 200_000 if self.tight else self.model.context
        if self.context is not None:
            return self.context
        return max(usual, THINK_MAX) if self.think_max else usual

    @property
    def utilisation(self) -> float:
        return 0.95 if self.tight else 0.92 if self.hardware.gpu.family == "station" else UTILISATION

    @property
    def fp4_index(self) -> bool:
        """Whether the indexer's part of the KV cache is in FP4, which vLLM does on data center Blackwell if told to."""
        return self.engine == "vllm" and self.hardware.gpu.family in {"blackwell", "station"}

    @property
    def ranks(self) -> int:
        """GPUs that share one copy of the weights; with prefill and decode apart each half has a copy."""
        return self.hardware.count // (2 if self.strategy == "pd" else 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory in GiB of one GPU, or without GPUs of the machine. `held`: tokens that the KV cache of one rank holds."""

    usable: float
    weights: float
    reserve: float
    held: int

    @property
    def kv(self) -> float:
        return self.usable - self.weights - self.reserve


def budget(wish: Wish) -> Budget:
    """The memory budget of a wish, whether it fits or not."""
    model, gpu = wish.model, wish.hardware.gpu
    if wish.engine == "llama.cpp":
        usable, weights, reserve = gpu.gib * 0.75, GGUF[wish.quant] / GIB, 2.0
        token = model.kv_bytes("f16", "f16")
    else:
        usable, reserve = gpu.gib * wish.utilisation, RESERVE
        draft = model.draft_bytes if wish.speculate == "dspark" else 0.0
        drafting = model.expert_bytes / model.layers * model.mtp if wish.speculate == "mtp" else 0.0
        dense = model.dense_bytes if wish.strategy in {"dep", "pd"} else model.dense_bytes / wish.ranks
        weights = (dense + (model.expert_bytes + draft + drafting) / wish.ranks) / GIB
        token = model.kv_bytes(index="fp4" if wish.fp4_index else "fp8")
    return Budget(usable, weights, reserve, max(0, int((usable - weights - reserve) * GIB / token)))


def check(wish: Wish) -> Budget:
    """The budget of a wish. Raises Impossible, with all reasons, when it cannot be served."""
    if reasons := _shape(wish):
        raise Impossible("; ".join(reasons))
    found = budget(wish)
    where = "the machine" if wish.engine == "llama.cpp" else f"each {wish.hardware.name.rpartition('x')[0]}"
    if found.kv <= 0:
        reasons.append(
            f"weights need {found.weights:.0f} GiB and {found.reserve:.0f} GiB are kept free, "
            f"but {where} has {found.usable:.0f} GiB to give"
        )
    elif found.held < wish.tokens:
        reasons.append(
            f"one request of {wish.tokens} tokens does not fit: beside weights of {found.weights:.0f} GiB "
            f"{where} has {found.kv:.1f} GiB for the KV cache, {found.held} tokens; give a smaller --context"
        )
    if reasons:
        raise Impossible("; ".join(reasons))
    return found


def _shape(wish: Wish) -> list[str]:
    """Why the wish cannot be served, memory aside."""
    model, metal, ranks = wish.model, wish.hardware, wish.ranks
    said = {
        f"Think Max is cut short by a context below {THINK_MAX} tokens": wish.think_max and wish.tokens < THINK_MAX,
        f"the model has a context of {model.context} tokens, not {wish.tokens}": not 0 < wish.tokens <= model.context,
        "how to draft and to launch kernels is said to vLLM alone": wish.engine != "vllm"
        and (wish.speculate != "none" or wish.graphs is not None),
    }
    if wish.engine == "llama.cpp":
        said["llama.cpp is for machines without a GPU here: ramN or macN"] = metal.count > 0
        said["no GGUF of Pro is known that such a machine could hold"] = wish.tier == "pro"
        return [reason for reason, wrong in said.items() if wrong]
    said[f"{metal.name} has no GPU: --engine llama.cpp"] = not metal.count
    said["prefill and decode apart take one host with an even number of GPUs"] = wish.strategy == "pd" and (
        metal.nodes > 1 or metal.count % 2 == 1
    )
    said["SGLang's recipe is tensor parallel on one host"] = wish.engine == "sglang" and (
        wish.strategy != "tp" or metal.nodes > 1
    )
    if ranks and wish.strategy in {"tp", "tep"}:
        said[f"{model.heads} attention heads are not divided by {ranks}"] = model.heads % ranks > 0
    if ranks and wish.strategy != "tp":
        said[f"{model.experts} experts are not divided by {ranks}"] = model.experts % ranks > 0
    return [reason for reason, wrong in said.items() if wrong]
