"""Where and how the gateway listens: a Unix socket, below a path, with clients that show certificates, kept alive."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from gateway.app import build_app
from gateway.auth import KeyRing
from gateway.root_path import without_root
from gateway.server import Port
from gateway.sse import KEEP_ALIVE
from gateway.tls import server_context
from ipc.config import GatewayConfig
from ipc.messages import Generate, Refusal
from ipc.options import OptionError, complete
from ipc.process import FatalError
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

TEXT = "/v1/completions"


def new_port(ring: ScriptedRing, root_path: str = "", config: GatewayConfig = CONFIG) -> Port:
    return Port(build_app(ring.engine, ring.view, config, KeyRing([]), ring.controls), root_path)


class TestUnixSocket:
    @pytest.mark.asyncio
    async def test_it_is_served_on_for_its_owner_alone_and_taken_away(self, ring: ScriptedRing, tmp_path: Path) -> None:
        path = tmp_path / "quintet.sock"
        ring.script = lambda generate: ring.answer(generate, ["a", "b"])
        port = new_port(ring)
        assert await port.open_unix(str(path)) == "http+unix://" + str(path).replace("/", "%2F")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as http:
            async with http.get("/health") as response:
                assert response.status == 200
            async with http.post(TEXT, json={"prompt": "x", "stream": True}) as response:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
        with pytest.raises(FatalError, match="a server listens there already"):
            await new_port(ring).open_unix(str(path))
        await port.close()
        assert not path.exists()

    @pytest.mark.asyncio
    async def test_what_a_dead_server_left_behind_is_replaced(self, ring: ScriptedRing, tmp_path: Path) -> None:
        path = tmp_path / "quintet.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        port = new_port(ring)
        await port.open_unix(str(path))
        await port.close()

    @pytest.mark.asyncio
    async def test_a_file_is_left_alone(self, ring: ScriptedRing, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("mine")
        with pytest.raises(FatalError, match="no socket"):
            await new_port(ring).open_unix(str(path))
        assert path.read_text() == "mine"
        with pytest.raises(FatalError, match="--uds"):
            await new_port(ring).open_unix(str(tmp_path / "no" / "folder"))

    def test_a_host_beside_it_is_refused(self) -> None:
        with pytest.raises(OptionError, match="--host"):
            complete({"uds": "/run/quintet.sock", "host": "0.0.0.0"})

    def test_several_gateways_cannot_share_it(self) -> None:
        with pytest.raises(OptionError, match="--gateway-workers: a Unix socket"):
            complete({"uds": "/run/quintet.sock", "gateway_workers": 2})


class TestRootPath:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/llm/v1/models", "/v1/models"),
            ("/llm", "/"),
            ("/llm?x=1", "/?x=1"),
            ("/llm/", "/"),
            ("/llmv1", "/llmv1"),
            ("/v1/models", "/v1/models"),
        ],
    )
    def test_what_is_taken_away(self, path: str, expected: str) -> None:
        assert without_root(path, "/llm") == expected

    @pytest.mark.asyncio
    async def test_routes_answer_below_it_and_without_it(self, ring: ScriptedRing) -> None:
        ring.script = lambda generate: ring.answer(generate, ["a"])
        port = new_port(ring, "/llm", replace(CONFIG, root_path="/llm"))
        url = await port.open("127.0.0.1", 0)
        async with aiohttp.ClientSession(url) as http:
            for prefix in ("/llm", ""):
                async with http.get(f"{prefix}/v1/models") as response:
                    assert response.status == 200
                async with http.post(f"{prefix}{TEXT}", json={"prompt": "x"}) as response:
                    assert response.status == 200
            async with http.get("/llmv1/models") as response:
                assert response.status == 404
            async with http.get("/llm/openapi.json") as response:
                assert (await response.json())["servers"] == [{"url": "/llm"}]
        await port.close()

    @pytest.mark.parametrize("value", ["llm", "/llm/", "/a b", "/a?b"])
    def test_what_is_no_path_is_refused(self, value: str) -> None:
        with pytest.raises(OptionError, match="--root-path"):
            complete({"root_path": value})


class TestKeepAlive:
    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, sse_keep_alive_interval=0.02)

    @pytest_asyncio.fixture
    async def answer(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> AsyncIterator[Any]:
        """A stream that has got nothing but a comment."""
        async with http.post(TEXT, json={"prompt": "x", "stream": True}) as response:
            assert response.status == 200
            assert await response.content.readline() == KEEP_ALIVE.splitlines(keepends=True)[0]
            yield response

    @pytest.mark.asyncio
    async def test_a_silent_stream_gets_comments_and_then_its_events(self, ring: ScriptedRing, answer: Any) -> None:
        generate = await ring.next(Generate)
        ring.answer(generate, ["a", "b"])
        body = await answer.read()
        assert b'"text":"ab"' in body
        assert body.endswith(b"data: [DONE]\n\n")

    @pytest.mark.asyncio
    async def test_a_refusal_behind_a_comment_is_an_event(self, ring: ScriptedRing, answer: Any) -> None:
        ring.refuse(await ring.next(Generate), Refusal(400, "invalid_request_error", "too long", "prompt"))
        body = await answer.read()
        assert b'"message":"too long"' in body
        assert body.endswith(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate that signs itself, so that it is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    return certificate, key


class TestClientCertificates:
    @pytest.mark.asyncio
    async def test_only_who_shows_one_gets_in(self, ring: ScriptedRing, files: tuple[str, str]) -> None:
        port = new_port(ring)
        url = await port.open("127.0.0.1", 0, server_context(*files, ca_certs=files[0]))
        known = ssl.create_default_context(cafile=files[0])
        known.load_cert_chain(*files)
        connector = aiohttp.TCPConnector(ssl=known)
        async with aiohttp.ClientSession(url, connector=connector) as http, http.get("/health") as response:
            assert response.status == 200
        unknown = ssl.create_default_context(cafile=files[0])
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=unknown)) as http:
                await http.get("/health")
        await port.close()

    def test_files_that_are_none(self, files: tuple[str, str], tmp_path: Path) -> None:
        (tmp_path / "bad.pem").write_text("nothing")
        for name in ("bad.pem", "missing.pem"):
            with pytest.raises(FatalError, match="--ssl-ca-certs"):
                server_context(*files, ca_certs=str(tmp_path / name))
        with pytest.raises(OptionError, match="--ssl-ca-certs"):
            complete({"ssl_ca_certs": "x"})
