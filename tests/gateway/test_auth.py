"""Keys, origins and certificates: who may use the server, and how it says no."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from gateway.app import build_app
from gateway.auth import KeyRing, is_public, load_keys
from gateway.server import Port
from gateway.tls import server_context
from ipc.config import GatewayConfig
from ipc.options import OptionError, from_command_line
from ipc.process import FatalError
from tests.gateway.answers import talk
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

TEXT = "/v1/completions"
ROUTES = [
    ("POST", TEXT),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/loads"),
    ("GET", "/version"),
    ("GET", "/flush_cache"),
    ("POST", "/flush_cache"),
    ("GET", "/v1/requests/x"),
    ("GET", "/nowhere"),
    ("DELETE", "/v1/models"),
    ("OPTIONS", TEXT),
]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class TestKeys:
    @pytest.fixture
    def config(self, tmp_path: Path) -> GatewayConfig:
        file = tmp_path / "keys"
        file.write_bytes("third key\n\n  schlüssel  \n".encode())
        return replace(CONFIG, api_key=["first", "second"], api_key_file=str(file))

    @pytest.mark.asyncio
    @pytest.mark.parametrize(("method", "path"), ROUTES)
    async def test_every_route_needs_one(self, http: aiohttp.ClientSession, method: str, path: str) -> None:
        for headers in ({}, bearer("wrong"), bearer("firs"), bearer(""), {"Authorization": "Basic Zmlyc3Q="}):
            async with http.request(method, path, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                error = (await response.json())["error"]
            assert (error["type"], error["param"], error["code"]) == ("authentication_error", None, 401)
            assert list(error) == ["message", "type", "param", "code"]
            assert "firs" not in error["message"]

    @pytest.mark.asyncio
    @pytest.mark.parametrize("path", ["/health", "/ready"])
    async def test_but_for_the_open_ones(self, http: aiohttp.ClientSession, path: str) -> None:
        async with http.get(path) as response:
            assert response.status == 200

    @pytest.mark.asyncio
    @pytest.mark.parametrize("key", ["first", "second", "third key", "schlüssel"])
    async def test_all_that_are_known_are_accepted(self, http: aiohttp.ClientSession, key: str) -> None:
        for scheme in ("Bearer", "bearer", "BEARER"):
            async with http.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}) as response:
                assert response.status == 200

    @pytest.mark.asyncio
    async def test_bytes_that_are_not_text_are_a_wrong_key(self, url: str) -> None:
        request = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
        assert (await talk(url, request)).startswith(b"HTTP/1.1 401 ")

    @pytest.mark.asyncio
    async def test_two_headers(self, url: str) -> None:
        lines = b"Authorization: Bearer first\r\n" * 2
        answer = await talk(url, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"param":"Authorization"' in answer

    @pytest.mark.asyncio
    async def test_it_is_asked_for_before_the_body(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.server.LINGER_S", 0.05)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        answer = await talk(url, f"{head}Expect: 100-continue\r\nContent-Length: 99\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 401 ")

    @pytest.mark.asyncio
    async def test_the_client(self, ring: ScriptedRing, url: str) -> None:
        ring.script = lambda generate: ring.answer(generate, ["x"])
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="second", max_retries=0) as client:
            assert (await client.completions.create(model="tiny", prompt="x")).choices[0].text == "x"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.completions.create(model="tiny", prompt="x")

    @pytest.mark.asyncio
    async def test_no_key_is_ever_logged(self, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            for key in ("first", "nearly-right"):
                async with http.get("/v1/models", headers=bearer(key)):
                    pass
        assert "first" not in caplog.text
        assert "nearly-right" not in caplog.text


@pytest.mark.asyncio
async def test_without_keys_everybody_is_let_in(http: aiohttp.ClientSession) -> None:
    for headers in ({}, bearer("whatever")):
        async with http.get("/v1/models", headers=headers) as response:
            assert response.status == 200


class TestSources:
    def test_command_line_and_environment(self) -> None:
        assert from_command_line(["--api-key", "a", "--api-key", "b", "c"], {})["api_key"] == ["a", "b", "c"]
        assert from_command_line([], {"QUINTET_API_KEY": "a b"})["api_key"] == ["a", "b"]

    def test_an_empty_key_is_refused_and_the_others_are_not_shown(self) -> None:
        with pytest.raises(OptionError) as caught:
            from_command_line(["--api-key", "secret", ""], {})
        assert str(caught.value) == "--api-key: a key is empty"

    def test_files_that_hold_no_key(self, tmp_path: Path) -> None:
        with pytest.raises(FatalError, match="No such file"):
            load_keys([], str(tmp_path / "nowhere"))
        (tmp_path / "empty").write_text("\n \n")
        with pytest.raises(FatalError, match="there is no key in it"):
            load_keys([], str(tmp_path / "empty"))

    def test_none(self) -> None:
        assert not load_keys([], "")
        assert load_keys(["a"], "")

    @pytest.mark.parametrize(
        ("host", "public"),
        [
            ("127.0.0.1", False),
            ("127.8.0.1", False),
            ("::1", False),
            ("localhost", False),
            ("0.0.0.0", True),
            ("::", True),
            ("10.0.0.7", True),
            ("server.example", True),
            ("", True),
        ],
    )
    def test_public_addresses(self, host: str, public: bool) -> None:
        assert is_public(host) is public


class TestCors:
    @pytest.fixture(params=[["https://a.example", "http://b.example:3000"], ["*"]], ids=["listed", "all"])
    def config(self, request: pytest.FixtureRequest) -> GatewayConfig:
        return replace(CONFIG, api_key=["k"], allowed_origins=request.param)

    @pytest.mark.asyncio
    async def test_an_allowed_page(self, http: aiohttp.ClientSession) -> None:
        origin = {"Origin": "https://a.example"}
        question = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with http.options(TEXT, headers=origin | question) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
            assert response.headers["Access-Control-Allow-Methods"] == "POST"
            assert response.headers["Access-Control-Allow-Headers"] == "authorization"
        for headers, status in (({}, 401), (bearer("k"), 200)):
            async with http.get("/v1/models", headers=origin | headers) as response:
                assert response.status == status, "errors are for the page to read as well"
                assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
                assert response.headers["Vary"] == "Origin"
                assert "Access-Control-Allow-Credentials" not in response.headers

    @pytest.mark.asyncio
    async def test_a_page_that_is_not(self, ring: ScriptedRing) -> None:
        config = replace(CONFIG, allowed_origins=["https://a.example"])
        port = Port(build_app(ring.engine, ring.view, config, KeyRing(["k"])))
        async with aiohttp.ClientSession(await port.open("127.0.0.1", 0)) as http:
            await self.assert_kept_out(http)
        await port.close()

    async def assert_kept_out(self, http: aiohttp.ClientSession) -> None:
        for origin in ("https://evil.example", "https://a.example.evil.example", "null", "http://a.example"):
            async with http.get("/v1/models", headers=bearer("k") | {"Origin": origin}) as response:
                assert "Access-Control-Allow-Origin" not in response.headers
            question = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            async with http.options(TEXT, headers=question) as response:
                assert response.status == 401


@pytest.mark.asyncio
async def test_cors_is_off_by_default(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models", headers={"Origin": "https://a.example"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Vary" not in response.headers
    question = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    async with http.options(TEXT, headers=question) as response:
        assert response.status == 405


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://a.example/page", "null", ""])
def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(OptionError, match="--allowed-origins"):
        from_command_line(["--allowed-origins", origin], {})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    return certificate, key


class TestTls:
    @pytest.mark.asyncio
    async def test_it_is_spoken(self, ring: ScriptedRing, files: tuple[str, str]) -> None:
        ring.script = lambda generate: ring.answer(generate, ["a", "b"])
        port = Port(build_app(ring.engine, ring.view, CONFIG, KeyRing([])))
        url = await port.open("127.0.0.1", 0, server_context(*files))
        assert url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=files[0])
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=trust)) as http:
            body: dict[str, Any] = {"prompt": "x", "stream": True}
            async with http.post(TEXT, json=body) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, aiohttp.ClientError)):
            async with aiohttp.ClientSession(url.replace("https", "http")) as http, http.get("/health"):
                pass
        await port.close()

    def test_what_cannot_be_used(self, files: tuple[str, str], tmp_path: Path) -> None:
        certificate, key = files
        with pytest.raises(FatalError, match="No such file"):
            server_context(certificate, str(tmp_path / "nowhere"))
        with pytest.raises(FatalError, match="--ssl-keyfile"):
            server_context(certificate, certificate)
        locked = str(tmp_path / "locked.pem")
        subprocess.run(
            ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked],
            check=True,
            capture_output=True,
        )
        with pytest.raises(FatalError, match="needs a password"):
            server_context(certificate, locked)

    def test_both_or_neither(self) -> None:
        for name in ("certfile", "keyfile"):
            with pytest.raises(OptionError, match="both are needed"):
                from_command_line([f"--ssl-{name}", "x"], {})
        assert server_context("", "") is None
