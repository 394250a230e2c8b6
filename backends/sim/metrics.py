"""Which series does vLLM's /metrics have?"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from backends.sim.engine import Engine, Sequence
from backends.sim.settings import Settings

# Buckets as vLLM's (as listed in llm-d-inference-sim's configuration.md).
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
         160.0, 640.0, 2560.0)  # fmt: skip
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_LATENCY = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
            960.0, 1920.0, 7680.0)  # fmt: skip
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)


class Metrics:
    """vLLM's series by their current names (vLLM >= 0.28), labelled `model_name` and `engine`."""

    def __init__(self, settings: Settings) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's
        self.registry = CollectorRegistry()
        self._labels = (settings.model, "0")
        self._told = 0  # generation tokens
        self._running = self._gauge("num_requests_running", "Requests in model execution batches.")
        self._waiting = self._gauge("num_requests_waiting", "Requests waiting to be processed.")
        self._usage = self._gauge("kv_cache_usage_perc", "KV-cache usage; 1 is 100 percent.")
        self._queries = self._counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self._hits = self._counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        self._counter("num_preemptions", "Preemptions.")
        self._prompt = self._counter("prompt_tokens", "Prefill tokens processed.")
        self._generation = self._counter("generation_tokens", "Generation tokens processed.")
        self._ttft = self._histogram("time_to_first_token_seconds", _TTFT)
        self._itl = self._histogram("inter_token_latency_seconds", _ITL)
        self._tpot = self._histogram("request_time_per_output_token_seconds", _ITL)
        self._e2e = self._histogram("e2e_request_latency_seconds", _LATENCY)
        self._queue = self._histogram("request_queue_time_seconds", _LATENCY)
        self._prefill = self._histogram("request_prefill_time_seconds", _LATENCY)
        self._decode = self._histogram("request_decode_time_seconds", _LATENCY)
        self._inference = self._histogram("request_inference_time_seconds", _LATENCY)
        self._prompt_sizes = self._histogram("request_prompt_tokens", _TOKENS)
        self._generated_sizes = self._histogram("request_generation_tokens", _TOKENS)
        names = ["model_name", "engine", "finished_reason"]
        self._success = Counter("vllm:request_success", "Requests done.", names, registry=self.registry)
        for reason in ("stop", "length", "abort"):
            self._success.labels(*self._labels, reason)
        info = {"block_size": settings.block_size, "num_gpu_blocks": settings.kv_cache_size, "cache_dtype": "fp8",
                "enable_prefix_caching": True}  # fmt: skip
        self._config = Gauge("vllm:cache_config_info", "Cache config.", ["engine", *info], registry=self.registry)
        self._config.labels("0", *map(str, info.values())).set(1)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(f"vllm:{name}", meaning, ["model_name", "engine"], registry=self.registry).labels(*self._labels)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(f"vllm:{name}", meaning, ["model_name", "engine"], registry=self.registry).labels(*self._labels)

    def _histogram(self, name: str, buckets: tuple[float, ...] | tuple[int, ...]) -> Histogram:
        made = Histogram(f"vllm:{name}", name, ["model_name", "engine"], registry=self.registry, buckets=buckets)
        return made.labels(*self._labels)

    def prefilled(self, sequence: Sequence) -> None:
        """Counts a finished prefill."""
        self._queries.inc(len(sequence.tokens))
        self._hits.inc(sequence.cached)
        self._prompt.inc(len(sequence.tokens))
        self._queue.observe(sequence.started - sequence.arrived)

    def ended(self, sequence: Sequence, now: float, reason: str) -> None:
        """Counts a sequence that leaves its slot; `reason`: stop, length or abort, `now`: loop seconds.

        Of an aborted one vLLM (0.32) counts the generated tokens only, although it has a reason "abort".
        """
        if reason == "abort":
            return
        self._success.labels(*self._labels, reason).inc()
        made, decode = len(sequence.produced), now - sequence.first_token
        self._ttft.observe(sequence.first_token - sequence.arrived)
        self._prefill.observe(sequence.first_token - sequence.started)
        self._decode.observe(decode)
        self._inference.observe(now - sequence.started)
        self._e2e.observe(now - sequence.arrived)
        self._prompt_sizes.observe(len(sequence.tokens))
        self._generated_sizes.observe(made)
        if made > 1:
            self._tpot.observe(decode / (made - 1))
            self._itl.observe(decode / (made - 1))

    def text(self, engine: Engine) -> bytes:
        """The exposition in Prometheus' text format."""
        self._generation.inc(engine.made - self._told)
        self._told = engine.made
        self._running.set(engine.running)
        self._waiting.set(engine.waiting)
        self._usage.set(min(1.0, engine.blocks_used / engine.settings.kv_cache_size))
        return generate_latest(self.registry)
