"""Quintet's own metrics: what each is called, what it says, and where its values come from.

`docs/metrics.md` is this table for readers. All label values are fixed sets of our own, so that no client can make the
page grow; whatever can be known from the start is shown as 0 then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.metrics.figures import Figures
from gateway.metrics.requests import STAGES

Value = Any  # a number, or a histogram as `ipc.histogram` exports it; None shows nothing
Samples = Iterable[tuple[tuple[str, ...], Value]]  # values of the labels, and the metric's value under them

REASONS = ("stop", "length", "abort", "error", "timeout")
PHASES = ("prefill", "decode")
BLOCK_STATES = ("free", "cached", "in_use", "shared")
WAITS = ("prefill", "preempted", "step")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of the page. A counter's name is without the `_total` that the page adds."""

    name: str
    kind: str  # "counter", "gauge" or "histogram"
    help: str
    read: Callable[[Figures], Samples]
    labels: tuple[str, ...] = ()


def counter(name: str, help: str, read: Callable[[Figures], Value]) -> Metric:
    return Metric(name, "counter", help, lambda figures: [((), read(figures))])


def gauge(name: str, help: str, read: Callable[[Figures], Value]) -> Metric:
    return Metric(name, "gauge", help, lambda figures: [((), read(figures))])


def histogram(name: str, help: str, read: Callable[[Figures], Value]) -> Metric:
    return Metric(name, "histogram", help, lambda figures: [((), read(figures))])


def _each(values: Iterable[str], found: Mapping[str, Any], default: Value = 0) -> Samples:
    """A sample for each value of the one label."""
    return [((value,), found.get(value, default)) for value in values]


def _of_process(field: str) -> Callable[[Figures], Samples]:
    """A figure that every process has, as it is now."""
    return lambda figures: [((name,), of.get(field, 0)) for name, of in figures.processes.items()]


def _counted_by_process(field: str) -> Callable[[Figures], Samples]:
    return lambda figures: [((name,), of.get(field, 0)) for name, of in figures.counted.items()]


def _request(name: str) -> Callable[[Figures], Value]:
    return lambda figures: figures.histogram(name)


def _now(name: str) -> Callable[[Figures], Value]:
    return lambda figures: figures.scheduler_now.get(name, 0)


def _scheduler(name: str) -> Callable[[Figures], Value]:
    return lambda figures: figures.scheduler.get(name, 0)


def _tally(name: str, default: Value = 0) -> Callable[[Figures], Value]:
    return lambda figures: figures.tally.get(name, default)


def _responses(figures: Figures) -> Samples:
    return [((route, status), count) for route, status, count in figures.requests.get("responses", [])]


def _blocks(figures: Figures) -> Samples:
    return [((state,), figures.scheduler_now.get(f"blocks_{state}", 0)) for state in BLOCK_STATES]


def _waiting(figures: Figures) -> Samples:
    now = figures.scheduler_now
    return [(("capacity",), now.get("waiting", 0)), (("deferred",), now.get("held", 0))]


def _running(figures: Figures) -> Samples:
    return [((phase,), figures.scheduler_now.get(f"running_{phase}", 0)) for phase in PHASES]


def _prefix_requests(figures: Figures) -> Samples:
    found = figures.scheduler
    return [
        (("hit",), found.get("prefix_requests_hit", 0)),
        (("miss",), found.get("prefix_requests_missed", 0)),
    ]


REQUESTS = [
    histogram("quintet_time_to_first_token_seconds", "Arrival in the gateway to the first token.", _request("ttft")),
    histogram(
        "quintet_inter_token_seconds",
        "Between two outputs of a sequence, as they are made.",
        _request("inter_token"),
    ),
    histogram(
        "quintet_time_per_output_token_seconds",
        "A sequence's mean time for a token after its first.",
        _request("time_per_token"),
    ),
    histogram("quintet_request_seconds", "Arrival in the gateway to the last token.", _request("e2e")),
    histogram("quintet_request_queue_seconds", "Taken in by the scheduler to the first plan.", _request("queue")),
    histogram("quintet_request_inference_seconds", "The first step's plan to the last token.", _request("inference")),
    histogram("quintet_request_prefill_seconds", "The first step's plan to the first token.", _request("prefill")),
    histogram("quintet_request_decode_seconds", "The first token to the last token.", _request("decode")),
    histogram(
        "quintet_request_execution_seconds",
        "The runner's time for the steps that ended while the sequence was in the running batch.",
        _request("execution"),
    ),
    Metric(
        "quintet_request_stage_seconds",
        "histogram",
        "Where a sequence's time went, stage by stage round the ring.",
        lambda figures: _each(STAGES, figures.requests.get("stages", {}), None),
        ("stage",),
    ),
    histogram("quintet_request_prompt_tokens", "Tokens of a prompt.", _request("prompt_tokens")),
    histogram("quintet_request_generation_tokens", "Tokens of an output.", _request("generation_tokens")),
    histogram("quintet_request_max_tokens", "The max_tokens that a request asked for.", _request("params_max_tokens")),
    histogram("quintet_request_choices", "The n that a request asked for.", _request("params_n")),
    gauge(
        "quintet_requests_in_flight",
        "HTTP requests for generation that are not answered yet.",
        lambda figures: figures.in_flight.get("requests", 0),
    ),
    histogram(
        "quintet_refusal_seconds",
        "A request's first byte read to its answer 429 or 503.",
        _request("refusal"),
    ),
    Metric(
        "quintet_http_responses",
        "counter",
        "Responses by route and class of status; left: the client had gone.",
        _responses,
        ("route", "status"),
    ),
]

SCHEDULER = [
    gauge("quintet_sequences", "Sequences that have not ended.", _now("sequences")),
    Metric(
        "quintet_sequences_waiting",
        "gauge",
        "Sequences without a place in the running batch: capacity waits for one, deferred for a sibling's prefill or"
        " for the last result before a preemption.",
        _waiting,
        ("reason",),
    ),
    Metric(
        "quintet_sequences_running",
        "gauge",
        "Sequences in the running batch, by what they are doing.",
        _running,
        ("phase",),
    ),
    gauge("quintet_decodes_ready", "Sequences that decode and are in no step now.", _now("ready_decode")),
    Metric(
        "quintet_sequences_ended",
        "counter",
        "Sequences that ended, by reason.",
        lambda figures: _each(REASONS, figures.tally.get("ends", {})),
        ("reason",),
    ),
    Metric(
        "quintet_queue_rejections",
        "counter",
        "Requests refused because the queue was full: of requests, in the scheduler or on the way to it, or of tokens.",
        lambda figures: [(("requests",), figures.queue_full), (("tokens",), figures.tally.get("tokens_full", 0))],
        ("reason",),
    ),
    counter("quintet_prompt_tokens", "Prompt tokens of the requests that were admitted.", _scheduler("prefix_queries")),
    counter("quintet_generation_tokens", "Tokens that were generated.", _tally("generated_tokens")),
    counter("quintet_wasted_tokens", "Tokens sampled for sequences that were over already.", _tally("wasted_tokens")),
    counter("quintet_preemptions", "Running sequences that lost their blocks to others.", _scheduler("preemptions")),
    Metric(
        "quintet_queue_wait_seconds",
        "histogram",
        "Waiting: prefill from the queue to the first plan, preempted from the queue back into a plan, step from a"
        " step's plan to its begin.",
        lambda figures: _each(WAITS, figures.tally.get("queue_waits", {}), None),
        ("kind",),
    ),
    counter("quintet_steps", "Steps that were planned.", _scheduler("steps")),
    counter("quintet_steps_failed", "Steps in which some sequence's work failed.", _tally("failed_steps")),
    gauge("quintet_steps_in_flight", "Steps planned whose result has not come.", _now("steps_in_flight")),
    gauge("quintet_lanes", "Steps that the runner can work on at the same time.", _now("lanes")),
    histogram("quintet_tokens_per_step", "Tokens of a step.", _tally("tokens_a_step", None)),
    histogram("quintet_sequences_per_step", "Sequences of a step.", _tally("sequences_a_step", None)),
    Metric(
        "quintet_step_tokens",
        "counter",
        "Tokens computed in steps.",
        lambda figures: _each(PHASES, figures.tally.get("step_tokens", {})),
        ("phase",),
    ),
    Metric(
        "quintet_step_sequences",
        "counter",
        "Rows of steps: prefill chunks and decodes.",
        lambda figures: _each(PHASES, figures.tally.get("step_sequences", {})),
        ("phase",),
    ),
    counter("quintet_step_budget_tokens", "Tokens that the steps had room for.", _tally("budget_tokens")),
]

CACHE = [
    Metric(
        "quintet_kv_blocks",
        "gauge",
        "KV blocks by state. Free, cached and in_use are all of them; shared is the part of in_use that several hold.",
        _blocks,
        ("state",),
    ),
    gauge("quintet_kv_block_size_tokens", "Tokens in a KV block.", _now("block_size")),
    counter(
        "quintet_kv_allocation_failures",
        "Times that there were too few blocks: an admission waited, or a decode had somebody preempted.",
        _tally("held_for_blocks"),
    ),
    Metric(
        "quintet_prefix_cache_requests",
        "counter",
        "Prompts that found some of their prefix in the cache, and that did not.",
        _prefix_requests,
        ("status",),
    ),
    counter(
        "quintet_prefix_cache_tokens_saved", "Prompt tokens that were found in the cache.", _scheduler("prefix_hits")
    ),
    counter("quintet_prefix_cache_queried_tokens", "Prompt tokens looked up in it.", _scheduler("prefix_queries")),
    counter("quintet_prefix_cache_evictions", "Cached blocks taken for other content.", _scheduler("evictions")),
    counter("quintet_kv_event_batches", "Batches of KV events that were published.", _scheduler("kv_event_batches")),
]

PROCESSES = [
    Metric(
        "quintet_process_ready",
        "gauge",
        "1 for a process that is ready.",
        lambda figures: [((name,), int(state == "ready")) for name, state in figures.states.items()],
        ("process",),
    ),
    Metric(
        "quintet_process_cpu_seconds", "counter", "CPU time of all threads.", _counted_by_process("cpu_s"), ("process",)
    ),
    Metric("quintet_process_resident_memory_bytes", "gauge", "Memory in RAM.", _of_process("rss_bytes"), ("process",)),
    Metric(
        "quintet_process_loop_busy_ratio",
        "gauge",
        "Share of a core that the main thread took, over the last beat.",
        _of_process("loop_busy"),
        ("process",),
    ),
    Metric(
        "quintet_process_inbox_depth",
        "gauge",
        "Messages that were waiting when the process looked last.",
        _of_process("inbox_depth"),
        ("process",),
    ),
    Metric(
        "quintet_process_inbox_peak",
        "gauge",
        "The most messages that were waiting at once, over the last beat.",
        _of_process("inbox_peak"),
        ("process",),
    ),
    Metric(
        "quintet_process_messages_received",
        "counter",
        "Messages taken in.",
        _counted_by_process("messages_in"),
        ("process",),
    ),
    Metric(
        "quintet_process_messages_sent", "counter", "Messages sent.", _counted_by_process("messages_out"), ("process",)
    ),
    Metric(
        "quintet_process_bad_frames",
        "counter",
        "Frames that were no message, and dropped.",
        _counted_by_process("bad_frames"),
        ("process",),
    ),
    Metric(
        "quintet_process_stale_frames",
        "counter",
        "Frames from before a restart, and dropped.",
        _counted_by_process("stale_frames"),
        ("process",),
    ),
    Metric(
        "quintet_process_gc_pauses", "counter", "Garbage collections.", _counted_by_process("gc_pauses"), ("process",)
    ),
    Metric(
        "quintet_process_gc_pause_seconds",
        "counter",
        "Time that garbage collections took.",
        _counted_by_process("gc_pause_s"),
        ("process",),
    ),
    Metric(
        "quintet_process_gc_pause_max_seconds",
        "gauge",
        "The longest garbage collection since the start.",
        _of_process("gc_pause_max_s"),
        ("process",),
    ),
    Metric(
        "quintet_process_idle_seconds",
        "gauge",
        "How long ago the process made progress last: handled a message, or a step.",
        _of_process("idle_s"),
        ("process",),
    ),
    histogram(
        "quintet_model_step_seconds",
        "How long the runner worked on a step.",
        lambda figures: figures.runner.get("step_seconds"),
    ),
    counter("quintet_tokenizer_requests", "Requests tokenized.", lambda figures: figures.tokenizer.get("requests", 0)),
    counter(
        "quintet_detokenizer_tokens", "Tokens turned into text.", lambda figures: figures.detokenizer.get("tokens", 0)
    ),
    counter(
        "quintet_detokenizer_failures",
        "Sequences whose tokens could not be turned into text.",
        lambda figures: figures.detokenizer.get("failed", 0),
    ),
]

OWN = [*REQUESTS, *SCHEDULER, *CACHE, *PROCESSES]
