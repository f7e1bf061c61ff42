"""Tools in prompts: by the template where it knows them, in plain words where it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenizer_proc.chat_template import MOCK_TEMPLATE, ChatTemplate
from tokenizer_proc.errors import RequestError

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
KNOWING = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "</>{% endfor %}"
)
USER = {"role": "user", "content": "What is 1 + 2?"}
FUNCTION = {"name": "add", "description": "Add <ä>", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3"}


def prompt(source: str, *messages: dict[str, Any], **chat: Any) -> str:
    return ChatTemplate(source, {}).render({"messages": list(messages), **chat}, 10_000)


class TestTemplateThatKnowsTools:
    def test_it_gets_them_as_they_are(self) -> None:
        text = prompt(KNOWING, USER, CALLING, RESULT, tools=TOOLS)
        assert text == (
            json.dumps(TOOLS, ensure_ascii=False)
            + '<user>What is 1 + 2?</><assistant>[add {"a": 1, "b": "ü"}]</><tool>3</>'
        )

    def test_without_tools_there_are_none(self) -> None:
        assert prompt(KNOWING, USER) == "<user>What is 1 + 2?</>"


class TestTemplateThatDoesNot:
    def test_a_system_message_describes_them(self) -> None:
        text = prompt(PLAIN, USER, tools=TOOLS)
        assert text.startswith("<system>You can call functions.")
        assert json.dumps(FUNCTION, ensure_ascii=False) in text
        assert '\n{"name": "the function\'s name", "arguments": {' in text
        assert text.endswith("</><user>What is 1 + 2?</>")

    @pytest.mark.parametrize("role", ["system", "developer"])
    def test_behind_the_conversations_own(self, role: str) -> None:
        parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
        text = prompt(PLAIN, {"role": role, "content": parts}, USER, tools=TOOLS)
        assert text.startswith(f"<{role}>Be kind.\n\nYou can call functions.")
        assert text.count("You can call") == 1

    def test_calls_and_results_are_text(self) -> None:
        second = {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "4"}]}
        text = prompt(PLAIN, USER, CALLING | {"content": "Well:"}, RESULT, second, USER)
        assert text == (
            '<user>What is 1 + 2?</><assistant>Well:\n{"name": "add", "arguments": {"a": 1, "b": "ü"}}</>'
            "<user>Result of add: 3\nResult of c2: 4</><user>What is 1 + 2?</>"
        )

    def test_the_messages_themselves_are_not_changed(self) -> None:
        messages = json.dumps([CALLING, RESULT, RESULT])
        given = json.loads(messages)
        ChatTemplate(PLAIN, {}).render({"messages": given, "tools": TOOLS}, 10_000)
        assert json.dumps(given) == messages

    def test_a_call_may_be_the_message_that_is_continued(self) -> None:
        text = prompt(PLAIN, USER, {"role": "assistant", "content": "I "}, tools=TOOLS, continue_final_message=True)
        assert text.endswith("<assistant>I ")

    def test_the_mock_and_the_embedded_model(self, embedded_folder: Path) -> None:
        for source in (MOCK_TEMPLATE, (embedded_folder / "chat_template.jinja").read_text()):
            assert "You can call functions." in prompt(source, USER, tools=TOOLS)

    def test_what_breaks_a_limit_is_refused(self) -> None:
        with pytest.raises(RequestError, match="more than 50 characters"):
            ChatTemplate(PLAIN, {}).render({"messages": [USER], "tools": TOOLS}, 50)
