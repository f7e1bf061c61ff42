"""What a model's folder says about its chats: the template, and the special tokens that the template may name."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from ipc.control_messages import ModelFiles
from ipc.process import FatalError
from tokenizer_proc.chat_template import MOCK_TEMPLATE, ChatTemplate, NoTemplate, Template

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

log = logging.getLogger(__name__)


def load_template(files: ModelFiles, template_file: str) -> Template:
    """The chat template of a model, or the one in `template_file` unless that is "".

    A model's own template that is missing or broken is no reason not to serve its completions. Raises FatalError when
    `template_file` cannot be used, and when one of the model's files cannot be read.
    """
    folders = [Path(folder) for folder in (files.tokenizer_folder, files.folder) if folder]
    special_tokens = _special_tokens(folders)
    if template_file:
        try:
            return ChatTemplate(_read(Path(template_file)), special_tokens)
        except TemplateSyntaxError as error:
            raise FatalError(f"--chat-template {template_file}, line {error.lineno}: {error.message}") from None
    source = _model_template(folders) if folders else MOCK_TEMPLATE
    if source is None:
        return NoTemplate("this model has no chat template")
    try:
        return ChatTemplate(source, special_tokens)
    except TemplateSyntaxError as error:
        log.warning("the model's chat template is broken: line %d: %s", error.lineno, error.message)
        return NoTemplate(f"this model's chat template is broken (line {error.lineno}: {error.message})")


def _model_template(folders: Sequence[Path]) -> str | None:
    for folder in folders:
        if (folder / TEMPLATE_FILE).is_file():
            return _read(folder / TEMPLATE_FILE)
    for folder in folders:
        template = _read_json(folder / TOKENIZER_CONFIG).get("chat_template")
        if isinstance(template, list):
            # Several, each with a name: [{"name": "default", "template": "..."}, ...]
            entries = [entry for entry in template if isinstance(entry, dict)]
            template = {entry.get("name"): entry.get("template") for entry in entries}.get("default")
        if isinstance(template, str):
            return template
    return None


def _special_tokens(folders: Sequence[Path]) -> dict[str, str]:
    """The texts of bos_token, eos_token and their like, each a string or an object that holds it as `content`."""
    tokens = {}
    for folder in reversed(folders):
        for file in (SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG):
            for name, value in _read_json(folder / file).items():
                text = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(text, str):
                    tokens[name] = text
    return tokens


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FatalError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FatalError(f"cannot read {path}: it is not UTF-8 text") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise FatalError(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(content, dict):
        raise FatalError(f"{path} must hold a JSON object; fetch the model again")
    return content
