"""Prompts of conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokenizer_proc.chat_template import MOCK_TEMPLATE, ChatTemplate, NoTemplate
from tokenizer_proc.errors import RequestError

TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<new>{% endif %}"
)
TRIMMED = TURNS.replace("m.content", "m.content | trim")
USER = {"role": "user", "content": "Hi "}
ASSISTANT = {"role": "assistant", "content": "Well, \n"}


def prompt(source: str, *messages: dict[str, Any], max_chars: int = 1000, **chat: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render({"messages": list(messages), **chat}, max_chars)


def test_the_embedded_model(embedded_folder: Path) -> None:
    source = (embedded_folder / "chat_template.jinja").read_text()
    assert prompt(source, {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_mock() -> None:
    assert prompt(MOCK_TEMPLATE, USER, ASSISTANT, USER) == "user: Hi \nassistant: Well, \n\nuser: Hi \nassistant:"
    assert prompt(MOCK_TEMPLATE, USER, ASSISTANT, continue_final_message=True) == "user: Hi \nassistant: Well, \n"


def test_a_new_turn_begins_unless_told_otherwise() -> None:
    assert prompt(TURNS, USER) == "<user>Hi </><new>"
    assert prompt(TURNS, USER, add_generation_prompt=False) == "<user>Hi </>"


def test_variables() -> None:
    source = "{{ bos_token }}{{ eos_token }}|{{ tools is none }}|{{ enable_thinking }}|{{ extra }}"
    kwargs = {"enable_thinking": False}
    assert prompt(source, USER, chat_template_kwargs=kwargs, extra=1) == "<s>|True|False|1"


def test_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert prompt(TURNS, {"role": "user", "content": parts}, add_generation_prompt=False) == "<user>ab</>"


def test_messages_are_data() -> None:
    content = "{{ bos_token }}{% for %}"
    assert prompt(TURNS, {"role": "user", "content": content}, add_generation_prompt=False) == f"<user>{content}</>"


class TestContinuedMessage:
    def test_it_stays_open(self) -> None:
        text = prompt(TURNS, USER, ASSISTANT, continue_final_message=True, add_generation_prompt=False)
        assert text == "<user>Hi </><assistant>Well, \n"

    def test_white_space_goes_where_the_template_strips_it(self) -> None:
        text = prompt(TRIMMED, USER, ASSISTANT, continue_final_message=True, add_generation_prompt=False)
        assert text == "<user>Hi</><assistant>Well,"

    def test_the_message_itself_is_not_changed(self) -> None:
        message = dict(ASSISTANT)
        prompt(TURNS, message, continue_final_message=True)
        assert message == ASSISTANT

    def test_a_template_that_does_not_show_it(self) -> None:
        with pytest.raises(RequestError, match="does not show") as caught:
            prompt("{{ messages[0].content }}", USER, ASSISTANT, continue_final_message=True)
        assert caught.value.param == "continue_final_message"

    def test_a_message_without_content(self) -> None:
        with pytest.raises(RequestError, match="no content"):
            prompt(TURNS, {"role": "assistant", "content": None}, continue_final_message=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("{{ raise_exception('roles must\nalternate') }}", "refuses them: roles must alternate"),
            ("{{ messages.missing.more }}", "refuses them: "),
            ("{{ messages[0].content + 1 }}", "cannot use them: TypeError"),
            ("{{ 'x' * 2000 }}", "stopped: it writes more than 1000 characters"),
        ],
    )
    def test_one_line_for_the_client(self, source: str, said: str) -> None:
        with pytest.raises(RequestError) as caught:
            prompt(source, USER)
        refusal = caught.value.refusal()
        assert said in refusal.message
        assert (refusal.status, refusal.kind, refusal.param) == (400, "invalid_request_error", "messages")

    def test_what_the_template_says_is_cut_and_made_valid(self) -> None:
        with pytest.raises(RequestError) as caught:
            prompt("{{ raise_exception(messages[0].content * 500) }}", {"role": "user", "content": "no \ud800"})
        message = caught.value.refusal().message
        assert len(message) == 1000
        assert "no ?no ?" in message

    def test_no_template(self) -> None:
        with pytest.raises(RequestError, match="--chat-template FILE"):
            NoTemplate("this model has no chat template").render({"messages": [USER]}, 100)
