"""The description of the HTTP API at /openapi.json (OpenAPI 3.1), made from its routes and from the very schemas that
check the bodies of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway import answer_schemas
from gateway.about import server_version
from gateway.auth import ANTHROPIC_ROUTES, OPEN_ROUTES
from gateway.dialects import anthropic_schemas, responses_schemas, sglang_schemas
from gateway.dialects.answer_schemas import DIALECT_ANSWERS
from gateway.json_response import json_response
from gateway.log_level import LogLevelRequest
from gateway.parameters import UNSUPPORTED_CHAT, UNSUPPORTED_COMPLETION, UNSUPPORTED_EMBEDDING, UNSUPPORTED_TOKENIZE
from gateway.profiling import routes as profiling
from gateway.profiling.routes import ProfileRequest
from gateway.schema import Schema
from gateway.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
)
from gateway.unbuilt import not_built

Unsupported = Mapping[str, tuple[Any, ...]]

# What the body of a request may be, and which known parameters it may have at neutral values only.
BODIES: dict[str, tuple[tuple[type[Schema], ...], Unsupported]] = {
    "/v1/chat/completions": ((ChatRequest,), UNSUPPORTED_CHAT),
    "/v1/completions": ((CompletionRequest,), UNSUPPORTED_COMPLETION),
    "/v1/embeddings": ((EmbeddingRequest,), UNSUPPORTED_EMBEDDING),
    "/v1/responses": ((responses_schemas.ResponsesRequest,), responses_schemas.UNSUPPORTED),
    "/v1/messages": ((anthropic_schemas.MessagesRequest,), anthropic_schemas.UNSUPPORTED),
    "/v1/messages/count_tokens": ((anthropic_schemas.PromptRequest,), anthropic_schemas.UNSUPPORTED),
    "/generate": ((sglang_schemas.GenerateBody,), sglang_schemas.UNSUPPORTED),
    "/tokenize": ((TokenizeTextRequest, TokenizeChatRequest), UNSUPPORTED_TOKENIZE),
    "/detokenize": ((DetokenizeRequest,), {}),
    "/start_profile": ((ProfileRequest,), profiling.UNSUPPORTED),
    "/log_level": ((LogLevelRequest,), {}),
}
ANSWERS: dict[str, type[BaseModel]] = {**answer_schemas.ANSWERS, **DIALECT_ANSWERS}
STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate")
EMPTY_BODIES = ("/start_profile",)  # whose body may be missing
NO_CONTENT = ("/health", "/ping")
REF = "#/components/schemas/{model}"


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """Every error, but for Anthropic's routes."""

    error: ErrorDetail


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Every error of Anthropic's routes."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


class OpenApi:
    """The handler. The description is made once, when it is first asked for."""

    def __init__(self, app: web.Application, root_path: str) -> None:
        self._app = app
        self._root_path = root_path
        self._description: dict[str, Any] | None = None

    async def openapi(self, request: web.Request) -> web.Response:
        """This description."""
        if self._description is None:
            self._description = describe(self._app, self._root_path)
        return json_response(self._description)


def describe(app: web.Application, root_path: str = "") -> dict[str, Any]:
    """The API of an application below a path: all its routes but pages for browsers and those that are not built."""
    models: list[type[BaseModel]] = [model for models, _ in BODIES.values() for model in models]
    models += [ErrorBody, AnthropicErrorBody, *ANSWERS.values()]
    references, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    refs = {model: reference for (model, _), reference in references.items()}
    schemas = definitions["$defs"]
    for models_of, unsupported in BODIES.values():
        for model in models_of:
            _add_neutral_values(schemas[_name_in(refs[model])], unsupported)
    _add_neutral_values(schemas[sglang_schemas.SamplingParams.__name__], sglang_schemas.UNSUPPORTED_SAMPLING)
    paths: dict[str, dict[str, Any]] = {}
    for route in app.router.routes():
        resource = route.resource
        if resource is None or route.handler is not_built or route.method in (hdrs.METH_HEAD, hdrs.METH_ANY):
            continue
        path = resource.canonical
        paths.setdefault(path, {})[route.method.lower()] = _operation(path, route, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quintet", "version": server_version()},
        "servers": [{"url": root_path or "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(path: str, route: web.AbstractRoute, refs: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    error = refs[AnthropicErrorBody if path in ANTHROPIC_ROUTES else ErrorBody]
    answer = refs[ANSWERS[path]] if path in ANSWERS else {}
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if path in STREAMS:
        content["text/event-stream"] = {}  # OpenAPI describes single events from 3.2 on, which few tools read
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}{path}".translate(_NAME_CHARACTERS).strip("_"),
        "summary": (route.handler.__doc__ or path).strip().splitlines()[0],
        "responses": {
            "200": {"description": "OK"} | ({} if path in NO_CONTENT else {"content": content}),
            "default": {"description": "An error", "content": {"application/json": {"schema": error}}},
        },
        "security": _security(path),
    }
    if parameters := [part[1:-1] for part in path.split("/") if part.startswith("{")]:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if path in BODIES and route.method != hdrs.METH_GET:
        models, _ = BODIES[path]
        schema = refs[models[0]] if len(models) == 1 else {"anyOf": [refs[model] for model in models]}
        operation["requestBody"] = {
            "required": path not in EMPTY_BODIES,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _security(path: str) -> list[dict[str, list[str]]]:
    if path in OPEN_ROUTES:
        return []
    return [{"bearer": []}, {"x-api-key": []}] if path in ANTHROPIC_ROUTES else [{"bearer": []}]


def _add_neutral_values(schema: dict[str, Any], unsupported: Unsupported) -> None:
    for name, values in unsupported.items():
        schema["properties"][name] = {"enum": [*values, None], "description": "Not supported at other values."}


def _name_in(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


_NAME_CHARACTERS = str.maketrans("/{}.-", "_____")
