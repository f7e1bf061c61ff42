"""The shapes of answers, for /openapi.json: what the tests hold every answer against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls"]
PromptLogprobs = list[dict[str, dict[str, Any]] | None]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CachedTokens(Answer):
    cached_tokens: int


class ReasoningTokens(Answer):
    reasoning_tokens: int


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens | None = None


class Timings(Answer):
    """Milliseconds; null is what has not happened."""

    tokenize_ms: float | None
    queue_ms: float | None
    batch_wait_ms: float | None
    prefill_ms: float | None
    ttft_ms: float | None
    decode_ms: float | None
    total_ms: float | None
    execution_ms: float
    tokens_per_second: float | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    batch_id: int | None
    batch_size: float


class Metrics(Answer):
    queue_time_ms: float | None
    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None


class Function(Answer):
    name: str
    arguments: str


class Call(Answer):
    id: str
    type: Literal["function"]
    function: Function


class Message(Answer):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class TokenLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    content: list[ChosenLogprob]
    refusal: None


class Choice(Answer):
    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None = None


class ChatChoice(Choice):
    message: Message
    logprobs: ChatLogprobs | None


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Choice):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Generation(Answer):
    id: str
    created: int
    model: str
    usage: Usage
    timings: Timings
    metrics: Metrics | None


class ChatCompletion(Generation):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Generation):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class PromptUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class Tokens(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TextOfTokens(Answer):
    prompt: str


class TokenCount(Answer):
    input_tokens: int


class Version(Answer):
    version: str


class ModelInfo(Answer):
    model: str
    served_model_names: list[str]
    max_model_len: int
    vocab_size: int
    default_sampling_params: dict[str, Any]


class ServerInfo(ModelInfo):
    version: str
    needs_api_key: bool
    options: dict[str, Any]


class TokenizerInfo(Answer):
    tokenizer_class: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    vocab_size: int
    model_max_length: int
    chat_template: str | list[Any] | None


class InFlight(Answer):
    requests: int
    sequences: int
    look_ups: int


class Loads(Answer):
    prefill_queue_len: int
    decode_queue_len: int
    running_queue_len: int
    inflight_requests: int
    inflight_batches: int
    busy_lanes: int
    idle_lanes: int
    processes: dict[str, dict[str, Any]]
    in_flight: InFlight


ANSWERS: dict[str, type[Answer]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": EmbeddingList,
    "/v1/messages/count_tokens": TokenCount,
    "/v1/models": ModelList,
    "/v1/models/{name}": ModelCard,
    "/tokenize": Tokens,
    "/detokenize": TextOfTokens,
    "/version": Version,
    "/server_info": ServerInfo,
    "/model_info": ModelInfo,
    "/tokenizer_info": TokenizerInfo,
    "/v1/loads": Loads,
}
"""The 200 answers that have one shape, by path; `gateway.dialects.answer_schemas` has those of the other dialects."""
