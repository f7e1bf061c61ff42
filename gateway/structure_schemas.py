"""What a client may ask an answer to look like: `response_format` and `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.schema import Schema

MAX_REGEX_CHARS = 4096
MAX_GRAMMAR_CHARS = 64 << 10
MAX_ALTERNATIVES = 1024
MAX_ALTERNATIVE_CHARS = 1024

Regex = Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS)]
GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Alternative = Annotated[str, Field(min_length=1, max_length=MAX_ALTERNATIVE_CHARS)]
SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchema(Schema):
    name: SchemaName
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None  # the schema is always followed


class TextFormat(Schema):
    type: Literal["text"]


class JsonObjectFormat(Schema):
    type: Literal["json_object"]


class JsonSchemaFormat(Schema):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Schema):
    """vLLM's way to say it: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")  # a schema, or the text of one
    regex: Regex | None = None
    choice: Annotated[list[Alternative], Field(min_length=1, max_length=MAX_ALTERNATIVES)] | None = None
    grammar: GrammarText | None = None  # Lark's notation or GBNF
    json_object: bool | None = None
