"""The request body of OpenAI's Responses API: names, types and ranges of the fields that work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from gateway.schema import Schema
from gateway.schemas import (
    MAX_METADATA,
    MetadataKey,
    MetadataValue,
    ReasoningEffort,
    RequestId,
    without_nulls,
)
from gateway.structure_schemas import JsonObjectFormat, SchemaName, TextFormat
from gateway.tool_schemas import MAX_TOOLS, FunctionName

# Known fields that do not work here -> the values, beside null, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "context_management": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_retention": (),
    "stream_options": ({"include_obfuscation": False},),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


class TextPart(Schema):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[Any] = Field(default_factory=list, max_length=0)


def _content_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) else "a text"  # no name that the object of a client may have


Text = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[TextPart], Tag("parts"), Field(fail_fast=True)],
    Discriminator(_content_kind),
]
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Schema):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text
    id: str | None = None
    status: Status | None = None


class FunctionCallItem(Schema):
    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(Schema):
    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=256)]
    output: Text
    id: str | None = None
    status: Status | None = None


class ReasoningText(Schema):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Schema):
    type: Literal["reasoning"]
    content: list[ReasoningText] = Field(default_factory=list)
    summary: list[Any] = Field(default_factory=list, max_length=0)
    id: str | None = None
    status: Status | None = None


def _item_kind(value: Any) -> str:
    """A message need not say that it is one."""
    return str(value.get("type", "message")) if isinstance(value, dict) else "message"


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_item_kind),
    BeforeValidator(without_nulls),
]


class FunctionTool(Schema):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Schema):
    type: Literal["function"]
    name: str


def _choice_kind(value: Any) -> str:
    return "mode" if isinstance(value, str) else "named"


class JsonSchemaFormat(Schema):
    type: Literal["json_schema"]
    name: SchemaName
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None  # the schema is always followed


class TextOptions(Schema):
    verbosity: Literal["medium"] | None = None
    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None


class ReasoningOptions(Schema):
    effort: ReasoningEffort | None = None
    summary: None = None  # nobody here writes one


class ResponsesRequest(Schema):
    """POST /v1/responses"""

    model: str | None = None
    input: Annotated[
        Annotated[str, Tag("a text"), Field(min_length=1)]
        | Annotated[list[Item], Tag("parts"), Field(min_length=1, fail_fast=True)],
        Discriminator(_content_kind),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool = False
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("mode")] | Annotated[NamedTool, Tag("named")],
            Discriminator(_choice_kind),
        ]
        | None
    ) = None
    parallel_tool_calls: bool = True
    text: Annotated[TextOptions, BeforeValidator(without_nulls)] | None = None
    reasoning: Annotated[ReasoningOptions, BeforeValidator(without_nulls)] | None = None
    request_id: RequestId | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None  # which replaces `user` in OpenAI's API: the fair policy takes either
    # Accepted, and nothing comes of them: no state is stored, nobody is billed.
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
