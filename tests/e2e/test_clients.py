"""Clients that programs are written for, from their own packages, against the real processes."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from benchmark.server import Server
from ipc.mock_vocabulary import WORDS
from tests.e2e.conftest import client, wait_until_idle

TEXT = "".join(WORDS)
KEY = SecretStr("none")
HELLO: Any = [{"role": "user", "content": "hello"}]


def langchain(server: Server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key=KEY, model="mock", max_retries=0, **options)


def test_langchain_chats_whole_and_streamed(mock_server: Server) -> None:
    chat = langchain(mock_server, temperature=0.5, max_tokens=5)
    messages = [SystemMessage("Be brief"), HumanMessage("hello")]
    answer = chat.invoke(messages)
    assert answer.content == "".join(WORDS[:5])
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 5
    chunks = list(langchain(mock_server, max_tokens=5, stream_usage=True).stream(messages))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 5
    assert len(chat.batch(["one", "two", "three"])) == 3
    wait_until_idle(mock_server)


def test_langchain_asks_for_tools(mock_server: Server) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    answer = langchain(mock_server, max_tokens=4).bind_tools([weather]).invoke("hello")
    assert answer.content == "".join(WORDS[:4])


def test_langchain_completes_and_embeds(mock_server: Server, real_server: Server) -> None:
    text = OpenAI(base_url=f"{mock_server.url}/v1", api_key=KEY, model="mock", max_tokens=4)
    assert text.invoke("hello") == "".join(WORDS[:4])
    # It sends token ids of a vocabulary of its own, unless told to send the texts.
    embeddings = OpenAIEmbeddings(
        base_url=f"{real_server.url}/v1", api_key=KEY, model="smol", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["a cat", "a dog"])
    assert len(vectors) == 2
    assert abs(sum(value * value for value in vectors[0]) - 1) < 1e-3
    assert embeddings.embed_query("a cat") == vectors[0]


def test_openais_streaming_helpers_and_responses(mock_server: Server) -> None:
    api = client(mock_server)
    with api.chat.completions.stream(model="mock", messages=HELLO) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == stream.get_final_completion().choices[0].message.content == TEXT
    whole = api.responses.create(model="mock", input="hello")
    assert whole.output_text == TEXT
    with api.responses.stream(model="mock", input="hello") as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert final.output_text == whole.output_text
    assert kinds[:2] == ["response.created", "response.in_progress"]
    for kind in ("output_item.added", "content_part.added", "output_text.delta", "output_text.done",
                 "content_part.done", "output_item.done"):  # fmt: skip
        assert f"response.{kind}" in kinds
    assert kinds[-1] == "response.completed"


def test_usage_with_every_chunk(mock_server: Server) -> None:
    """As guidellm asks for it."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    extra: Any = {"ignore_eos": True, "stop": None}
    chunks = list(
        client(mock_server).chat.completions.create(
            model="mock", messages=HELLO, max_completion_tokens=5, stream=True, stream_options=options, extra_body=extra
        )
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == 5


def test_requests_of_vllms_benchmark(mock_server: Server) -> None:
    model = httpx.get(f"{mock_server.url}/v1/models").json()["data"][0]["id"]
    text = {
        "model": model, "prompt": "hello", "repetition_penalty": 1.0, "max_tokens": 5, "logprobs": None, "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True, "temperature": 0.0,
    }  # fmt: skip
    chat = {
        "model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "stream": True,
        "max_completion_tokens": 5, "stream_options": {"include_usage": True}, "temperature": 0.0,
    }  # fmt: skip
    for path, body in (("completions", text), ("chat/completions", chat)):
        headers = {"x-request-id": "bench-0"}
        response = httpx.post(f"{mock_server.url}/v1/{path}", json=body, headers=headers)
        assert response.status_code == 200
        assert response.headers["x-request-id"] == "bench-0"
        assert '"usage":{"prompt_tokens"' in response.text
        assert '"queue_time_ms"' in response.text
        assert '"time_to_first_token_ms"' in response.text


def test_calls_of_open_webui(mock_server: Server) -> None:
    """It lists the models to see whether a server is one, chats in a stream, and shows `error` of what is refused."""
    headers = {"Authorization": "Bearer none"}
    models = httpx.get(f"{mock_server.url}/v1/models", headers=headers).json()
    assert [card["id"] for card in models["data"]] == ["mock"]
    body: dict[str, Any] = {"model": "mock", "messages": HELLO, "stream": True, "max_tokens": 3}
    stream = httpx.post(f"{mock_server.url}/v1/chat/completions", json=body, headers=headers)
    assert stream.text.endswith("data: [DONE]\n\n")
    refused = httpx.post(f"{mock_server.url}/v1/chat/completions", json=body | {"n": 0}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"]


def test_a_response_that_leans_on_a_stored_one_is_refused_by_name(mock_server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(mock_server).responses.create(model="mock", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
