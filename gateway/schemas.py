"""The request bodies of the HTTP API: names, types and ranges of the parameters that work.

Types are strict: a number is not read from a string, a boolean is no integer. Null means absent, and is gone before a
body gets here (`gateway.parameters`); integers fit 64 bits and numbers are finite (`gateway.body`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationError,
)

from gateway.body import Path, field_path
from gateway.errors import SHOWN_NAME_CHARS, ApiError, refuse, shorten
from gateway.parameters import supplied
from gateway.schema import Schema
from gateway.structure_schemas import ResponseFormat, StructuredOutputs
from gateway.tool_schemas import MAX_TOOLS, ToolCall, ToolChoice, Tools
from ipc.codec import Ids

MAX_PROMPTS = 1024
MAX_CHOICES = 128
MAX_SEQUENCES = 1024  # prompts x choices of one request
MAX_LOGPROBS = 20
MAX_TOKEN_ID = 2**31 - 1  # ids travel as 32-bit integers
MAX_BAD_WORDS = 128
MAX_TIMEOUT_MS = 7 * 24 * 3600 * 1000  # a week; a deadline in nanoseconds must fit 64 bits
MAX_METADATA = 16  # pairs; this and the lengths below are OpenAI's limits


def as_list(value: Any) -> Any:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else value


def without_nulls(value: Any) -> Any:
    """Clients send a message back as they got it, with all that it did not have as null or as an empty list."""
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if item is not None and item != []}
    return value


def _prompts(name: str) -> Callable[[Any], list[str | Ids]]:
    """What reads the field `name`: a prompt in any of its four shapes - text, texts, ids, lists of ids - as a list of
    texts or of id arrays."""

    def read(value: Any) -> list[str | Ids]:
        if type(value) is str:
            value = [value]
        if type(value) is not list:
            refuse(f"{name}: expected a string, a list of strings, a list of token ids or a list of such lists", name)
        if not value:
            refuse(f"{name}: the list is empty", name)
        if type(value[0]) is int:
            return [_ids(value, name)]
        if len(value) > MAX_PROMPTS:
            refuse(f"{name}: at most {MAX_PROMPTS} prompts in one request, got {len(value)}", name)
        prompts: list[str | Ids] = []
        for index, prompt in enumerate(value):
            where = f"{name}[{index}]" if len(value) > 1 else name
            if type(prompt) is not type(value[0]) or type(prompt) not in (str, list):
                refuse(f"{where}: expected strings only, token ids only, or lists of token ids only", where)
            if not prompt:
                refuse(f"{where}: the prompt is empty", where)
            prompts.append(prompt if type(prompt) is str else _ids(prompt, where))
        return prompts

    return read


def _ids(values: list[Any], where: str) -> Ids:
    if set(map(type, values)) != {int}:
        refuse(f"{where}: token ids must be integers", where)
    if min(values) < 0 or max(values) > MAX_TOKEN_ID:
        refuse(f"{where}: token ids must be between 0 and {MAX_TOKEN_ID}", where)
    return array("i", values)


def _ids_or_none(values: Any) -> Ids:
    if type(values) is not list:
        refuse("tokens: expected a list of token ids", "tokens")
    return _ids(values, "tokens") if values else array("i")


TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Annotated[
    list[StopString], BeforeValidator(as_list, json_schema_input_type=str | list[StopString]), Field(max_length=4)
]
BadWord = Annotated[str, Field(min_length=1, max_length=1024)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
RequestId = Annotated[str, Field(pattern=r"^[ -~]{1,256}$")]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
PromptInput = str | list[str] | list[TokenId] | list[list[TokenId]]
Prompts = Annotated[list[str | Ids], PlainValidator(_prompts("prompt"), json_schema_input_type=PromptInput)]
Inputs = Annotated[list[str | Ids], PlainValidator(_prompts("input"), json_schema_input_type=PromptInput)]


class StreamOptions(Schema):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(Schema):
    """What chat and text completions have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    stop: StopStrings = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: int | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] = Field(default_factory=dict)
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] = Field(default_factory=list)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    return_token_ids: bool = False
    request_id: RequestId | None = None
    rid: RequestId | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    priority: int = 0  # lower is more important
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None  # which replaces `user` in OpenAI's API: the fair policy takes either
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)] | None = None
    # Accepted, and nothing comes of them: no state is stored, nobody is billed.
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None


class TextPart(Schema):
    type: Literal["text"]
    text: str


def _content_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) else "a text"  # no name that the object of a client may have


Content = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[TextPart], Tag("parts"), Field(min_length=1, fail_fast=True)],
    Discriminator(_content_kind),
]


class ChatMessage(Schema):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None  # only an assistant that called tools may have none
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name of it


Messages = Annotated[list[Annotated[ChatMessage, BeforeValidator(without_nulls)]], Field(min_length=1, fail_fast=True)]


class ChatInput(Schema):
    """A conversation, and how the chat template turns it into a prompt."""

    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class ChatRequest(ChatInput, GenerationRequest):
    """POST /v1/chat/completions"""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True


class CompletionRequest(GenerationRequest):
    """POST /v1/completions"""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None  # 0 needs echo
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: int | None = None  # choices to take the best n from; here it is as many


class EmbeddingRequest(Schema):
    """POST /v1/embeddings"""

    model: str | None = None
    input: Inputs
    encoding_format: Literal["float", "base64"] = "float"
    request_id: RequestId | None = None
    priority: int = 0
    timeout_ms: Annotated[int, Field(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    user: str | None = None


class TokenizeTextRequest(Schema):
    """POST /tokenize of a text"""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatInput):
    """POST /tokenize of a conversation"""

    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Schema):
    """POST /detokenize"""

    model: str | None = None
    tokens: Annotated[Ids, PlainValidator(_ids_or_none, json_schema_input_type=list[TokenId])]


AnySchema = TypeVar("AnySchema", bound=Schema)


def parse(schema: type[AnySchema], body: dict[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> AnySchema:
    """A body as its schema. Raises ApiError 400, which tells the first thing that is wrong."""
    body = supplied(body, schema.model_fields, unsupported)
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        _refuse_first(error, body)


def _refuse_first(error: ValidationError, body: dict[str, Any]) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    name = field_path(_path_in(body, first["loc"], first["type"]))
    if first["type"] == "union_tag_invalid":
        tag, known = shorten(first["ctx"]["tag"], SHOWN_NAME_CHARS), first["ctx"]["expected_tags"]
        raise ApiError(400, f"{name}.type: {tag!r} is none of {known}", f"{name}.type")
    if first["type"] == "union_tag_not_found":
        raise ApiError(400, f"{name}.type: field required", f"{name}.type")
    if first["type"] == "extra_forbidden":
        raise ApiError(400, f"Unrecognized request argument supplied: {name}", name)
    raise ApiError(400, f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}", name)


def _path_in(body: Any, location: tuple[Any, ...], kind: str) -> Path:
    """A pydantic location without the steps that exist in the schema alone, such as the branch of a union."""
    path: list[str | int] = []
    for place, step in enumerate(location, start=1):
        if (isinstance(body, dict) and step in body) or (isinstance(body, list) and isinstance(step, int)):
            path.append(step)
            body = body[step]
        elif kind == "missing" and place == len(location):
            path.append(step)
    return tuple(path)
