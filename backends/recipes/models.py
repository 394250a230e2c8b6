"""How large are the two models?   Sizes on disk, of their parts and of their KV cache, in bytes."""

from dataclasses import dataclass

GIB = 2**30
FP4_EXPERT = 0.53125  # bytes a parameter: 4 bits, and one 8-bit scale for 32 of them
ENTRY = {"fp8": 584, "f16": 1024}  # of a compressed token: 448 fp8 + 64 x 16 bit (rope) + 8 of scales; or 512 x 16 bit
INDEX = {"fp8": 132, "fp4": 68, "f16": 256}  # of the lightning indexer: 128 values and their scales
THINK_MAX = 393_216  # tokens; less context cuts Think Max short


@dataclass(frozen=True, slots=True)
class Model:
    """One architecture. `csa` and `hca`: layers that keep one entry of every 4, or of every 128 tokens; the others, and
    the last 128 tokens of every layer, need a constant that counts as reserve. `mtp`: layers for drafting alone."""

    tier: str
    name: str  # as the policies ask for it
    released: str  # the later weights of the same architecture, with a DSpark draft
    bytes: float  # on disk
    draft_bytes: float  # what the released weights have more
    layers: int
    mtp: int
    hidden: int
    inner: int  # of an expert
    experts: int
    heads: int
    csa: int
    hca: int
    context: int = 1_048_576

    @property
    def expert_bytes(self) -> float:
        """All routed experts of the layers that answer."""
        return self._experts(self.layers)

    @property
    def dense_bytes(self) -> float:
        """Attention, shared experts, embeddings: what every data-parallel rank holds whole."""
        return self.bytes - self._experts(self.layers + self.mtp)

    def kv_bytes(self, entry: str = "fp8", index: str = "fp8") -> float:
        """Of one token of context, over all layers. There is one KV head: tensor parallelism does not divide it."""
        return self.csa * (ENTRY[entry] + INDEX[index]) / 4 + self.hca * ENTRY[entry] / 128

    def _experts(self, layers: int) -> float:
        return FP4_EXPERT * 3 * self.hidden * self.inner * self.experts * layers


# Shapes: transformers' DeepseekV4Config. Sizes: the checkpoints' own, 148.66 GiB, about 865 GB, and 893 GB with the
# draft of Pro; the draft of Flash is 11 GB (two ranks of 5.5 as SGLang loads it). Layers by kind: Flash has two with a
# window alone, then CSA and HCA by turns; Pro two of HCA, then by turns. In 16 bits that is 6.72 and 9.62 GiB for
# 1,048,576 tokens, which is what vLLM publishes. The 584 bytes of an entry: vLLM 0.25, kv_cache_interface.py.
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
        heads=128,
        csa=30,
        hca=31,
    ),
}
# GGUF files of Flash for llama.cpp, GB as published; of Pro none is known that a small machine could hold.
GGUF = {"IQ2_XXS": 81e9, "Q2_K": 98e9}
