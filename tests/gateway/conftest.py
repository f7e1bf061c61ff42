"""Fixtures of the gateway's tests: a real HTTP port on a scripted ring, and clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
import openai
import pytest
import pytest_asyncio
import uvloop

from gateway.app import build_app
from gateway.auth import load_keys
from gateway.server import Port
from ipc.config import GatewayConfig
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

MAX_BODY_BYTES = CONFIG.max_body_mib << 20


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the gateway runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def ring() -> ScriptedRing:
    """A ring whose processes are all ready, and that answers nothing unless told to."""
    return ScriptedRing()


@pytest.fixture
def config() -> GatewayConfig:
    """What that gateway is told at its start."""
    return CONFIG


@pytest_asyncio.fixture
async def port(ring: ScriptedRing, config: GatewayConfig) -> Port:
    """The port of a gateway on that ring, still to be opened."""
    keys = load_keys(config.api_key, config.api_key_file)
    return Port(build_app(ring.engine, ring.view, config, keys, ring.controls))


@pytest_asyncio.fixture
async def url(port: Port) -> AsyncIterator[str]:
    """The address of that gateway."""
    yield await port.open("127.0.0.1", 0)
    await port.close()


@pytest_asyncio.fixture
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client of that gateway."""
    async with aiohttp.ClientSession(url) as session:
        yield session


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of that gateway."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def chat_body() -> dict[str, object]:
    """The smallest body of a chat completion."""
    return {"messages": [{"role": "user", "content": "Hello"}]}
