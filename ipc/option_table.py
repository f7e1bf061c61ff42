"""The one table of user-facing options: command line, environment, config file and offline API are all made from it.

Names are vLLM's; SGLang's are accepted as aliases. How a value is looked for and checked is in `ipc.options`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipc.log import FORMATS, LEVELS


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `kind` reads a string; a `bool` kind makes a `--x/--no-x` pair, a `list` kind takes several words."""

    name: str
    kind: Any
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()  # flags that switch a bool off, beside --no-NAME
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None  # what is wrong with a value, if anything

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def at_least(low: float) -> Callable[[Any], str | None]:
    return lambda value: None if value >= low else f"must be at least {low}"


def between(low: float, high: float) -> Callable[[Any], str | None]:
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def power_of_two(value: int) -> str | None:
    return None if value > 0 and value & (value - 1) == 0 else "must be a power of two"


def no_empty_key(values: list[str]) -> str | None:
    return None if all(values) else "a key is empty"


def root_path(value: str) -> str | None:
    return None if re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", value) else "must be like /a/b, without a slash at its end"


def origins(values: list[str]) -> str | None:
    """Origins as browsers send them: scheme, host and port, nothing behind."""
    wrong = [value for value in values if value != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", value)]
    return f"{wrong[0]!r} is no origin such as https://example.org" if wrong else None


def http_url(value: str) -> str | None:
    return (
        None
        if not value or re.match(r"https?://[^/\s]+", value)
        else "must be a URL such as http://host:4318/v1/traces"
    )


def zmq_endpoint(value: str) -> str | None:
    host = r"(\*|[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%a-z]+\])"
    port = re.fullmatch(rf"tcp://{host}:(\d{{1,5}})", value)
    if not value or re.fullmatch(r"ipc://.+", value) or (port and 0 < int(port[2]) < 65536):
        return None
    return "must be like tcp://127.0.0.1:5557 or ipc:///path/of/a/socket"


KV_EVENTS_BUFFER_STEPS = 10_000
POLICIES = ("fcfs", "priority", "sjf", "lpm", "fair")


def policy_name(value: str) -> str | None:
    module, colon, name = value.partition(":")
    if value in POLICIES or (colon and module and name.isidentifier()):
        return None
    return f"must be one of {', '.join(POLICIES)}, or my_module:MyPolicy"


def positive_numbers(values: list[str]) -> str | None:
    return None if all(value.isdecimal() and int(value) > 0 for value in values) else "must be numbers above 0"


OPTIONS: dict[str, list[Option]] = {
    "Model": [
        Option(
            "model",
            str,
            "smollm2-135m",
            "smollm2-135m (embedded), a local folder, a .gguf file, a Hugging Face id, or mock",
            aliases=("--model-path",),
        ),
        Option("served_model_name", list, [], "public names of the model; the first one is shown"),
        Option("device", str, "auto", "where the model runs", choices=("auto", "cpu", "cuda")),
        Option(
            "dtype", str, "auto", "type of weights and KV cache", choices=("auto", "float32", "bfloat16", "float16")
        ),
        Option(
            "max_model_len",
            int,
            0,
            "longest prompt and output together, in tokens; 0 is the model's own limit",
            aliases=("--context-length",),
            check=at_least(0),
        ),
        Option(
            "tensor_parallel_size",
            int,
            1,
            "model processes that share every layer, each on a GPU of its own",
            aliases=("--tp-size",),
            check=between(1, 64),
        ),
        Option(
            "quantization",
            str,
            "auto",
            "weights in 8 or 4 bits, on a CPU; auto keeps a checkpoint as it was published",
            choices=("auto", "none", "int8", "int4"),
        ),
        Option("load_format", str, "auto", "the checkpoint's weights, or random ones", choices=("auto", "dummy")),
        Option(
            "model_impl",
            str,
            "auto",
            "our own decoder or transformers; auto takes our own where it knows the model",
            choices=("auto", "native", "transformers"),
        ),
        Option(
            "attention_backend",
            str,
            "auto",
            "our own kernels, or plain PyTorch; auto is triton on a GPU, and cpu where the processor has AVX2",
            choices=("auto", "torch", "triton", "cpu"),
        ),
        Option("enforce_eager", bool, False, "no CUDA graphs: every kernel is launched on its own"),
        Option(
            "cudagraph_capture_sizes",
            list,
            [],
            "numbers of decoding sequences that get a CUDA graph; others are padded to the next one",
            aliases=("--cuda-graph-bs",),
            check=positive_numbers,
        ),
        Option("chat_template", str, "", "file with a Jinja chat template, instead of the model's own"),
        Option(
            "tool_call_parser",
            str,
            "auto",
            "how the model writes tool calls; auto looks at what its chat template makes of one",
            choices=("auto", "hermes", "llama3_json", "mistral", "json"),
        ),
        Option(
            "reasoning_parser",
            str,
            "auto",
            "how the model marks its reasoning: not at all, or by <think>; auto asks its chat template",
            choices=("auto", "none", "think"),
        ),
        Option(
            "pooling",
            str,
            "last",
            "what of a text's hidden states becomes its embedding: the last one, or their mean",
            choices=("last", "mean"),
        ),
        Option("num_threads", int, 0, "CPU threads of the model process; 0 chooses", check=at_least(0)),
        Option(
            "mock_profile",
            str,
            "instant",
            "how long the steps of --model mock take: instant, seed, linear, gpu, or a .toml file",
        ),
        Option(
            "mock_lanes", int, 1, "steps that --model mock works on at the same time; 1 is a GPU", check=at_least(1)
        ),
    ],
    "Server": [
        Option("host", str, "127.0.0.1", "address to listen on"),
        Option("port", int, 8000, "port to listen on", check=between(0, 65535)),
        Option("uds", str, "", "Unix socket to listen on, instead of a port"),
        Option("root_path", str, "", "path that a proxy puts in front of every route, such as /llm", check=root_path),
        Option(
            "api_key",
            list,
            [],
            "keys that clients may show, for all routes but /health, /ready and /metrics; repeatable",
            check=no_empty_key,
        ),
        Option("api_key_file", str, "", "file with more keys, one a line"),
        Option(
            "allowed_origins", list, [], "web origins whose pages may call this server (CORS); * is all", check=origins
        ),
        Option("ssl_certfile", str, "", "certificate of this server, in PEM: with it and its key, HTTPS is spoken"),
        Option("ssl_keyfile", str, "", "private key of that certificate, in PEM"),
        Option("ssl_ca_certs", str, "", "authorities, in PEM, one of which must have signed what a client shows"),
        Option(
            "sse_keep_alive_interval",
            float,
            0.0,
            "seconds without an event after which a stream gets a comment, so that no proxy closes it; 0 is never",
            check=at_least(0),
        ),
        Option("max_body_mib", int, 32, "largest request body, MiB", check=between(1, 48)),
        Option(
            "shutdown_timeout", float, 30.0, "seconds that running requests get to finish at SIGTERM", check=at_least(0)
        ),
        Option(
            "restart_limit",
            int,
            5,
            "times in a row that a lost process is started again before the server gives up",
            check=at_least(0),
        ),
        Option(
            "execute_timeout",
            float,
            300.0,
            "seconds without progress after which a process at work is taken for hung, and restarted",
            check=at_least(5),
        ),
        Option(
            "request_timeout",
            float,
            0.0,
            "seconds until a request ends with 504, unless its own timeout_ms says otherwise; 0 is never",
            check=at_least(0),
        ),
        Option(
            "enable_log_requests",
            bool,
            False,
            "log every step that a request makes in its life; with --log-level debug, every token as well",
            aliases=("--log-requests",),
        ),
        Option("enable_metrics", bool, True, "answer GET /metrics with the figures of all processes"),
        Option("vllm_metrics", bool, True, "show the metrics under vLLM's names as well"),
        Option("profile", str, "", "file that gets a timeline of all processes, from the server's start to its end"),
        Option("profile_dir", str, "profiles", "folder for the timelines of /start_profile"),
        Option(
            "otlp_traces_endpoint",
            str,
            "",
            "URL of an OpenTelemetry collector that gets a span for each request: http://localhost:4318/v1/traces",
            check=http_url,
        ),
        Option("tokenizer_threads", int, 2, "threads in a tokenizer: chat templates, long texts", check=at_least(1)),
        Option("gateway_workers", int, 1, "processes on the port, sharing its connections", check=between(1, 64)),
        Option("tokenizer_workers", int, 1, "processes that tokenize, sharing the requests", check=between(1, 64)),
        Option("detokenizer_workers", int, 1, "processes that make text, sharing the choices", check=between(1, 64)),
        Option("log_level", str, "info", "how much the processes say", choices=LEVELS),
        Option(
            "log_format",
            str,
            "text",
            "how they say it: lines for people, or JSON",
            choices=FORMATS,
        ),
    ],
    "Scheduler": [
        Option(
            "max_num_seqs",
            int,
            256,
            "sequences in the running batch",
            aliases=("--max-running-requests",),
            check=between(1, 65536),
        ),
        Option(
            "max_num_batched_tokens",
            int,
            2048,
            "token budget of one step: decodes and prefill chunks together",
            aliases=("--max-prefill-tokens",),
            check=at_least(1),
        ),
        Option("enable_chunked_prefill", bool, True, "cut long prompts to the token budget"),
        Option(
            "enable_prefix_caching",
            bool,
            True,
            "reuse the KV blocks of equal prefixes",
            negations=("--disable-radix-cache",),
        ),
        Option("pipeline_depth", int, 2, "steps planned before the first one's result is there", check=between(1, 8)),
        Option(
            "max_num_queued_reqs",
            int,
            1024,
            "waiting requests; more are answered with 429",
            aliases=("--max-queued-requests",),
            check=at_least(1),
        ),
        Option(
            "max_num_queued_tokens",
            int,
            0,
            "prompt tokens of waiting requests; more are answered with 429; 0 is 16 times what the KV cache holds",
            check=at_least(0),
        ),
        Option(
            "scheduling_policy",
            str,
            "fcfs",
            "who is admitted first: fcfs, priority, sjf, lpm, fair, or my_module:MyPolicy",
            aliases=("--schedule-policy",),
            check=policy_name,
        ),
        Option(
            "scheduling_aging",
            float,
            10.0,
            "seconds of waiting after which a sequence gets its share of places, whatever the policy; 0 is never",
            check=at_least(0),
        ),
        Option(
            "prefill_order",
            str,
            "mixed",
            "who is asked first: decodes, prefills, whoever is more important, or prefills in separate steps",
            choices=("decode-first", "prefill-first", "mixed", "separate"),
        ),
        Option(
            "max_num_step_seqs",
            int,
            0,
            "sequences in one step; the others of the running batch take turns; 0 is all of them",
            check=at_least(0),
        ),
        Option(
            "long_prefill_token_threshold",
            int,
            0,
            "a prefill with more tokens is long: this many a step at most; 0 is no limit",
            check=at_least(0),
        ),
        Option(
            "max_num_partial_prefills",
            int,
            0,
            "prefills in a step that do not end with it; 0 is no limit",
            check=at_least(0),
        ),
        Option("max_long_partial_prefills", int, 0, "of those, how many may be long; 0 is no limit", check=at_least(0)),
        Option(
            "prefill_delay_steps",
            int,
            0,
            "steps that an arrival may wait for others, to be prefilled together, while sequences decode",
            check=at_least(0),
        ),
        Option("step_log", str, "", "file that gets one line of JSON a step: what it held and how long it took"),
    ],
    "KV cache": [
        Option("block_size", int, 16, "tokens in one KV block", aliases=("--page-size",), check=power_of_two),
        Option(
            "num_gpu_blocks_override", int, 0, "number of KV blocks, whatever the memory; 0 chooses", check=at_least(0)
        ),
        Option("kv_cache_memory_bytes", int, 0, "memory of the KV cache; 0 chooses", check=at_least(0)),
        Option(
            "gpu_memory_utilization",
            float,
            0.9,
            "share of the GPU's memory for weights and KV cache",
            aliases=("--mem-fraction-static",),
            check=between(0.05, 1.0),
        ),
        Option(
            "kv_events_endpoint",
            str,
            "",
            "ZeroMQ address that publishes which blocks are cached, with their tokens: tcp://127.0.0.1:5557",
            check=zmq_endpoint,
        ),
        Option(
            "kv_events_replay_endpoint",
            str,
            "",
            "ZeroMQ address where those who missed some of these events get them again: tcp://127.0.0.1:5558",
            check=zmq_endpoint,
        ),
        Option("kv_events_topic", str, "", "topic that these events are published under"),
        Option(
            "kv_events_buffer_steps",
            int,
            KV_EVENTS_BUFFER_STEPS,
            "steps whose events are kept for a replay; what was before them comes as one summary",
            check=between(1, 1_000_000),
        ),
    ],
}


def all_options() -> list[Option]:
    return [option for group in OPTIONS.values() for option in group]
