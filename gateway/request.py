"""From a request body to what goes round the ring, and what its answer must show."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import refuse
from gateway.messages import plain_message
from gateway.parameters import UNSUPPORTED_CHAT, UNSUPPORTED_COMPLETION
from gateway.parsers.reader import PLAIN, Reading
from gateway.ring import RingView
from gateway.schemas import (
    MAX_SEQUENCES,
    ChatInput,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    parse,
)
from gateway.structure import grammar_of
from gateway.tenant import tenant_of
from gateway.tool_grammar import Calls, calls_of
from gateway.tool_schemas import Tool, check_tool_choice, check_tools
from ipc.codec import INT64_MAX, Ids
from ipc.config import GatewayConfig
from ipc.control_messages import ModelFiles
from ipc.messages import Generate, Output, Sampling

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for text completions; a chat may fill the context
MAX_BIAS = 100.0
MAX_TEMPLATE_KWARGS_BYTES = 64 << 10
SEED_BITS = 62  # choice i uses seed + i, which must fit 64 bits as well

# What the chat template gets from elsewhere; its extra variables must not replace these.
TEMPLATE_NAMES = ("messages", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize", "tools")


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an HTTP request says outside of its body."""

    request_id: str  # used when the body has none
    key: str  # that it shows; "" without one
    trace_context: dict[str, str] = field(default_factory=dict)  # its headers that name the trace it belongs to


@dataclass(slots=True)
class Job:
    """One HTTP request for generation, understood. Sequence `i * n + c` is choice c of prompt i."""

    model: str  # the name that the client knows it by
    request_id: str
    n: int
    generates: list[Generate]  # one a prompt; their rids are given out when they are sent
    logprobs: int  # alternatives shown beside each token; -1 shows no log-probabilities
    return_token_ids: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    metadata: dict[str, str] | None
    prompt_logprobs: int = -1  # alternatives shown beside each token of the prompt; -1 shows nothing
    echo: bool = False  # the text begins with the prompt's, and so do the log-probabilities
    prompt_texts: list[str] = field(default_factory=list)  # for the echo, one a prompt
    reading: Reading = PLAIN  # what the text may hold beside content
    reasoning_effort: str | None = None  # as the client asked for it
    trace_context: dict[str, str] = field(default_factory=dict)  # as in the envelope
    calls: Calls | None = None  # the functions that the answer may call

    @property
    def received_ns(self) -> int:
        return self.generates[0].received_ns

    @property
    def deadline_ns(self) -> int:
        """When it ends with a timeout; 0 is never."""
        return self.generates[0].deadline_ns

    @property
    def reads_prompt(self) -> bool:
        """Whether its answer tells more of its prompts than their lengths."""
        sampling = self.generates[0].sampling
        return sampling.prompt_logprobs >= 0 or bool(sampling.pooling)

    @property
    def wants_tokens(self) -> bool:
        """Whether token ids or log-probabilities are shown to the client."""
        return self.logprobs >= 0 or self.return_token_ids


def chat_job(body: dict[str, Any], envelope: Envelope, ring: RingView, config: GatewayConfig) -> Job:
    """A body of /v1/chat/completions as a job, still without what `gateway.templates` finds out. Raises ApiError."""
    request = parse(ChatRequest, body, UNSUPPORTED_CHAT)
    if request.top_logprobs is not None and not request.logprobs:
        refuse("top_logprobs: needs logprobs to be true", "top_logprobs")
    tools = request.tools or []
    check_tools(tools)
    check_tool_choice(request.tool_choice, request.parallel_tool_calls, tools)
    if tools and request.structured_outputs is not None:
        refuse("structured_outputs: cannot be given with tools; use response_format", "structured_outputs")
    if request.tool_choice == "none":
        tools = []  # a model that is not told of them calls none
    logprobs = (request.top_logprobs or 0) if request.logprobs else -1
    max_tokens = request.max_completion_tokens or request.max_tokens or 0
    job = _job(request, envelope, ring, config, [chat_map(request, tools)], max_tokens, logprobs)
    job.reasoning_effort = request.reasoning_effort
    job.calls = calls_of(tools, request.tool_choice, request.parallel_tool_calls)
    job.reading = Reading(
        tools=frozenset(tool.function.name for tool in tools),
        parallel_calls=request.parallel_tool_calls,
        show_reasoning=request.include_reasoning,
    )
    return job


def completion_job(body: dict[str, Any], envelope: Envelope, ring: RingView, config: GatewayConfig) -> Job:
    """A body of /v1/completions as a job. Raises ApiError."""
    request = parse(CompletionRequest, body, UNSUPPORTED_COMPLETION)
    if request.best_of not in (None, request.n):
        refuse(
            f"best_of: all choices are given and none is the best; leave it out, or ask for n={request.n}", "best_of"
        )
    count = len(request.prompt)
    if request.n * count > MAX_SEQUENCES:
        refuse(f"n: {request.n} choices for each of {count} prompts are more than {MAX_SEQUENCES} sequences", "n")
    model = ring.admit()
    for index, prompt in enumerate(request.prompt):
        if not isinstance(prompt, str):
            where = f"prompt[{index}]" if count > 1 else "prompt"
            check_prompt_ids(prompt, model, where, room=0 if request.max_tokens == 0 else 1)
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        refuse("max_tokens: 0 asks for nothing but the prompt, and that needs echo to be true", "max_tokens")
    logprobs = -1 if request.logprobs is None else request.logprobs
    shows_prompt = request.echo and logprobs >= 0
    if shows_prompt and request.stream:
        refuse("echo: with logprobs there is no stream, for the prompt's come all at once", "echo")
    if shows_prompt and not model.reads_prompts:
        refuse(f"echo: with logprobs it needs a model, and {model.name} computes nothing", "echo")
    job = _job(request, envelope, ring, config, request.prompt, max_tokens, logprobs)
    job.echo = request.echo
    for generate in job.generates:
        generate.sampling.prompt_only = max_tokens == 0
        if shows_prompt:
            generate.sampling.prompt_logprobs = max(generate.sampling.prompt_logprobs, logprobs)
    return job


def chat_map(request: ChatInput, tools: list[Tool]) -> dict[str, Any]:
    """The conversation as plain data for the tokenizer, absent fields left out; contents are texts or text parts.

    The model is told of `tools`. Raises ApiError 400.
    """
    kwargs = request.chat_template_kwargs
    for name in TEMPLATE_NAMES:
        if name in kwargs:
            refuse(f"chat_template_kwargs.{name}: not a variable of the template", f"chat_template_kwargs.{name}")
    if len(orjson.dumps(kwargs)) > MAX_TEMPLATE_KWARGS_BYTES:
        refuse(f"chat_template_kwargs: larger than {MAX_TEMPLATE_KWARGS_BYTES} bytes", "chat_template_kwargs")
    if request.continue_final_message and request.add_generation_prompt:
        refuse(
            "continue_final_message: the final message is continued or a new one is begun, not both",
            "continue_final_message",
        )
    if request.add_generation_prompt is None:
        add_generation_prompt = not request.continue_final_message
    else:
        add_generation_prompt = request.add_generation_prompt
    chat: dict[str, Any] = {
        "messages": [plain_message(message, f"messages[{index}]") for index, message in enumerate(request.messages)],
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": request.continue_final_message,
        "chat_template_kwargs": kwargs,
    }
    if tools:
        chat["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    return chat


def _job(
    request: GenerationRequest,
    envelope: Envelope,
    ring: RingView,
    config: GatewayConfig,
    prompts: Sequence[str | Ids | dict[str, Any]],
    max_tokens: int,
    logprobs: int,
) -> Job:
    name = ring.name_for(request.model)
    options = request.stream_options
    if options is not None and not request.stream:
        refuse("stream_options: needs stream to be true", "stream_options")
    if request.prompt_logprobs is not None:
        if request.stream:
            refuse("prompt_logprobs: there is no stream of them; set stream to false", "prompt_logprobs")
        if not ring.admit().reads_prompts:
            refuse(f"prompt_logprobs: needs a model, and {name} computes nothing", "prompt_logprobs")
    if request.request_id and request.rid and request.request_id != request.rid:
        refuse("rid: is another name of request_id, and they differ", "rid")
    request_id = request.request_id or request.rid or envelope.request_id
    sampling = _sampling(request, ring.admit(), max_tokens, logprobs)
    grammar = grammar_of(request.response_format, request.structured_outputs)
    if grammar and request.allowed_token_ids is not None:
        refuse("allowed_token_ids: the output follows a grammar already, which allows other ids", "allowed_token_ids")
    output = Output(
        stop=request.stop,
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        whole=not request.stream,
        prompt_ids=request.return_token_ids,
    )
    check_priority(request.priority, config.scheduling_policy)
    tenant = tenant_of(envelope.key, request.user or request.prompt_cache_key or "")
    now = time.monotonic_ns()
    deadline = deadline_ns(now, request.timeout_ms, config.request_timeout)
    generates = [
        Generate(
            rid=0,
            request_id=request_id,
            n=request.n,
            text=prompt if isinstance(prompt, str) else None,
            ids=prompt if isinstance(prompt, array) else None,
            chat=prompt if isinstance(prompt, dict) else None,
            sampling=sampling,
            output=output,
            priority=request.priority,
            cache_salt=request.cache_salt or "",
            received_ns=now,
            tenant=tenant,
            deadline_ns=deadline,
            grammar=grammar,
            bad_words=request.bad_words,
        )
        for prompt in prompts
    ]
    return Job(
        model=name,
        request_id=request_id,
        n=request.n,
        generates=generates,
        logprobs=logprobs,
        return_token_ids=request.return_token_ids,
        stream=request.stream,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        metadata=request.metadata,
        trace_context=envelope.trace_context,
        prompt_logprobs=sampling.prompt_logprobs,
    )


def check_priority(priority: int, policy: str) -> None:
    """Refuse a priority that nobody would read; what a custom policy reads is its own business."""
    if priority and policy != "priority" and ":" not in policy:
        refuse(
            f"priority: the scheduling policy of this server is {policy}, which reads no priority; start it with"
            " --scheduling-policy priority",
            "priority",
        )


def deadline_ns(now_ns: int, timeout_ms: int | None, default_s: float) -> int:
    """When a request ends with a timeout: by its own word, else by the server's; 0 is never."""
    if timeout_ms is not None:
        return now_ns + timeout_ms * 1_000_000
    return now_ns + round(default_s * 1e9) if default_s else 0


def _sampling(request: GenerationRequest, model: ModelFiles, max_tokens: int, logprobs: int) -> Sampling:
    """How to sample: the client's word, else the model's own default, else OpenAI's."""

    def choose(given: Any, name: str, neutral: float) -> Any:
        return model.defaults.get(name, neutral) if given is None else given

    temperature = float(choose(request.temperature, "temperature", 1.0))
    if request.n > 1 and temperature == 0:
        refuse("n: more than one choice needs a temperature above 0, or all choices are the same", "n")
    longest = max_tokens if max_tokens or request.max_tokens == 0 else model.max_model_len
    if request.min_tokens > longest:
        refuse(f"min_tokens: {request.min_tokens} is more than the {longest} tokens of the output", "min_tokens")
    top_k = choose(request.top_k, "top_k", 0)
    bias = _bias(request.logit_bias, model)
    return Sampling(
        temperature=temperature,
        top_k=top_k if 0 < top_k < model.vocab_size else 0,
        top_p=float(choose(request.top_p, "top_p", 1.0)),
        min_p=float(choose(request.min_p, "min_p", 0.0)),
        repetition_penalty=float(choose(request.repetition_penalty, "repetition_penalty", 1.0)),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        bias_ids=array("i", bias.keys()),
        bias_values=list(bias.values()),
        allowed_ids=_checked_ids(request.allowed_token_ids or [], model, "allowed_token_ids"),
        seed=_seed(request),
        logprobs=logprobs,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        stop_token_ids=_checked_ids(request.stop_token_ids, model, "stop_token_ids"),
        ignore_eos=request.ignore_eos,
        prompt_logprobs=-1 if request.prompt_logprobs is None else request.prompt_logprobs,
    )


def _seed(request: GenerationRequest) -> int:
    if request.seed is None:
        return random.getrandbits(SEED_BITS)
    if request.seed > INT64_MAX - (request.n - 1):
        refuse("seed: choice i uses seed + i, which must fit 64 bits", "seed")
    return request.seed


def _bias(logit_bias: dict[str, float], model: ModelFiles) -> dict[int, float]:
    bias = {}
    for key, value in logit_bias.items():
        where = f"logit_bias.{key}"
        # A canonical decimal number: int() would read " 5", "+5" and "0_5" as well.
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key):
            refuse(f"{where}: the key must be a token id", where)
        if int(key) >= model.vocab_size:
            refuse(f"{where}: the token id must be below {model.vocab_size}, the size of the vocabulary", where)
        bias[int(key)] = max(-MAX_BIAS, min(MAX_BIAS, value))
    return bias


def _checked_ids(token_ids: list[int], model: ModelFiles, name: str) -> Ids:
    for index, token_id in enumerate(token_ids):
        if token_id >= model.vocab_size:
            where = f"{name}[{index}]"
            refuse(f"{where}: the token id must be below {model.vocab_size}, the size of the vocabulary", where)
    return array("i", token_ids)


def check_prompt_ids(ids: Ids, model: ModelFiles, where: str, room: int = 1) -> None:
    """Refuse a prompt that does not leave `room` tokens for its output, or that the model cannot read."""
    if len(ids) + room > model.max_model_len:
        limit = f"the context of {model.max_model_len} tokens"
        refuse(
            f"{where}: {len(ids)} tokens " + (f"leave no room for output in {limit}" if room else f"exceed {limit}"),
            where,
        )
    if max(ids) >= model.vocab_size:
        refuse(f"{where}: token ids must be below {model.vocab_size}, the size of the vocabulary", where)
