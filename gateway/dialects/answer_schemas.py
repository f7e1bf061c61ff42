"""The shapes of the other dialects' answers, for /openapi.json, as `gateway.answer_schemas` has those of OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from gateway.answer_schemas import Answer, CachedTokens, ReasoningTokens

# -- /v1/responses ------------------------------------------------------------------------------------------------

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(Answer):
    type: Literal["reasoning_text"]
    text: str


class OutputItem(Answer):
    id: str
    status: ItemStatus


class OutputMessage(OutputItem):
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(OutputItem):
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]


class OutputCall(OutputItem):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResponseFailure(Answer):
    code: str
    message: str


class Incomplete(Answer):
    reason: Literal["max_output_tokens"]


class Effort(Answer):
    effort: str | None
    summary: None


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseObject(Answer):
    id: str
    object: Literal["response"]
    created_at: int
    status: ItemStatus | Literal["failed", "cancelled"]
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: Effort
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


# -- /v1/messages -------------------------------------------------------------------------------------------------


class ThinkingOutput(Answer):
    type: Literal["thinking"]
    thinking: str
    signature: str


class TextOutput(Answer):
    type: Literal["text"]
    text: str


class ToolUseOutput(Answer):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(Answer):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageObject(Answer):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[ThinkingOutput | TextOutput | ToolUseOutput, Field(discriminator="type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


# -- /generate ----------------------------------------------------------------------------------------------------


class LengthReason(Answer):
    type: Literal["length"]
    length: int


class StopReason(Answer):
    type: Literal["stop"]
    matched: str | int | None


TokenEntry = tuple[float | None, int, str | None]  # log-probability, token id, text


class MetaInfo(Answer):
    id: str
    finish_reason: Annotated[LengthReason | StopReason, Field(discriminator="type")]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    e2e_latency: float
    input_token_logprobs: list[TokenEntry] | None = None
    input_top_logprobs: list[list[TokenEntry] | None] | None = None
    output_token_logprobs: list[TokenEntry] | None = None
    output_top_logprobs: list[list[TokenEntry]] | None = None


class Generated(Answer):
    text: str
    meta_info: MetaInfo


class GeneratedOrList(RootModel[Generated | list[Generated]]):
    """An object for the only sequence of a request, a list where there may be several."""


DIALECT_ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/responses": ResponseObject,
    "/v1/responses/{id}": ResponseObject,
    "/v1/responses/{id}/cancel": ResponseObject,
    "/v1/messages": MessageObject,
    "/generate": GeneratedOrList,
}
