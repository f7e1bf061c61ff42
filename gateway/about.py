"""What the server, its model and its tokenizer are: /server_info, /model_info, /tokenizer_info, /version, /ping."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.json_response import json_response
from gateway.ring import RingView
from ipc.config import GatewayConfig
from ipc.control_messages import ModelFiles

SECRETS = ("api_key", "api_key_file", "ssl_keyfile")


class About:
    """The handlers."""

    def __init__(self, ring: RingView, config: GatewayConfig) -> None:
        self._ring = ring
        self._config = config

    async def ping(self, request: web.Request) -> web.Response:
        """What SageMaker asks: whether this process lives."""
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        return json_response({"version": server_version()})

    async def server_info(self, request: web.Request) -> web.Response:
        """The model, and the gateway's options but for what is secret. Raises ApiError 503 before it is ready."""
        model = self._ring.admit()
        options = {name: value for name, value in asdict(self._config).items() if name not in SECRETS}
        has_key = bool(self._config.api_key or self._config.api_key_file)
        return json_response(
            {"version": server_version(), "needs_api_key": has_key, "options": options} | self._model(model)
        )

    async def model_info(self, request: web.Request) -> web.Response:
        return json_response(self._model(self._ring.admit()))

    async def tokenizer_info(self, request: web.Request) -> web.Response:
        """What the model's files say of its tokenizer, the chat template included. Raises ApiError 503."""
        model = self._ring.admit()
        return json_response(await asyncio.to_thread(tokenizer_info, model, self._config.chat_template))

    def _model(self, model: ModelFiles) -> dict[str, Any]:
        return {
            "model": model.name,
            "served_model_names": self._ring.names,
            "max_model_len": model.max_model_len,
            "vocab_size": model.vocab_size,
            "default_sampling_params": model.defaults,
        }


def tokenizer_info(model: ModelFiles, template_file: str) -> dict[str, Any]:
    """The special tokens and the chat template, null where the model has none. Reads files."""
    folders = [Path(folder) for folder in (model.folder, model.tokenizer_folder) if folder]
    settings: dict[str, Any] = {}
    template = None
    for folder in folders:
        if (file := folder / "tokenizer_config.json").is_file():
            settings |= json.loads(file.read_text(encoding="utf-8"))
        if (file := folder / "chat_template.jinja").is_file():
            template = file.read_text(encoding="utf-8")
    if template_file:
        template = Path(template_file).read_text(encoding="utf-8")
    return {
        "tokenizer_class": settings.get("tokenizer_class"),
        "bos_token": _text_of(settings.get("bos_token")),
        "eos_token": _text_of(settings.get("eos_token")),
        "pad_token": _text_of(settings.get("pad_token")),
        "unk_token": _text_of(settings.get("unk_token")),
        "vocab_size": model.vocab_size,
        "model_max_length": model.max_model_len,
        "chat_template": template or settings.get("chat_template"),
    }


def server_version() -> str:
    try:
        return version("quintet")
    except PackageNotFoundError:
        return "source"  # run from a checkout that was never installed


def _text_of(token: Any) -> str | None:
    """A special token, which may be written as an object."""
    return token.get("content") if isinstance(token, dict) else token
