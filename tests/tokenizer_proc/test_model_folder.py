"""Where the chat template and the special tokens are looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipc.control_messages import ModelFiles
from ipc.process import FatalError
from tokenizer_proc.errors import RequestError
from tokenizer_proc.model_folder import load_template

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
MOCK = ModelFiles("mock", "", "", 100, 100, {})


def files(folder: Path, tokenizer_folder: Path | None = None) -> ModelFiles:
    return ModelFiles("name", str(folder), str(tokenizer_folder or folder), 100, 100, {})


def write(folder: Path, name: str, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def rendered(model: ModelFiles, template_file: str = "") -> str:
    return load_template(model, template_file).render(CHAT, 1000)


def test_its_own_file_comes_before_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": "config"})
    assert rendered(files(tmp_path)) == "config"
    write(tmp_path, "chat_template.jinja", "own file")
    assert rendered(files(tmp_path)) == "own file"
    write(tmp_path, "given.jinja", "given")
    assert rendered(files(tmp_path), str(tmp_path / "given.jinja")) == "given"


def test_the_default_of_several(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": several})
    assert rendered(files(tmp_path)) == "plain"


def test_a_converted_tokenizer_lies_in_another_folder(tmp_path: Path) -> None:
    write(tmp_path / "model", "chat_template.jinja", "from the model {{ bos_token }}")
    write(tmp_path / "converted", "tokenizer_config.json", {"bos_token": "<s>"})
    assert rendered(files(tmp_path / "model", tmp_path / "converted")) == "from the model <s>"


def test_special_tokens(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ add_bos_token }}")
    write(tmp_path, "special_tokens_map.json", {"bos_token": "<old>", "pad_token": {"content": "<pad>"}})
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "add_bos_token": True}
    write(tmp_path, "tokenizer_config.json", config)
    assert rendered(files(tmp_path)) == "<s></s><pad>"


@pytest.mark.parametrize("config", [{}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}])
def test_no_template(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, "tokenizer_config.json", config)
    with pytest.raises(RequestError, match="no chat template; use /v1/completions"):
        rendered(files(tmp_path))


def test_a_broken_template_of_the_model_only_stops_its_chats(tmp_path: Path) -> None:
    write(tmp_path, "chat_template.jinja", "\n{% for %}")
    with pytest.raises(RequestError, match=r"broken .line 2: .*--chat-template FILE"):
        rendered(files(tmp_path))


def test_the_mock_has_a_template_of_its_own(tmp_path: Path) -> None:
    assert rendered(MOCK) == "user: Hi\nassistant:"
    write(tmp_path, "given.jinja", "given")
    assert rendered(MOCK, str(tmp_path / "given.jinja")) == "given"


class TestFatal:
    def test_a_given_template_that_is_broken(self, tmp_path: Path) -> None:
        write(tmp_path, "given.jinja", "a\n{% endfor %}")
        with pytest.raises(FatalError, match=r"--chat-template .*given\.jinja, line 2: "):
            load_template(MOCK, str(tmp_path / "given.jinja"))

    def test_a_given_template_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FatalError, match="No such file"):
            load_template(MOCK, str(tmp_path / "missing.jinja"))

    def test_a_template_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "given.jinja").write_bytes(b"\xff\xfe")
        with pytest.raises(FatalError, match="not UTF-8"):
            load_template(MOCK, str(tmp_path / "given.jinja"))

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_configuration_that_is_no_json_object(self, tmp_path: Path, content: str) -> None:
        write(tmp_path, "tokenizer_config.json", content)
        with pytest.raises(FatalError, match=r"tokenizer_config\.json .*fetch the model again"):
            load_template(files(tmp_path), "")
