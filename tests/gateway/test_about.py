"""What the server says of itself, and of what it has not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from gateway.about import tokenizer_info
from gateway.unbuilt import UNBUILT
from ipc.config import GatewayConfig
from tests.gateway.scripted_ring import CONFIG, MODEL, ScriptedRing


class TestServerInfo:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, api_key=["secret-key"], max_body_mib=2)

    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
    async def test_options_but_for_secrets(self, http: aiohttp.ClientSession, path: str) -> None:
        async with http.get(path, headers={"Authorization": "Bearer secret-key"}) as response:
            text = await response.text()
        assert "secret-key" not in text
        answer = json.loads(text)
        assert answer["needs_api_key"] is True
        assert answer["options"]["max_body_mib"] == 2
        assert (answer["model"], answer["max_model_len"], answer["served_model_names"]) == ("tiny", 1000, ["tiny"])


@pytest.mark.asyncio
async def test_model_info_and_ping(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.get("/model_info") as response:
        assert (await response.json())["vocab_size"] == 500
    for method in ("GET", "POST"):
        async with http.request(method, "/ping") as response:
            assert (response.status, await response.read()) == (200, b"")
    ring.set_states(model="starting")
    async with http.get("/server_info") as response:
        assert response.status == 503


@pytest.mark.asyncio
async def test_the_mock_has_no_tokenizer_files(http: aiohttp.ClientSession) -> None:
    async with http.get("/tokenizer_info") as response:
        answer = await response.json()
    assert (answer["eos_token"], answer["chat_template"], answer["model_max_length"]) == (None, None, 1000)


def test_tokenizer_info(tmp_path: Path) -> None:
    settings = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "old", "tokenizer_class": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = replace(MODEL, tokenizer_folder=str(tmp_path), folder=str(tmp_path))
    answer = tokenizer_info(model, "")
    assert (answer["eos_token"], answer["bos_token"], answer["pad_token"]) == ("</s>", "<s>", None)
    assert (answer["chat_template"], answer["tokenizer_class"]) == ("old", "T")
    (tmp_path / "chat_template.jinja").write_text("new")
    assert tokenizer_info(model, "")["chat_template"] == "new"
    (tmp_path / "own").write_text("own")
    assert tokenizer_info(model, str(tmp_path / "own"))["chat_template"] == "own"


@pytest.mark.asyncio
@pytest.mark.parametrize("path", UNBUILT)
async def test_known_but_not_built(http: aiohttp.ClientSession, path: str) -> None:
    for method in ("GET", "POST"):
        async with http.request(method, path, json={}) as response:
            assert response.status == 501
            assert response.headers["x-should-retry"] == "false"
            error = (await response.json())["error"]
        assert (error["type"], error["code"]) == ("not_supported_error", 501)
        assert path in error["message"]
