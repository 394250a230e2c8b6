"""How large are the two models?   Sizes of checkpoint, parts and KV cache, in bytes."""

from dataclasses import dataclass

GIB = 2**30
FP4_EXPERT = 0.53125  # bytes a parameter: 4 bits, and one 8-bit scale for 32 of them
# Bytes of a KV cache entry (a compressed token): 448 fp8, 64 x 16 bit (rope), 8 of scales; or 512 x 16 bit.
ENTRY = {"fp8": 584, "f16": 1024}
INDEX = {"fp8": 132, "fp4": 68, "f16": 256}  # bytes of the lightning indexer's entry: 128 values and their scales
THINK_MAX = 393_216  # tokens; a shorter context truncates Think Max


@dataclass(frozen=True, slots=True)
class Model:
    """One architecture. `csa` and `hca`: layers whose KV cache has an entry for every 4 or 128 tokens. The
    cache of the other layers, and of the last 128 tokens in every layer, has a constant size, part of the reserve.
    `mtp`: layers used for drafting only."""

    tier: str
    name: str  # as the policies ask for it
    released: str  # the later weights of the same architecture, with a DSpark draft
    bytes: float  # on disk
    draft_bytes: float  # of the released weights' DSpark draft
    layers: int
    mtp: int
    hidden: int
    inner: int  # an expert's intermediate size
    experts: int
    top_k: int  # experts of a token
    heads: int
    csa: int
    hca: int
    context: int = 1_048_576

    @property
    def expert_bytes(self) -> float:
        """All routed experts, without those of the MTP layers."""
        return self._experts(self.layers)

    @property
    def dense_bytes(self) -> float:
        """All other weights (attention, shared experts, embeddings), of which each data-parallel rank has a copy."""
        return self.bytes - self._experts(self.layers + self.mtp)

    def kv_bytes(self, entry: str = "fp8", index: str = "fp8") -> float:
        """KV cache of one token, over all layers. With one KV head, tensor parallelism does not divide it."""
        return self.csa * (ENTRY[entry] + INDEX[index]) / 4 + self.hca * ENTRY[entry] / 128

    def _experts(self, layers: int) -> float:
        return FP4_EXPERT * 3 * self.hidden * self.inner * self.experts * layers


# Shapes: transformers' DeepseekV4Config. Sizes: the checkpoints', 148.66 GiB and about 865 GB, 893 GB with Pro's draft;
# Flash's draft is 11 GB (two ranks of 5.5 as SGLang loads it). Layers by kind: Flash has two with sliding window only,
# then CSA and HCA in turn; Pro two of HCA, then in turn. In 16 bits that gives 6.72 and 9.62 GiB for 1,048,576 tokens,
# as vLLM publishes. The 584 bytes of an entry: vLLM 0.25, kv_cache_interface.py.
MODELS = {
    "flash": Model(
        tier="flash",
        name="deepseek-ai/DeepSeek-V4-Flash",
        released="deepseek-ai/DeepSeek-V4-Flash-0731",
        bytes=148.66 * GIB,
        draft_bytes=11e9,
        layers=43,
        mtp=1,
        hidden=4096,
        inner=2048,
        experts=256,
        top_k=6,
        heads=64,
        csa=21,
        hca=20,
    ),
    "pro": Model(
        tier="pro",
        name="deepseek-ai/DeepSeek-V4-Pro",
        released="deepseek-ai/DeepSeek-V4-Pro-0813",
        bytes=865e9,
        draft_bytes=28e9,
        layers=61,
        mtp=1,
        hidden=7168,
        inner=3072,
        experts=384,
        top_k=6,
        heads=128,
        csa=30,
        hca=31,
    ),
}
# Bytes of Flash's published GGUF files for llama.cpp; none of Pro is known that a small machine could hold.
GGUF = {"IQ2_XXS": 81e9, "Q2_K": 98e9}
