"""/openapi.json: all routes, and the schemas that are checked."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from gateway.app import build_app
from gateway.auth import KeyRing
from gateway.openapi import BODIES
from gateway.unbuilt import UNBUILT
from tests.gateway.scripted_ring import CONFIG, ScriptedRing


@pytest.mark.asyncio
async def test_every_route_is_described(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        description = await response.json()
    assert description["openapi"] == "3.1.0"
    app = build_app(ring.engine, ring.view, CONFIG, KeyRing([]), ring.controls)
    routes = {resource.canonical for resource in app.router.resources()}
    assert set(description["paths"]) == routes - set(UNBUILT)
    assert set(BODIES) <= set(description["paths"])
    names = [operation["operationId"] for methods in description["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


@pytest.mark.asyncio
async def test_every_reference_leads_somewhere(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        description = await response.json()
    text = json.dumps(description)
    assert "$defs" not in text
    for reference in {part.split('"')[1] for part in text.split('"$ref": ')[1:]}:
        found: Any = description
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert isinstance(found, dict)


@pytest.mark.asyncio
async def test_bodies_and_keys(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as response:
        description = await response.json()
    paths, schemas = description["paths"], description["components"]["schemas"]
    chat = schemas["ChatRequest"]
    assert chat["additionalProperties"] is False
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert chat["properties"]["length_penalty"]["enum"] == [1, 1.0, None]
    assert {"type": "string"} in schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    reference = paths["/v1/messages"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert reference == {"$ref": "#/components/schemas/MessagesRequest"}
    assert paths["/health"]["get"]["security"] == []
    assert paths["/v1/models"]["get"]["security"] == [{"bearer": []}]
    assert paths["/v1/responses/{id}"]["get"]["parameters"][0]["name"] == "id"
