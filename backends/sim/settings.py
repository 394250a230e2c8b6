"""Which model and engine is simulated, and with which speed?   Settings, their defaults by tier, the command line."""

import argparse
import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Settings:
    """One simulated server. Times are milliseconds and divided by `speed`; at `speed` 0 or infinity nothing waits.

    `kv_cache_size`: of the prefix cache, in blocks of `block_size` tokens. `time_to_first_token`: a fixed TTFT, 0 for
    the model of overhead and time per prompt token. `time_factor_under_load`: the slow-down of decoding at
    `max_num_seqs` sequences. `obedient`: the classifier obeys instructions in the prompt. `failure_injection_rate`:
    percent of requests that fail.
    """

    tier: str
    served_model_name: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    prefill_overhead: float
    prefill_time_per_token: float
    inter_token_latency: float
    time_factor_under_load: float
    kv_cache_size: int
    time_to_first_token: float = 0.0
    block_size: int = 256
    speed: float = 1.0
    seed: int = 0
    scheduling_policy: str = "fcfs"
    reasoning_field: str = "reasoning"
    default_thinking: bool = True
    obedient: bool = False
    engine: str = "vllm"
    decisions: bool = False
    api_key: str | None = None
    failure_injection_rate: float = 0.0
    record_bodies: bool = False
    enable_request_id_headers: bool = False

    @property
    def model(self) -> str:
        """The model name in answers: the first served one."""
        return self.served_model_name[0]

    def seconds(self, milliseconds: float) -> float:
        """Simulated milliseconds as seconds of wall time."""
        if self.speed <= 0 or math.isinf(self.speed):
            return 0.0
        return milliseconds / 1000.0 / self.speed


# Flash, 4xH200, revision 0731 with DSpark, SGLang v0.5.16, 8,192 tokens in and 1,024 out (sgl-project/sglang PR 33109):
#   concurrency 1: P50 TTFT 308 ms, TPOT 1.72 ms; 16: 662 / 8.39; 64: 1618 / 38.05; 256: 1932 / 104.53.
#   TPOT rises about linearly with concurrency, to 61 times at 256; TTFT as its square root (engine.py).
# Pro, 8xH200 FP4, SGLang v0.5.15, same lengths (sgl-project/sglang, deepseek-v4-benchmarks.jsx, cell h200 pro fp4
#   low-latency): concurrency 1: TTFT 623 ms, TPOT 5.64 ms; 16: 684 / 25.83 (4.6 times).
# No source splits TTFT into a fixed and a per-token part. The fixed part is our assumption: 40 ms for Flash, and the
#   same share of TTFT (80 ms) for Pro. Per token: (308 - 40) / 8192 and (623 - 80) / 8192.
# Pro's sequences (16) and context (200,000) are from vllm-project/recipes, DeepSeek-V4-Pro.yaml, for 8xH200;
#   its KV cache holds just over one full context. Flash's context is the model's, its 256 sequences the largest
#   concurrency of that table, its KV cache of 4.2 M tokens our assumption.
TIERS = {
    "flash": Settings(
        tier="flash",
        served_model_name=("deepseek-ai/DeepSeek-V4-Flash", "deepseek-v4-flash"),
        max_model_len=1_048_576,
        max_num_seqs=256,
        prefill_overhead=40.0,
        prefill_time_per_token=0.0327,
        inter_token_latency=1.72,
        time_factor_under_load=60.8,
        kv_cache_size=16_384,
    ),
    "pro": Settings(
        tier="pro",
        served_model_name=("deepseek-ai/DeepSeek-V4-Pro", "deepseek-v4-pro"),
        max_model_len=200_000,
        max_num_seqs=16,
        prefill_overhead=80.0,
        prefill_time_per_token=0.0663,
        inter_token_latency=5.64,
        time_factor_under_load=4.58,
        kv_cache_size=800,
    ),
}


def milliseconds(text: str) -> float:
    """`100ms`, `1.5s`, `750us`, or a bare number of milliseconds. Raises ValueError on anything else."""
    for unit, factor in (("ms", 1.0), ("us", 0.001), ("s", 1000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def port(text: str) -> int:
    """Raises ValueError for what is none: uvloop would listen on another one."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError(text)
    return number


def count(text: str) -> int:
    """Raises ValueError for a number below 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parser() -> argparse.ArgumentParser:
    """The command line; names as in llm-d-inference-sim and vLLM where these have one. Unset: the tier's default."""
    p = argparse.ArgumentParser(prog="python -m backends.sim", description="A simulated vLLM server.")
    p.add_argument("--tier", choices=sorted(TIERS), required=True)
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=port, required=True)
    p.add_argument("--served-model-name", nargs="+")
    p.add_argument("--max-model-len", type=count)
    p.add_argument("--max-num-seqs", type=count)
    p.add_argument(
        "--time-to-first-token", type=milliseconds, help="a fixed TTFT in place of the per-token prefill model"
    )
    p.add_argument("--prefill-overhead", type=milliseconds)
    p.add_argument("--prefill-time-per-token", type=milliseconds)
    p.add_argument("--inter-token-latency", type=milliseconds)
    p.add_argument("--time-factor-under-load", type=float, help="slow-down of decoding at --max-num-seqs sequences")
    p.add_argument("--kv-cache-size", type=count, help="prefix cache, in blocks")
    p.add_argument("--block-size", type=count, help="tokens a block")
    p.add_argument("--speed", type=float, help="divide all times; 0 or inf waits for nothing")
    p.add_argument("--seed", type=int)
    p.add_argument("--scheduling-policy", choices=("fcfs", "priority"))
    p.add_argument("--reasoning-field", choices=("reasoning", "reasoning_content", "both"))
    p.add_argument(
        "--default-thinking", action=argparse.BooleanOptionalAction, default=None, help="on, as vLLM >= 0.28"
    )
    p.add_argument("--obedient", action="store_true", default=None, help="the classifier does what the prompt tells it")
    engines = ("vllm", "llama.cpp", "llama-cpp-python", "transformers")
    p.add_argument("--engine", choices=engines, help="whose answers' forms are served")
    p.add_argument("--decisions", action="store_true", default=None, help="serve /v1/decisions, as with a plug-in")
    p.add_argument("--api-key")
    p.add_argument("--failure-injection-rate", type=float, help="percent of requests that fail, 0 to 100")
    p.add_argument("--record-bodies", action="store_true", default=None, help="keep request bodies for /admin/state")
    p.add_argument("--enable-request-id-headers", action="store_true", default=None)
    return p


def settings(args: argparse.Namespace) -> Settings:
    """The tier's defaults, overridden by the given flags."""
    base = TIERS[args.tier]
    values = {}
    for field in fields(Settings):
        given = getattr(args, field.name, None)
        values[field.name] = getattr(base, field.name) if given is None else given
    values["served_model_name"] = tuple(values["served_model_name"])
    return Settings(**values)
