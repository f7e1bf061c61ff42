"""Endpoints that other servers have and this one has not: 501 says so, where 404 would look like a wrong address."""

from __future__ import annotations

from aiohttp import web

from gateway.errors import ApiError

UNBUILT = (
    "/v1/conversations",
    "/v1/messages/batches",
    "/v1/responses/compact",
    "/v1/responses/input_tokens",
    "/v1/rerank",
    "/v1/score",
    "/v1/classify",
    "/v1/moderations",
    "/v1/batches",
    "/v1/files",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/embeddings",
    "/rerank",
    "/score",
    "/pooling",
    "/classify",
    "/encode",
    "/inference/v1/generate",
    "/sleep",
    "/wake_up",
    "/api/chat",
    "/api/generate",
)


async def not_built(request: web.Request) -> web.Response:
    raise ApiError(501, f"{request.path} is not built into this server")
