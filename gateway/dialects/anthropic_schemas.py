"""The request bodies of Anthropic's Messages API: names, types and ranges of the fields that work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.schema import Schema
from gateway.schemas import StopString
from gateway.tool_schemas import MAX_TOOLS, FunctionName

# Known fields that do not work here -> the values, beside null, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "container": (),
    "context_management": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "speed": ("standard",),
}


class CacheControl(Schema):
    """Where a prefix that will come again ends. All prefixes are cached here, so nothing needs to be done."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Schema):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ThinkingBlock(Schema):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""  # not needed: the text is there


class ToolUseBlock(Schema):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    name: FunctionName
    input: dict[str, Any]
    cache_control: CacheControl | None = None


def _content_kind(value: Any) -> str:
    return "blocks" if isinstance(value, list) else "a text"  # no name that the object of a client may have


Text = Annotated[
    Annotated[str, Tag("a text")] | Annotated[list[TextBlock], Tag("blocks"), Field(fail_fast=True)],
    Discriminator(_content_kind),
]


class ToolResultBlock(Schema):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: Text = ""
    is_error: bool = False
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class Message(Schema):
    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("a text")] | Annotated[list[Block], Tag("blocks"), Field(min_length=1, fail_fast=True)],
        Discriminator(_content_kind),
    ]


class Tool(Schema):
    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Schema):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(Schema):
    """How the model is to reason. To switch it on with a budget is refused: nothing here could keep to it."""

    type: Literal["adaptive", "disabled", "enabled"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Schema):
    """What the text follows."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Schema):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Schema):
    user_id: str | None = None


class PromptRequest(Schema):
    """POST /v1/messages/count_tokens"""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    system: Text | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(PromptRequest):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
