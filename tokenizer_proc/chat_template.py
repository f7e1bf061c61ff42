"""From a conversation to the text of its prompt, by the chat template of the model or of the operator."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from jinja2 import TemplateError, meta

from ipc.codec import Map
from tokenizer_proc.errors import RequestError
from tokenizer_proc.plain_tools import in_plain_words
from tokenizer_proc.sandbox import ChatEnvironment, LimitError, render

log = logging.getLogger(__name__)

# Appended to the final message's content when it is to be continued: a lone surrogate, which no client can send.
END_MARK = "\udfff"

# The mock model has no files, hence no template.
MOCK_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


# Templates ask whether these are none, not whether they are defined.
DEFAULT_VARIABLES: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}


class Template(Protocol):
    """What makes prompts of conversations."""

    def render(self, chat: Map, max_chars: int) -> str:
        """The prompt's text. Raises RequestError."""
        ...


class NoTemplate:
    """Stands where a model has no chat template, or one that is broken."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def render(self, chat: Map, max_chars: int) -> str:
        raise RequestError(
            f"{self._reason}; use /v1/completions, or start the server with --chat-template FILE", "messages"
        )


class ChatTemplate:
    """A Jinja template in the manner of `transformers`."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """`special_tokens` are variables such as bos_token. Raises jinja2.TemplateSyntaxError."""
        environment = ChatEnvironment()
        self._template = environment.compile_template(source)
        self._knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        self._special_tokens = special_tokens

    def render(self, chat: Map, max_chars: int) -> str:
        """The text of the prompt for a conversation.

        `chat` holds `messages`, and may hold `continue_final_message` (the text ends with the final message's content),
        `chat_template_kwargs` (more variables) and other variables of the template, such as `add_generation_prompt`
        and `tools`, which a template that does not know them gets in plain words. Contents in parts become one string.
        Raises RequestError when the template refuses the conversation or cannot
        digest it, and when it breaks a limit.
        """
        chat = dict(chat)
        extra = chat.pop("chat_template_kwargs", {})
        to_continue = chat.pop("continue_final_message", False)
        chat["messages"] = [_with_plain_content(message) for message in chat["messages"]]
        if not self._knows_tools:
            chat["messages"] = in_plain_words(chat["messages"], chat.get("tools") or ())
        if to_continue:
            _mark_end(chat["messages"])
        variables = DEFAULT_VARIABLES | self._special_tokens | extra | chat
        try:
            text = render(self._template, variables, max_chars)
        except LimitError as error:
            raise RequestError(f"messages: the chat template was stopped: {error}", "messages") from None
        except TemplateError as error:
            raise RequestError(f"messages: the chat template refuses them: {error}", "messages") from None
        except Exception as error:
            log.debug("the chat template failed", exc_info=True)
            raise RequestError(f"messages: the chat template cannot use them: {error!r}", "messages") from None
        return _cut_at_mark(text) if to_continue else text


def _with_plain_content(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": "".join(part["text"] for part in content)}
    return dict(message)


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Mark where the final message's content ends. The space shows whether the template strips contents."""
    final = messages[-1]
    if not isinstance(final.get("content"), str):
        raise RequestError("continue_final_message: the final message has no content", "continue_final_message")
    final["content"] += END_MARK + " "


def _cut_at_mark(text: str) -> str:
    end = text.rfind(END_MARK)
    if end < 0:
        raise RequestError(
            "continue_final_message: the chat template does not show the final message", "continue_final_message"
        )
    return text[:end] if text.startswith(END_MARK + " ", end) else text[:end].rstrip()
