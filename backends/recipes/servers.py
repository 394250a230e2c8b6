"""Which processes serve a tier, and with which command lines?"""

import json
from dataclasses import dataclass, field

from backends.recipes.fit import UTILISATION, Wish, check

VLLM = "vllm/vllm-openai:v0.25.0"
ROCM = "vllm/vllm-openai-rocm:v0.25.0"
PORT = 8000
SHUTDOWN = 600  # seconds a server has after SIGTERM to complete its answers: a tier's longest (`total`)
RPC = 13345  # port between the data-parallel ranks of a server on several hosts

# How kernels are launched (CUDA graphs or not): the flag, and what is known of it.
GRAPHS = {
    "full": (
        '--compilation-config={"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}',
        (
            "CUDA graphs for prefill and decode: vLLM's recipe where memory is ample. Trouble is known at capture (its "
            "issues 51970, 53320, 40969); the way out: `decode`, or VLLM_USE_BREAKABLE_CUDAGRAPH=0 (52339)."
        ),
    ),
    "decode": (
        '--compilation-config={"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY"}',
        "graphs for decode alone, nothing compiled: vLLM's recipe for Pro on eight H200 and for decoders apart.",
    ),
    "compiled": (
        '--compilation-config={"mode":3,"cudagraph_mode":"FULL_DECODE_ONLY"}',
        "compiled, graphs for decode alone: vLLM's recipe for MI355X.",
    ),
    "eager": (
        "--enforce-eager",
        (
            "no graphs: the host launches each kernel, which is slower. No issue is known of leaks or crashes without "
            "it; an index out of bounds (48602) is not cured by it."
        ),
    ),
}
SERVED = (
    "--trust-remote-code",
    "--kv-cache-dtype=fp8",
    "--block-size=256",  # the only one that the attention kernels support
    "--tokenizer-mode=deepseek_v4",
    "--tool-call-parser=deepseek_v4",
    "--enable-auto-tool-choice",
    "--reasoning-parser=deepseek_v4",
    "--enable-prompt-tokens-details",  # cached tokens in `usage`, which have a price of their own
    f"--shutdown-timeout={SHUTDOWN}",
)
MOONCAKE = json.dumps(
    {
        "kv_connector": "MooncakeConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "fail",
        "kv_buffer_device": "cuda",
        "kv_connector_extra_config": {"enforce_handshake_compat": False, "mooncake_protocol": "rdma"},
    },
    separators=(",", ":"),
)

# Combinations that others report to work: vLLM's recipes; for rtx6000, spark and station, users.
PUBLISHED = {
    "flash": {
        "dep": {"h200x4", "b200x4", "b300x4", "gb200x4", "gb300x4"},
        "tep": {"h200x8", "b200x8", "b300x8"},
        "tp": {"mi355x4", "rtx6000x8", "sparkx2", "stationx1"},
        "pd": {"h200x8"},
    },
    "pro": {
        "dep": {"h200x8", "b200x8", "b300x8", "gb200x8"},
        "tep": {"h200x8", "b200x8", "b300x8"},
        "tp": {"mi355x8"},
        "pd": set(),
    },
}


@dataclass(frozen=True, slots=True)
class Server:
    """One process. `gpus`: their indices on its host; `port` 0: it serves no HTTP."""

    role: str
    argv: tuple[str, ...]
    port: int = PORT
    gpus: tuple[int, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    image: str = VLLM


def published(wish: Wish) -> bool:
    """Whether others report that vLLM works so, and it rests on more than our arithmetic."""
    return wish.hardware.name in PUBLISHED[wish.tier][wish.strategy]


def servers(wish: Wish) -> list[Server]:
    """The processes in the order in which they start. Raises Impossible for a wish that cannot be served."""
    check(wish)
    if wish.engine == "llama.cpp":
        return [_llama(wish)]
    if wish.engine == "sglang":
        return [_sglang(wish)]
    if wish.strategy == "pd":
        return _apart(wish)
    if wish.hardware.nodes > 1:
        return [_vllm(wish, "leader", _spread(wish, False)), _vllm(wish, "worker", _spread(wish, True), port=0)]
    return [_vllm(wish, "server", _alone(wish))]


def _vllm(wish: Wish, role: str, parallel: tuple[str, ...], port: int = PORT, gpus: tuple[int, ...] = ()) -> Server:
    amd = wish.hardware.gpu.family == "amd"
    argv = ("vllm", "serve", *_named(wish), *((f"--port={port}",) if port else ()), *parallel, *_tuned(wish), *SERVED)
    if wish.speculate != "none":
        argv += (f"--speculative-config={_drafts(wish)}",)
    env = {"VLLM_NO_USAGE_STATS": "1"} | ({"VLLM_ROCM_USE_AITER": "1"} if amd else {})
    return Server(role, argv, port, gpus or tuple(range(wish.hardware.per_node)), env, ROCM if amd else VLLM)


def _named(wish: Wish) -> tuple[str, ...]:
    """The model argument; released weights are served under the name that the policies use."""
    if wish.speculate == "dspark":
        return (wish.model.released, f"--served-model-name={wish.model.name}")
    return (wish.model.name,)


def _alone(wish: Wish) -> tuple[str, ...]:
    size = "data" if wish.strategy == "dep" else "tensor"
    return (f"--{size}-parallel-size={wish.ranks}", *(("--enable-expert-parallel",) if wish.strategy != "tp" else ()))


def _spread(wish: Wish, worker: bool) -> tuple[str, ...]:
    """Parallelism over several hosts. A LeaderWorkerSet sets LWS_WORKER_INDEX and LWS_LEADER_ADDRESS; elsewhere export
    them."""
    if wish.strategy == "dep":
        local = wish.hardware.per_node
        first = (f"--data-parallel-start-rank=$((LWS_WORKER_INDEX*{local}))", "--headless") if worker else ()
        ranks = (f"--data-parallel-size-local={local}", "--data-parallel-address=${LWS_LEADER_ADDRESS}")
        return (*_alone(wish), *ranks, f"--data-parallel-rpc-port={RPC}", *first)
    where = (
        f"--nnodes={wish.hardware.nodes}",
        f"--node-rank={'${LWS_WORKER_INDEX}' if worker else 0}",
        "--master-addr=${LWS_LEADER_ADDRESS}",
    )
    return (*_alone(wish), "--distributed-executor-backend=mp", *where, *(("--headless",) if worker else ()))


def _tuned(wish: Wish) -> tuple[str, ...]:
    """The flags that vLLM's recipes set for the hardware."""
    family, found = wish.hardware.gpu.family, []
    if wish.utilisation != UTILISATION:
        found.append(f"--gpu-memory-utilization={wish.utilisation}")
    if wish.tight:
        found += ["--max-num-seqs=16", "--no-enable-flashinfer-autotune"]
    if wish.fp4_index:
        found.append("--attention_config.use_fp4_indexer_cache=True")
    if family == "blackwell" and wish.strategy != "tp":
        found.append("--moe-backend=deep_gemm_mega_moe")  # needs whole experts a rank; bypasses the plug-in that skips
    if family == "amd":
        found += ["--distributed-executor-backend=mp", "--max-num-seqs=512", "--max-num-batched-tokens=8192"]
    if wish.strategy != "pd":
        usual = "compiled" if family == "amd" else "decode" if wish.tight else "full"
        found.append(GRAPHS[wish.graphs or usual][0])
    if wish.tokens != wish.model.context:
        found.append(f"--max-model-len={wish.tokens}")
    return tuple(found)


def _drafts(wish: Wish) -> str:
    if wish.speculate == "dspark":
        return '{"method":"dspark","num_speculative_tokens":7,"draft_sample_method":"probabilistic"}'
    count = 1 if wish.hardware.gpu.family == "hopper" else 2
    return f'{{"method":"mtp","num_speculative_tokens":{count}}}'


def _apart(wish: Wish) -> list[Server]:
    """Disaggregated prefill and decode, each on half a host; Mooncake transfers KV caches, vllm-router is in front."""
    half = wish.ranks
    parallel = (f"--data-parallel-size={half}", "--enable-expert-parallel")
    handed = ("--no-disable-hybrid-kv-cache-manager", f"--kv-transfer-config={MOONCAKE}")
    prefill = ("--max-num-batched-tokens=16384", "--max-num-seqs=8")
    decode = ("--max-num-batched-tokens=512", "--max-num-seqs=512", GRAPHS[wish.graphs or "decode"][0])
    made = []
    for n, (role, own) in enumerate({"prefill": prefill, "decode": decode}.items()):
        one = _vllm(wish, role, (*parallel, *own, *handed), PORT + 1 + n, tuple(range(n * half, (n + 1) * half)))
        env = {**one.env, "VLLM_MOONCAKE_BOOTSTRAP_PORT": str(8998 + n)}
        made.append(Server(role, one.argv, one.port, one.gpus, env, one.image))
    url = "http://127.0.0.1:{}".format
    argv: tuple[str, ...] = ("vllm-router", "--vllm-pd-disaggregation", "--policy=round_robin", f"--port={PORT}")
    ends = (f"--prefill={url(made[0].port)}", f"--decode={url(made[1].port)}")
    argv += (*ends, f"--intra-node-data-parallel-size={half}", "--kv-connector=mooncake")
    return [*made, Server("router", argv)]


def _sglang(wish: Wish) -> Server:
    argv = ["sglang", "serve", "--trust-remote-code", f"--model-path={_named(wish)[0]}", f"--port={PORT}"]
    argv += [f"--served-model-name={wish.model.name}", f"--tp={wish.ranks}"]
    if wish.hardware.gpu.family == "hopper":
        argv.append("--moe-runner-backend=marlin")  # Hopper has no FP4 arithmetic
    if wish.tokens != wish.model.context:
        argv.append(f"--context-length={wish.tokens}")
    argv += [
        "--reasoning-parser=deepseek-v4",
        "--tool-call-parser=deepseekv4",
        "--enable-metrics",
        "--enable-cache-report",
    ]
    return Server("server", tuple(argv))


def _llama(wish: Wish) -> Server:
    """llama-server with a GGUF file of the operator's; its name here is an example with the quantisation."""
    argv = ["llama-server", f"--model=DeepSeek-V4-Flash-{wish.quant}.gguf", f"--alias={wish.model.name}"]
    layers = ["--n-gpu-layers=99"] if wish.hardware.gpu.family == "mac" else []
    return Server("server", (*argv, f"--ctx-size={wish.tokens}", *layers, "--jinja", f"--port={PORT}"))
