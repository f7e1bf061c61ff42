"""What each process is told at its start: one frozen section each, cut from the table of options by field name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class RingConfig:
    """What all processes share."""

    run_dir: str  # folder of the sockets, mode 0700
    epoch: int  # of this run of this process: every run in the ring has a number of its own, and a later one a higher
    log_level: str
    runs: dict[str, int] = field(default_factory=dict)  # process name -> epoch of its run; those missing have this one
    log_format: str = "text"  # or "json"


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    host: str
    port: int
    api_key: list[str]
    api_key_file: str
    allowed_origins: list[str]
    ssl_certfile: str
    ssl_keyfile: str
    ssl_ca_certs: str
    uds: str
    root_path: str
    gateway_workers: int
    sse_keep_alive_interval: float
    served_model_name: list[str]
    max_body_mib: int
    request_timeout: float
    max_num_queued_reqs: int
    max_num_seqs: int
    scheduling_policy: str
    chat_template: str
    tool_call_parser: str
    reasoning_parser: str
    pooling: str
    enable_metrics: bool
    vllm_metrics: bool
    profile: str
    profile_dir: str
    otlp_traces_endpoint: str


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    tokenizer_threads: int
    chat_template: str


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_batched_tokens: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    pipeline_depth: int
    max_num_queued_reqs: int
    max_num_queued_tokens: int
    scheduling_policy: str
    scheduling_aging: float
    prefill_order: str
    max_num_step_seqs: int
    long_prefill_token_threshold: int
    max_num_partial_prefills: int
    max_long_partial_prefills: int
    prefill_delay_steps: int
    enable_log_requests: bool
    step_log: str
    kv_events_endpoint: str
    kv_events_replay_endpoint: str
    kv_events_topic: str
    kv_events_buffer_steps: int
    tensor_parallel_size: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    model: str
    tensor_parallel_size: int
    device: str
    dtype: str
    quantization: str
    load_format: str
    model_impl: str
    attention_backend: str
    enforce_eager: bool
    cudagraph_capture_sizes: list[str]
    max_model_len: int
    num_threads: int
    max_num_seqs: int
    max_num_batched_tokens: int
    pipeline_depth: int
    block_size: int
    num_gpu_blocks_override: int
    kv_cache_memory_bytes: int
    gpu_memory_utilization: float
    mock_profile: str
    mock_lanes: int


@dataclass(frozen=True, slots=True)
class DetokenizerConfig:
    pass


SECTIONS: dict[str, type] = {
    "gateway": GatewayConfig,
    "tokenizer": TokenizerConfig,
    "scheduler": SchedulerConfig,
    "model": ModelConfig,
    "detokenizer": DetokenizerConfig,
}

Section = TypeVar("Section")


def section(cls: type[Section], values: Mapping[str, Any]) -> Section:
    """The part of `values` that `cls` names."""
    return cls(**{each.name: values[each.name] for each in fields(cls)})  # type: ignore[arg-type]
