"""What the ring is told of an answer that must look like something."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai
import pydantic
import pytest

from ipc.messages import STOP, Generate, GrammarPart
from tests.gateway.scripted_ring import ScriptedRing

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 2e10}}, "required": ["age"]}


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA} | fields}


CASES: list[tuple[dict[str, Any], str, Any, str]] = [
    ({"response_format": {"type": "json_object"}}, "json", {"type": "object"}, "response_format"),
    ({"response_format": json_schema()}, "json", SCHEMA, "response_format.json_schema.schema"),
    ({"response_format": json_schema(strict=True)}, "json", SCHEMA, "response_format.json_schema.schema"),
    ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA, "structured_outputs.json"),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "json", SCHEMA, "structured_outputs.json"),
    ({"structured_outputs": {"json_object": True}}, "json", {"type": "object"}, "structured_outputs.json_object"),
    ({"structured_outputs": {"regex": "(a+)+$"}}, "regex", "(a+)+$", "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["yes", 'n"']}}, "lark", 'start: "yes" | "n\\""', "structured_outputs.choice"),
    ({"structured_outputs": {"grammar": "start: x"}}, "lark", "start: x", "structured_outputs.grammar"),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "gbnf", "root ::= x", "structured_outputs.grammar"),
    ({"structured_outputs": {"regex": "a", "json_object": False}}, "regex", "a", "structured_outputs.regex"),
]  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize(("fields", "kind", "text", "param"), CASES)
async def test_the_grammar_of_a_request(
    fields: dict[str, Any], kind: str, text: Any, param: str, ring: ScriptedRing, http: aiohttp.ClientSession
) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"], STOP)
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": ["a", "b"]})):
        async with http.post(path, json=body | fields) as response:
            assert response.status == 200, await response.text()
        for _ in body.get("prompt", [1]):
            generate = await ring.next(Generate)
            [part] = generate.grammar
            assert (part.kind, part.param) == (kind, param)
            assert (json.loads(part.text) if kind == "json" else part.text) == text


@pytest.mark.asyncio
async def test_free_text_has_no_grammar(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    for fields in ({}, {"response_format": {"type": "text"}}, {"structured_outputs": None}):
        async with http.post(TEXT, json={"prompt": "a"} | fields) as response:
            assert response.status == 200
        assert (await ring.next(Generate)).grammar == []


@pytest.mark.asyncio
async def test_openais_parse(ring: ScriptedRing, client: openai.AsyncOpenAI) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    ring.script = lambda generate: ring.answer(generate, ['{"name": "Ann", ', '"age": 5}'], STOP)
    answer = await client.chat.completions.parse(model="tiny", messages=HELLO, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ann", age=5)
    [part] = (await ring.next(Generate)).grammar
    assert isinstance(part, GrammarPart)
    assert json.loads(part.text)["required"] == ["name", "age"]


@pytest.mark.asyncio
async def test_words_and_ids(ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    body = {"prompt": "a", "bad_words": ["stop it", "no"], "allowed_token_ids": [7, 3]}
    async with http.post(TEXT, json=body) as response:
        assert response.status == 200
    generate = await ring.next(Generate)
    assert generate.bad_words == ["stop it", "no"]
    assert list(generate.sampling.allowed_ids) == [7, 3]
