"""Other dialects, tools, reasoning and keys on the whole ring, through the clients that people use."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest

from benchmark.server import Server, ServerError
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import client, wait_until_idle

TEXT = "".join(WORDS)
HELLO: Any = [{"role": "user", "content": "hello"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
# The mock's vocabulary swallows up to three bytes at the end of a prompt: these are line breaks here.
THINKING = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking is not defined or enable_thinking %}<think>\n\n\n\n"
    "{% endif %}{% endif %}"
)


def test_anthropics_client(mock_server: Server) -> None:
    api = anthropic.Anthropic(base_url=mock_server.url, api_key="none", max_retries=0)
    message = api.messages.create(model="mock", max_tokens=100, messages=HELLO, system="Be kind")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": TEXT}]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 71)
    with api.messages.stream(model="mock", max_tokens=5, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "".join(WORDS[:5])
        assert stream.get_final_message().stop_reason == "max_tokens"
    counted = api.messages.count_tokens(model="mock", messages=HELLO, system="Be kind").input_tokens
    assert counted == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    with pytest.raises(anthropic.BadRequestError, match="32768"):
        api.messages.create(model="mock", max_tokens=40_000, messages=HELLO, timeout=60)
    wait_until_idle(mock_server)


def test_sglangs_native_endpoint(mock_server: Server) -> None:
    body = {"text": "hello", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}
    answer = httpx.post(f"{mock_server.url}/generate", json=body).json()
    assert answer["text"] == "".join(WORDS[:4])
    assert answer["meta_info"]["completion_tokens"] == 4


def test_tools_in_the_prompt_of_a_template_that_knows_none(mock_server: Server) -> None:
    api = client(mock_server)
    bare = api.chat.completions.create(model="mock", messages=HELLO, max_tokens=3)
    told = api.chat.completions.create(model="mock", messages=HELLO, max_tokens=3, tools=TOOLS)
    assert bare.usage is not None
    assert told.usage is not None
    assert told.usage.prompt_tokens > bare.usage.prompt_tokens + 50
    assert told.choices[0].message.content == "".join(WORDS[:3])
    with pytest.raises(openai.BadRequestError, match=r"tool_choice.*mock"):
        api.chat.completions.create(model="mock", messages=HELLO, tools=TOOLS, tool_choice="required")


def test_the_embedded_model_calls_a_tool(real_server: Server) -> None:
    """A model this small follows when it is shown how: its own earlier calls are in the prompt."""
    api = client(real_server)
    messages: list[Any] = []
    for number, city in enumerate(("Rome", "Oslo", "Paris")):
        function = {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "sunny"},
            {"role": "assistant", "content": f"It is sunny in {city}."},
        ]
    messages.append({"role": "user", "content": "What is the weather in London?"})
    arguments: dict[str, Any] = {
        "model": "smol",
        "messages": messages,
        "tools": TOOLS,
        "temperature": 0,
        "max_tokens": 40,
    }
    answer = api.chat.completions.create(**arguments)
    calls = answer.choices[0].message.tool_calls
    assert calls is not None, answer.choices[0].message.content
    assert calls[0].type == "function"
    assert (calls[0].function.name, calls[0].function.arguments) == ("get_weather", '{"city": "London"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    with api.chat.completions.stream(**arguments) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None
    assert streamed[0].function.arguments == '{"city": "London"}'


def test_reasoning_that_the_template_opens(tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    with Server(model="mock", chat_template=str(template)) as server:
        body: dict[str, Any] = {"model": "mock", "messages": HELLO}
        url = f"{server.url}/v1/chat/completions"
        answer = httpx.post(url, json=body).json()
        assert answer["choices"][0]["message"] == {
            "role": "assistant", "content": "", "reasoning_content": TEXT.strip()
        }  # fmt: skip
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 71
        for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
            answer = httpx.post(url, json=body | fields).json()
            assert answer["choices"][0]["message"] == {"role": "assistant", "content": TEXT}
        info = httpx.get(f"{server.url}/tokenizer_info").json()
        assert info["chat_template"] == THINKING


def test_keys_and_https(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True, capture_output=True,
    )  # fmt: skip
    trust = ssl.create_default_context(cafile=certificate)
    with Server(model="mock", api_key="secret-key", ssl_keyfile=key, ssl_certfile=certificate) as server:
        assert server.url.startswith("https://")
        with httpx.Client(verify=trust) as session:
            assert session.get(f"{server.url}/ready").status_code == 200
            assert session.get(f"{server.url}/v1/models").status_code == 401
            for key, accepted in (("secret-key", True), ("other", False)):
                api = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=session)
                if accepted:
                    assert api.models.list().data[0].id == "mock"
                else:
                    with pytest.raises(openai.AuthenticationError):
                        api.models.list()
        assert server.stop() == 0
        assert "secret-key" not in "".join(server.log)


def test_half_of_what_https_needs_is_one_clear_line() -> None:
    with pytest.raises(ServerError, match="both are needed"), Server(model="mock", ssl_keyfile="x"):
        pass
