"""What is found out about a chat template by asking it: with templates in the manner of known families of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.request import Envelope, Job, chat_job
from gateway.templates import Templates
from ipc.config import GatewayConfig
from model_proc.files.model_files import LocalModel
from tests.gateway.scripted_ring import CONFIG, ScriptedRing
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.errors import RequestError

QWEN = """
{%- if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}
{{- 'Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response>' }}
{%- else %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- set content = message.content %}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}{% set call = call.function %}
{{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
QWEN_THINKING = QWEN.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
LLAMA = """
{{- bos_token }}{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{{- 'Respond in the format {"name": function name, "parameters": dictionary}.' }}{% endif %}
{%- for message in messages %}{{ '<|start|>' + message.role + '<|end|>' }}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
{%- else %}{{ message.content }}{% endif %}{{ '<|eot|>' }}
{%- endfor %}
"""
MISTRAL = """
{{- bos_token }}{% for message in messages %}
{%- if message.tool_calls %}{{ '[TOOL_CALLS][' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
{{- {"name": call.function.name, "arguments": call.function.arguments, "id": call.id} | tojson }}
{%- endfor %}{{ ']</s>' }}
{%- elif message.role == 'user' %}
{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}{{ message.content + '</s>' }}
{%- else %}{{ raise_exception('only user and assistant roles') }}{% endif %}
{%- endfor %}
"""
PICKY = "{% if messages | length != 1 %}{{ raise_exception('one message only') }}{% endif %}{{ messages[0].content }}"


async def settled(source: str, config: GatewayConfig = CONFIG, **fields: Any) -> Job:
    """The job of a chat on a model with this template."""
    ring = ScriptedRing()
    template = ChatTemplate(source, {"bos_token": "<s>"})

    def render(chat: dict[str, Any]) -> str | None:
        try:
            return template.render(chat, 100_000)
        except RequestError:
            return None

    ring.template = render
    body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    job = chat_job(body, Envelope("r", ""), ring.view, config)
    await Templates(ring.engine, config).settle(job)
    return job


TOOLS: Any = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("source", "tool_format", "reasons", "is_inside"),
    [
        (QWEN, "hermes", True, False),
        (QWEN_THINKING, "hermes", True, True),
        (LLAMA, "llama3_json", False, False),
        (MISTRAL, "mistral", False, False),
        (PICKY, "json", False, False),
    ],
    ids=["qwen", "qwen thinking", "llama", "mistral", "picky"],
)
async def test_families(source: str, tool_format: str, reasons: bool, is_inside: bool) -> None:
    reading = (await settled(source, tools=TOOLS)).reading
    assert (reading.tool_format, reading.reasons, reading.is_inside) == (tool_format, reasons, is_inside)
    assert reading.tools == {"f"}


@pytest.mark.asyncio
async def test_thinking_is_switched_by_the_requests_own_variables() -> None:
    source = QWEN_THINKING.replace("'<think>\\n\\n</think>\\n\\n'", "'</think>'")
    assert (await settled(source)).reading.is_inside
    assert not (await settled(source, chat_template_kwargs={"enable_thinking": False})).reading.is_inside
    assert not (await settled(source, reasoning_effort="none")).reading.is_inside
    assert (await settled(source, reasoning_effort="low")).reading.is_inside


@pytest.mark.asyncio
async def test_the_embedded_model_knows_neither(embedded_model: LocalModel) -> None:
    source = (Path(embedded_model.tokenizer_folder) / "chat_template.jinja").read_text()
    reading = (await settled(source, tools=TOOLS)).reading
    assert (reading.tool_format, reading.reasons) == ("json", False)
    assert (await settled(source)).reading.is_plain
