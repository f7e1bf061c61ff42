"""The same figures under the names that dashboards, routers and autoscalers made for vLLM look for.

Every sample has the labels `model_name`, the first name under which the model is served, and `engine`, which is "0".
"""

from __future__ import annotations

from gateway.metrics.catalog import Metric, Samples, Value
from gateway.metrics.figures import Figures

ENGINE = "0"
LABELS = ("model_name", "engine")
# A request that ran out of time was given up, as an abort is; vLLM has no deadlines. No sequence ends for repetition.
FINISHED = {"stop": ("stop",), "length": ("length",), "abort": ("abort", "timeout"), "error": ("error",)}
REPETITION = "repetition"

_TEXTS = {
    "time_to_first_token_seconds": ("ttft", "Time to first token in seconds."),
    "inter_token_latency_seconds": ("inter_token", "Inter-token latency in seconds."),
    "request_time_per_output_token_seconds": ("time_per_token", "Time per output token of a request in seconds."),
    "e2e_request_latency_seconds": ("e2e", "End-to-end latency of a request in seconds."),
    "request_queue_time_seconds": ("queue", "Time that a request was WAITING."),
    "request_inference_time_seconds": ("inference", "Time that a request was RUNNING."),
    "request_prefill_time_seconds": ("prefill", "Time of a request's prefill."),
    "request_decode_time_seconds": ("decode", "Time of a request's decodes."),
    "request_prompt_tokens": ("prompt_tokens", "Prompt tokens of a request."),
    "request_generation_tokens": ("generation_tokens", "Generated tokens of a request."),
    "request_max_num_generation_tokens": ("generation_tokens", "The most tokens generated for one choice."),
    "request_params_max_tokens": ("params_max_tokens", "The max_tokens of a request."),
    "request_params_n": ("params_n", "The n of a request."),
}


def vllm_metrics(figures: Figures) -> list[tuple[Metric, Samples]]:
    """All families with their samples; none before the model has a name."""
    if not figures.model_name:
        return []
    common = (figures.model_name, ENGINE)
    now, counted, tally = figures.scheduler_now, figures.scheduler, figures.tally
    families: list[tuple[Metric, Samples]] = []

    def add(kind: str, name: str, help: str, value: Value) -> None:
        metric = Metric(f"vllm:{name}", kind, help, lambda _: [], LABELS)
        families.append((metric, [(common, value)]))

    def add_by(kind: str, name: str, help: str, label: str, values: dict[str, Value], with_engine: bool = True) -> None:
        labels = (*LABELS, label) if with_engine else (LABELS[0], label)
        front = common if with_engine else common[:1]
        metric = Metric(f"vllm:{name}", kind, help, lambda _: [], labels)
        families.append((metric, [((*front, key), value) for key, value in values.items()]))

    total = now.get("blocks_total", 0)
    waiting, held = now.get("waiting", 0), now.get("held", 0)
    add("gauge", "num_requests_running", "Requests in the running batch.", now.get("running", 0))
    add("gauge", "num_requests_waiting", "Requests that wait.", waiting + held)
    add_by(
        "gauge",
        "num_requests_waiting_by_reason",
        "Requests that wait, by reason.",
        "reason",
        {"capacity": waiting, "deferred": held},
    )
    usage = now.get("blocks_in_use", 0) / total if total else 0.0
    add("gauge", "kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", usage)
    if total:
        geometry = ("block_size", "num_gpu_blocks")
        metric = Metric("vllm:cache_config_info", "gauge", "The KV cache.", lambda _: [], (*LABELS, *geometry))
        families.append((metric, [((*common, str(now.get("block_size", 0)), str(total)), 1)]))
    add("counter", "prompt_tokens", "Prompt tokens processed.", counted.get("prefix_queries", 0))
    add("counter", "generation_tokens", "Tokens generated.", tally.get("generated_tokens", 0))
    add("counter", "prompt_tokens_cached", "Prompt tokens taken from the cache.", counted.get("prefix_hits", 0))
    add("counter", "prefix_cache_queries", "Tokens looked up in the prefix cache.", counted.get("prefix_queries", 0))
    add("counter", "prefix_cache_hits", "Tokens found in the prefix cache.", counted.get("prefix_hits", 0))
    add("counter", "num_preemptions", "Preemptions.", counted.get("preemptions", 0))
    ends = tally.get("ends", {})
    finished: dict[str, Value] = {
        reason: sum(ends.get(ours, 0) for ours in counted_as) for reason, counted_as in FINISHED.items()
    }
    add_by("counter", "request_success", "Requests that ended.", "finished_reason", finished | {REPETITION: 0})
    add_by(
        "counter",
        "admission_rejections",
        "Requests refused for a limit of the queue.",
        "reason",
        {"max_num_queued_reqs": figures.queue_full, "max_num_queued_tokens": tally.get("tokens_full", 0)},
        with_engine=False,
    )
    for name, (source, text) in _TEXTS.items():
        add("histogram", name, text, figures.histogram(source))
    add("histogram", "iteration_tokens_total", "Tokens of a step.", tally.get("tokens_a_step"))
    return families
