"""Answers that must look like something, from the embedded model through the whole server, with OpenAI's client."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import anthropic
import httpx2 as httpx
import jsonschema
import openai
import pydantic
import pytest

from benchmark.server import Server
from scheduler_proc.grammars import MAX_IDLE
from tests.e2e.conftest import async_client, client, scheduler_stats, wait_until_idle

ASK: Any = [{"role": "user", "content": "Invent a person."}]


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=16)
    age: int = pydantic.Field(ge=0, le=120)
    mood: Literal["happy", "sad"]
    friends: list[Literal["Ann", "Bob"]] = pydantic.Field(max_length=2)


def test_parse_with_pydantic(real_server: Server) -> None:
    answer = client(real_server).chat.completions.parse(
        model="smol", messages=ASK, response_format=Person, temperature=1, seed=3, max_tokens=120
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Person)


def test_a_stream_of_a_parsed_answer(real_server: Server) -> None:
    options: Any = {"model": "smol", "messages": ASK, "response_format": Person, "seed": 4, "max_tokens": 120}
    with client(real_server).chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("structured", "texts"),
    [
        ({"choice": ["red", "green\n"]}, ["red", "green\n"]),
        ({"regex": "[ab]{2}"}, ["aa", "ab", "ba", "bb"]),
        ({"grammar": 'start: "x" | "y"'}, ["x", "y"]),
        ({"grammar": 'root ::= "x" | "y"'}, ["x", "y"]),
        ({"json": {"enum": [1, None]}}, ["1", "null"]),
    ],
)
def test_structured_outputs(real_server: Server, structured: dict[str, Any], texts: list[str]) -> None:
    answer = client(real_server).completions.create(
        model="smol", prompt="Say it:", n=4, seed=1, max_tokens=20, extra_body={"structured_outputs": structured}
    )
    assert {choice.text for choice in answer.choices} <= set(texts)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_any_object(real_server: Server) -> None:
    answer = client(real_server).chat.completions.create(
        model="smol", messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=200
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    assert (choice.message.content or "").startswith("{")


def test_bad_schemas_are_refused_and_harm_nobody(real_server: Server) -> None:
    api = client(real_server)
    for schema, said in (
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "#"}, "asks for itself"),
        ({"not": {"type": "string"}}, "not"),
    ):
        with pytest.raises(openai.BadRequestError, match=said) as raised:
            api.completions.create(
                model="smol", prompt="x", max_tokens=4, extra_body={"structured_outputs": {"json": schema}}
            )
        assert raised.value.param == "structured_outputs.json"
    wait_until_idle(real_server)


@pytest.mark.parametrize(
    ("body", "param", "numbers"),
    [
        pytest.param({"prompt": [1] * 900, "max_tokens": 10**5}, "max_tokens", ("900", "100000"), id="case 9"),
        pytest.param({"prompt": "a b c d " * 10**4}, "prompt", ("40001",), id="case 11"),
    ],
)
def test_what_the_context_has_no_room_for(
    real_server: Server, body: dict[str, Any], param: str, numbers: tuple[str, ...]
) -> None:
    response = httpx.post(f"{real_server.url}/v1/completions", json=body, timeout=20)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert all(number in error["message"] for number in numbers), error["message"]


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("structured", "said"),
    [
        pytest.param({"regex": "(a+)+$"}, None, id="case 16: nested repetition"),
        pytest.param({"regex": r"(a)\1"}, "backreferences", id="case 16: what no automaton can read"),
        pytest.param({"json": {"type": "integer", "minimum": 0, "maximum": 2e10}}, None, id="case 17: 2e10"),
        pytest.param({"json": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"}}, None, id="case 17: recursive"),
        pytest.param({"json": {"$ref": "#"}}, "asks for itself", id="case 17: nothing but recursion"),
        pytest.param({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum", id="case 17: impossible"),
        pytest.param({"json": {"$ref": "file:///etc/passwd"}}, "not present", id="case 17: a file"),
    ],
)
def test_what_a_grammar_may_be(real_server: Server, structured: dict[str, Any], said: str | None) -> None:
    """Of the cases of `tests/gateway/test_input_cases.py`: a 200, or a 400 that names what is wrong."""
    body = {"model": "smol", "prompt": "x", "max_tokens": 4, "structured_outputs": structured}
    response = httpx.post(f"{real_server.url}/v1/completions", json=body, timeout=20)
    assert response.status_code == (200 if said is None else 400), response.text
    if said is not None:
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", 400)
        assert error["param"] == f"structured_outputs.{next(iter(structured))}"
        assert said in error["message"]
    wait_until_idle(real_server)


@pytest.mark.asyncio
async def test_structured_requests_among_free_ones_and_aborts(real_server: Server) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 2e10}}, "required": ["n"]}
    closed: Any = schema | {"additionalProperties": False}

    async def free(seed: int) -> str:
        answer = await api.completions.create(model="smol", prompt="One day", seed=seed, max_tokens=24)
        return answer.choices[0].text

    async def structured(seed: int) -> str:
        answer = await api.completions.create(
            model="smol", prompt="A number:", seed=seed, max_tokens=40,
            extra_body={"structured_outputs": {"json": closed}},
        )  # fmt: skip
        return answer.choices[0].text if answer.choices[0].finish_reason == "stop" else '{"n": 0}'

    async with async_client(real_server) as api:
        alone = [await free(seed) for seed in range(4)]
        gone = asyncio.create_task(structured(99))
        mixed = await asyncio.gather(*(each(seed) for seed in range(4) for each in (free, structured)))
        gone.cancel()
    assert mixed[::2] == alone
    for text in mixed[1::2]:
        jsonschema.validate(json.loads(text), schema)
    wait_until_idle(real_server)


@pytest.mark.asyncio
async def test_more_grammars_than_are_kept(real_server: Server) -> None:
    async def only(text: str) -> str:
        structured = {"structured_outputs": {"choice": [text]}}
        answer = await api.completions.create(model="smol", prompt="x", max_tokens=8, extra_body=structured)
        return answer.choices[0].text

    texts = [f"n{number}" for number in range(MAX_IDLE + 16)]
    async with async_client(real_server) as api:
        for _ in range(2):  # the second time some are there, and some are compiled again
            assert await asyncio.gather(*map(only, texts)) == texts
    assert scheduler_stats(real_server)["grammars"] <= MAX_IDLE + len(texts)


def test_bad_words_and_allowed_tokens(real_server: Server) -> None:
    api = client(real_server)
    options: Any = {"model": "smol", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    assert "Paris" in api.completions.create(**options).choices[0].text
    for word in ("Paris", " Paris"):
        text = api.completions.create(**options, extra_body={"bad_words": [word]}).choices[0].text
        assert "Paris" not in text
    body: Any = {"allowed_token_ids": [100, 200], "return_token_ids": True}
    choice = api.completions.create(**options, extra_body=body).choices[0].to_dict()
    assert set(choice["token_ids"]) <= {100, 200}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
    ],
)
def test_the_mock_refuses_by_name(mock_server: Server, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError, match="mock") as raised:
        client(mock_server).completions.create(model="mock", prompt="x", extra_body=fields)
    assert raised.value.param == param


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_call_that_must_be(real_server: Server, choice: Any) -> None:
    api = client(real_server)
    options: Any = {
        "model": "smol", "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice, "seed": 2, "max_tokens": 64,
        "parallel_tool_calls": False,
    }  # fmt: skip
    whole = api.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls
    [call] = whole.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    # And in pieces.
    pieces, names, reasons = "", [], []
    for chunk in api.chat.completions.create(stream=True, **options):
        [piece] = chunk.choices
        for delta in piece.delta.tool_calls or []:
            assert delta.function is not None
            names += [delta.function.name] if delta.function.name else []
            pieces += delta.function.arguments or ""
        reasons += [piece.finish_reason] if piece.finish_reason else []
    assert (names, pieces, reasons) == (["get_weather"], call.function.arguments, ["tool_calls"])


def test_strict_arguments(real_server: Server) -> None:
    """Whatever else it says: a call that it makes follows the schema."""
    api = client(real_server)
    strict: Any = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    for seed in range(3):
        choice = api.chat.completions.create(
            model="smol", messages=QUESTION, tools=[strict, CLOCK], seed=seed, max_tokens=32
        ).choices[0]
        for call in choice.message.tool_calls or [] if choice.finish_reason == "tool_calls" else []:
            assert call.type == "function"
            if call.function.name == "get_weather":
                jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def test_the_other_dialects(real_server: Server) -> None:
    api = client(real_server)
    parsed = api.responses.parse(model="smol", input="Invent a person.", text_format=Person, max_output_tokens=120)
    assert parsed.status == "incomplete" or isinstance(parsed.output_parsed, Person)
    with anthropic.Anthropic(base_url=real_server.url, api_key="none", max_retries=0) as claude:
        answer = claude.messages.create(
            model="smol", max_tokens=64, messages=QUESTION, tool_choice={"type": "tool", "name": "get_weather"},
            tools=[{"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}],
        )  # fmt: skip
    [block] = answer.content
    assert block.type == "tool_use"
    jsonschema.validate(block.input, WEATHER["function"]["parameters"])
    assert answer.stop_reason == "tool_use"
    body = {"text": "A digit:", "sampling_params": {"regex": "[0-9]", "max_new_tokens": 8}}
    assert httpx.post(f"{real_server.url}/generate", json=body).json()["text"] in set("0123456789")
