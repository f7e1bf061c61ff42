"""The catalogue of bad inputs, case by case: what each is answered with, in the one error body, while the server lives.

1 empty body · 2 not JSON · 3 truncated JSON · 4 nested too deeply · 5 not finite · 6 beyond 64 bits · 7 huge n ·
8 too many sequences · 9 max_tokens and the context · 10 empty prompts · 11 too long · 12 bad token ids ·
13 logit_bias · 14 stop strings · 15 sampling ranges · 16 regular expressions · 17 schemas · 18 messages ·
19 bad text · 20 unknown parameters · 21 what does not go together · 22 heads · 23 keys · 24 model names

What of 9, 11, 16 and 17 takes a tokenizer to find out is in `tests/e2e/test_structured.py`, by the same numbers.
"""

from __future__ import annotations

import threading
from array import array
from dataclasses import replace
from functools import reduce
from itertools import count
from typing import Any, NamedTuple

import aiohttp
import orjson
import pytest

from gateway import body
from gateway.errors import shorten
from ipc.config import GatewayConfig
from ipc.messages import Generate
from tests.gateway.answers import talk
from tests.gateway.conftest import MAX_BODY_BYTES
from tests.gateway.scripted_ring import CONFIG, ScriptedRing

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
PROMPT: dict[str, Any] = {"prompt": "x"}
JSON = {"Content-Type": "application/json"}


class Case(NamedTuple):
    number: int
    path: str
    body: dict[str, Any] | bytes
    status: int = 400
    param: str | None = None
    message: str = ""  # part of it
    headers: dict[str, str] = JSON


def chat(number: int, param: str | None, **fields: Any) -> Case:
    return Case(number, CHAT, HELLO | fields, param=param)


def text(number: int, param: str | None, **fields: Any) -> Case:
    return Case(number, TEXT, PROMPT | fields, param=param)


def tool(parameters: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def raw(number: int, data: bytes, param: str | None = None) -> Case:
    return Case(number, CHAT, data, param=param)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
DEEP = reduce(lambda inner, _: {"items": inner}, range(32), dict[str, Any]())  # 33 levels
MANY_KEYS = {str(number): 1 for number in range(10**5)}

REFUSED = [
    raw(1, b""),
    raw(2, b"hello"),
    Case(2, CHAT, b"{}", 415, headers={"Content-Type": "text/plain"}),
    raw(3, b'{"messages": [{"role": "user", "content": "a"}'),
    raw(4, b"[" * 10**5),
    raw(4, b'{"metadata":' * 10**4),
    raw(5, b'{"messages":[],"temperature":NaN}', "temperature"),
    raw(5, b'{"messages":[],"top_p":Infinity}', "top_p"),
    raw(5, b'{"messages":[],"min_p":1e400}', "min_p"),
    chat(6, "seed", seed=2**63),
    chat(6, "max_tokens", max_tokens=2**64 - 1),
    raw(6, b'{"messages":[],"extra":[1%s]}' % (b"0" * 40), "extra[0]"),
    text(7, "n", n=10**9),
    text(8, "n", prompt=["x"] * 1024, n=2),
    text(9, "max_tokens", max_tokens=-1),
    text(9, "max_tokens", max_tokens=0),
    text(10, "prompt", prompt=""),
    text(10, "prompt", prompt=[]),
    Case(10, CHAT, {"messages": []}, param="messages"),
    Case(11, TEXT, PROMPT | {"prompt": [1] * 1001}, param="prompt", message="1001"),
    Case(11, TEXT, b'{"prompt": "' + b"x" * MAX_BODY_BYTES + b'"}', 413),
    text(12, "prompt", prompt=[-1]),
    text(12, "prompt", prompt=[500]),
    text(12, "prompt", prompt=[1.0]),
    text(12, "prompt", prompt=[True]),
    chat(13, "logit_bias.500", logit_bias={"500": 1}),
    chat(13, "logit_bias.a", logit_bias={"a": 1}),
    chat(13, "logit_bias", logit_bias=dict(list(MANY_KEYS.items())[:2000])),
    chat(13, None, logit_bias=MANY_KEYS),
    chat(14, "stop", stop=""),
    chat(14, "stop", stop=["x"] * 10**4),
    chat(14, None, stop=["x"] * 10**5),
    chat(14, "stop", stop="x" * 10**6),
    chat(15, "temperature", temperature=-1),
    chat(15, "temperature", temperature=1e9),
    chat(15, "top_p", top_p=0),
    chat(16, "structured_outputs.regex", structured_outputs={"regex": "x" * 10**6}),
    chat(17, "structured_outputs.json", structured_outputs={"json": {"title": "x" * (64 << 10)}}),
    chat(17, shorten("structured_outputs.json" + ".items" * 32, 100), structured_outputs={"json": DEEP}),
    chat(17, "structured_outputs.json.maximum", structured_outputs={"json": {"maximum": "2e10"}}),
    chat(17, "tools[0].function.parameters.type", tools=tool({"type": "something"})),
    chat(17, "tools[0].function.parameters.properties.x.type", tools=tool({"properties": {"x": {"type": 5}}})),
    chat(17, "tools[0].function.parameters.properties.x.pattern", tools=tool({"properties": {"x": {"pattern": "("}}})),
    chat(17, "tools[0].function.parameters.pattern", tools=tool({"pattern": "x" * 4097})),
    chat(17, "tools[0].function.parameters", tools=tool([])),
    Case(18, CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, param="messages[0].role"),
    Case(18, CHAT, {"messages": [{"role": "tool", "content": "x"}]}, param="messages[0].tool_call_id"),
    Case(18, CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, param="messages[0].content[0].type"),
    raw(19, b'{"messages":[{"role":"user","content":"\\ud800"}]}'),
    raw(19, b'{"messages":[{"role":"user","content":"\xff"}]}'),
    chat(20, "nonsense", nonsense=1),
    Case(20, CHAT, HELLO | {"guided_json": {}}, param="guided_json", message="structured_outputs.json"),
    chat(21, "stream_options", stream_options={"include_usage": True}),
    text(21, "logprobs", logprobs=10**6),
    text(21, "prompt_logprobs", prompt_logprobs=1, stream=True),
    Case(24, CHAT, HELLO | {"model": "other"}, 404, "model"),
    Case(24, CHAT, HELLO | {"model": "../../etc/passwd"}, 404, "model"),
    Case(24, CHAT, HELLO | {"model": "x" * 10**5}, 404, "model", "xxx..."),
]


@pytest.mark.asyncio
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"case {case.number}")
async def test_it_is_refused_and_starts_nothing(ring: ScriptedRing, http: aiohttp.ClientSession, case: Case) -> None:
    data = case.body if isinstance(case.body, bytes) else orjson.dumps(case.body)
    async with http.post(case.path, data=data, headers=case.headers) as response:
        assert response.status == case.status, await response.text()
        error = (await response.json())["error"]
    kinds = {404: "not_found_error"}
    assert (error["code"], error["type"]) == (case.status, kinds.get(case.status, "invalid_request_error"))
    assert error["param"] == case.param, error["message"]
    assert case.message in error["message"]
    assert 0 < len(error["message"]) <= 1000
    assert ring.sent == []
    async with http.get("/health") as response:
        assert response.status == 200


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("number", "content"), [(19, "a\0b"), (19, "<|im_end|>")], ids=["case 19: NUL", "case 19: special tokens"]
)
async def test_it_is_text_like_any_other(
    ring: ScriptedRing, http: aiohttp.ClientSession, number: int, content: str
) -> None:
    ring.script = lambda generate: ring.answer(generate, ["x"])
    async with http.post(CHAT, json={"messages": [{"role": "user", "content": content}]}) as response:
        assert response.status == 200
    generate = await ring.next(Generate)
    assert generate.chat is not None
    assert generate.chat["messages"][0]["content"] == content


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 10**7 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(1000)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    ],
    ids=["case 22: 10 MB", "case 22: 1000 headers", "case 22: no Host"],
)
async def test_a_head_beyond_the_limits(url: str, head: bytes) -> None:
    answer = await talk(url, head)
    assert answer.split()[1] == b"400"
    assert b'"type":"invalid_request_error"' in answer


@pytest.mark.asyncio
async def test_requests_in_one_piece_are_answered_in_their_order(ring: ScriptedRing, url: str) -> None:
    """Case 22, pipelined: each has its answer before the next one gets one, whatever it is."""
    numbers = count(1)
    ring.script = lambda generate: ring.answer(generate, [f"answer {next(numbers)}"])
    post = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    good = orjson.dumps(PROMPT)
    bad = orjson.dumps(PROMPT | {"n": 0})
    answer = await talk(
        url,
        b"".join(post % (TEXT.encode(), len(data), data) for data in (good, bad, good))
        + b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200", b"404"]
    assert answer.index(b"answer 1") < answer.index(b'"param":"n"') < answer.index(b"answer 2")


class TestExpectation:
    """Case 22: who asks before sending a body is told to go on, or what is wrong with the head alone."""

    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, api_key=["key"])

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        ("key", "length", "status"),
        [("key", 2, 100), ("wrong", 2, 401), ("key", MAX_BODY_BYTES + 1, 413)],
        ids=["case 22: go on", "case 22: 401 before the body", "case 22: 413 before the body"],
    )
    async def test_before_the_body(
        self, url: str, key: str, length: int, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.server.LINGER_S", 0.05)
        head = [f"POST {TEXT} HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json"]
        head += [f"Content-Length: {length}", "Expect: 100-continue", "Connection: close", "", ""]
        body = b"{}" if status == 100 else b""
        answer = await talk(url, "\r\n".join(head).encode() + body)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        after = answer.split(b"HTTP/1.1 ")[-1]
        assert after.split()[0] == (b"400" if status == 100 else b"%d" % status)
        assert b'"error":{"message":' in after


class TestLargeBodies:
    """Cases 11 and 13 at full size, with the limits that a server has by itself."""

    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, max_body_mib=32)

    @pytest.mark.asyncio
    async def test_case_11_200_mb(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.server.LINGER_S", 0.05)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        answer = await talk(url, f'{head}Content-Length: {200 * 10**6}\r\n\r\n{{"prompt": "'.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":413' in answer

    @pytest.mark.asyncio
    async def test_case_13_a_million_keys(self, ring: ScriptedRing, http: aiohttp.ClientSession) -> None:
        data = orjson.dumps(PROMPT | {"logit_bias": {str(number): 1 for number in range(10**6)}})
        async with http.post(TEXT, data=data, headers=JSON) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"
        assert ring.sent == []


class TestKeys:
    """Case 23."""

    @pytest.fixture
    def config(self) -> GatewayConfig:
        return replace(CONFIG, api_key=["clé"])

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            ([], 401),
            (["Authorization: Bearer wrong"], 401),
            (["Authorization: Basic clé"], 401),
            (["Authorization: Bearer \xff"], 401),
            (["Authorization: bEaReR clé"], 200),
            (["Authorization: Bearer clé", "Authorization: Bearer clé"], 400),
        ],
    )
    async def test_what_is_shown(self, url: str, lines: list[str], status: int) -> None:
        head = "\r\n".join(["GET /v1/models HTTP/1.1", "Host: x", "Connection: close", *lines, "", ""])
        answer = await talk(url, head.encode())
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (b"WWW-Authenticate: Bearer" in answer) == (status == 401)


@pytest.mark.asyncio
async def test_a_large_body_is_understood_beside_the_event_loop(
    ring: ScriptedRing, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[int, bool] = {}
    parse = body.parse_object

    def spied(data: bytes) -> dict[str, Any]:
        threads[len(data)] = threading.current_thread() is threading.main_thread()
        return parse(data)

    monkeypatch.setattr(body, "parse_object", spied)
    ring.script = lambda generate: ring.answer(generate, ["x"])
    for prompt in ([7] * 10, [[7] * 900] * 50):
        async with http.post(TEXT, json={"prompt": prompt}) as response:
            assert response.status == 200, await response.text()
    assert [on_loop for _, on_loop in sorted(threads.items())] == [True, False]
    sent = [generate.ids for generate in ring.sent if isinstance(generate, Generate)]
    assert sent == [array("i", [7] * 10)] + [array("i", [7] * 900)] * 50
