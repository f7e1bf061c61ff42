"""From what a client asks an answer to look like to the grammar that the runner makes the model follow."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.body import parse_object
from gateway.errors import ApiError, refuse
from gateway.json_schema import check_schema
from gateway.structure_schemas import (
    MAX_GRAMMAR_CHARS,
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
    TextFormat,
)
from ipc.messages import GrammarPart
from ipc.structured import ANSWER, grammar_part

Grammar = list[GrammarPart]


def grammar_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> Grammar:
    """What the whole text must follow; empty when it is free. Raises ApiError 400."""
    if isinstance(response_format, TextFormat):
        response_format = None
    if response_format is not None and structured is not None:
        refuse("structured_outputs: response_format is given as well; leave one of them out", "structured_outputs")
    if structured is not None:
        return _structured(structured)
    match response_format:
        case JsonObjectFormat():
            return [grammar_part("json_object", True, "response_format")]
        case JsonSchemaFormat(json_schema=wanted):
            return [json_part(ANSWER, wanted.schema_, "response_format.json_schema.schema")]
    return []


def json_part(name: str, schema: dict[str, Any], param: str) -> GrammarPart:
    """A part that is JSON of a schema, which `param` names. Raises ApiError 400."""
    check_schema(schema, param)
    return GrammarPart(name, "json", orjson.dumps(schema).decode(), param)


def _structured(wanted: StructuredOutputs) -> Grammar:
    given = [name for name in wanted.model_fields_set if getattr(wanted, name) not in (None, False)]
    if len(given) != 1:
        refuse(
            f"structured_outputs: give exactly one of json, regex, choice, grammar and json_object, not {len(given)}",
            "structured_outputs",
        )
    name = given[0].removesuffix("_")
    param = f"structured_outputs.{name}"
    if wanted.json_ is not None:
        schema = _schema(wanted.json_, param)
        check_schema(schema, param)
        return [grammar_part(name, schema, param)]
    part = grammar_part(name, getattr(wanted, name), param)
    if len(part.text) > MAX_GRAMMAR_CHARS:
        refuse(f"{param}: the texts are longer than {MAX_GRAMMAR_CHARS} characters together", param)
    return [part]


def _schema(given: dict[str, Any] | str, param: str) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        return parse_object(given.encode())
    except ApiError as error:
        raise ApiError(400, f"{param}: not the text of a JSON schema: {error.message}", param) from None
