"""GGUF conversion: damaged files and unsupported models are refused with one clear line."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from model_proc.files.model_files import ModelFilesError
from model_proc.gguf.convert import convert_gguf
from model_proc.gguf.file import read_gguf
from tests.model_proc import gguf_samples as samples
from tests.model_proc.gguf_samples import convert, silent

Change = Callable[[samples.Metadata, samples.Tensors], object]
ONES = np.ones(samples.HIDDEN, np.float32)

REFUSALS: list[tuple[str, Change]] = [
    ("llama.expert_count|it is a mixture of experts", lambda v, w: v.update({"llama.expert_count": 8})),
    ("attention.value_length differs", lambda v, w: v.update({"llama.attention.value_length": 8})),
    ("rope.dimension_count is not 16", lambda v, w: v.update({"llama.rope.dimension_count": 8})),
    ("its attention is not causal", lambda v, w: v.update({"llama.attention.causal": False})),
    ("rope.scaling.type is longrope", lambda v, w: v.update({"llama.rope.scaling.type": "longrope"})),
    ("unknown key llama.logit_scale", lambda v, w: v.update({"llama.logit_scale": 2.0})),
    ("no key llama.block_count", lambda v, w: v.pop("llama.block_count")),
    ("llama.block_count is 0", lambda v, w: v.update({"llama.block_count": 0})),
    ("llama.block_count is a str", lambda v, w: v.update({"llama.block_count": "two"})),
    ("one of 3 parts; join them", lambda v, w: v.update({"split.count": 3})),
    ("no tensor blk.1.attn_v.weight", lambda v, w: w.pop("blk.1.attn_v.weight")),
    ("no tensor token_embd.weight", lambda v, w: w.pop("token_embd.weight")),
    ("no place for tensor blk.0.attn_sub_norm.weight", lambda v, w: w.update({"blk.0.attn_sub_norm.weight": ONES})),
    ("attn_norm.weight has shape", lambda v, w: w.update({"blk.0.attn_norm.weight": ONES[:32]})),
    ("tokenizer bert, which is not supported", lambda v, w: v.update({"tokenizer.ggml.model": "bert"})),
    ("pre-tokenizer chatglm-bpe, which is", lambda v, w: v.update({"tokenizer.ggml.pre": "chatglm-bpe"})),
    ("pre-tokenizer none", lambda v, w: v.pop("tokenizer.ggml.pre")),
    ("names no end-of-sequence token", lambda v, w: v.pop("tokenizer.ggml.eos_token_id")),
    ("special token 9999, but", lambda v, w: v.update({"tokenizer.ggml.padding_token_id": 9999})),
    ("token types", lambda v, w: v.update({"tokenizer.ggml.token_type": [1, 1]})),
    ("the same token twice", lambda v, w: v.update({"tokenizer.ggml.tokens": ["a"] * len(samples.TOKENS)})),
    ("no merges", lambda v, w: v.pop("tokenizer.ggml.merges")),
    ("inconsistent vocabulary", lambda v, w: v.update({"tokenizer.ggml.merges": ["zz zz"]})),
    ("inconsistent vocabulary", lambda v, w: v.update({"tokenizer.ggml.merges": ["a b c"]})),
    ("eos_token_id is a str", lambda v, w: v.update({"tokenizer.ggml.eos_token_id": "end"})),
    (
        "wants a bos token around each text",
        lambda v, w: (v.update({"tokenizer.ggml.add_bos_token": True}), v.pop("tokenizer.ggml.bos_token_id")),
    ),
]


@pytest.mark.parametrize(("message", "change"), REFUSALS)
def test_what_is_not_understood_is_refused(tmp_path: Path, message: str, change: Change) -> None:
    values, weights = samples.metadata("llama"), samples.tensors("llama")
    change(values, weights)
    with pytest.raises(ModelFilesError, match=message) as refusal:
        convert(tmp_path, "llama", values, weights)
    assert "tiny.gguf" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    values = {key.replace("llama.", "mamba."): value for key, value in samples.metadata("llama").items()}
    with pytest.raises(ModelFilesError, match=r"architecture mamba, which is not supported \(supported: llama, qwen2"):
        convert(tmp_path, "mamba", values, samples.tensors("llama"))


@pytest.mark.parametrize(
    ("type_id", "message"),
    [
        (int(GGMLQuantizationType.Q8_K), "type Q8_K, which the installed gguf package cannot"),
        (250, "has type 250, which"),
    ],
)
def test_a_tensor_type_without_dequantization_is_refused(tmp_path: Path, type_id: int, message: str) -> None:
    values = samples.metadata("llama") | {"llama.feed_forward_length": 256}  # one block of Q8_K
    weights = samples.tensors("llama")
    for layer in range(samples.LAYERS):
        weights[f"blk.{layer}.ffn_down.weight"] = np.zeros((samples.HIDDEN, 256), np.float32)
        for name in ("ffn_gate", "ffn_up"):
            weights[f"blk.{layer}.{name}.weight"] = np.zeros((256, samples.HIDDEN), np.float32)
    path = samples.write_gguf(tmp_path / "tiny.gguf", "llama", values, weights)
    content = bytearray(path.read_bytes())
    tensor = b"blk.0.ffn_down.weight"
    at = content.index(tensor) + len(tensor) + 4 + 2 * 8  # behind the name: dimensions, two sizes, type
    content[at : at + 4] = type_id.to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ModelFilesError, match=message):
        convert_gguf(path, tmp_path, silent)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    for content, message in (
        (b"", "truncated or damaged"),
        (b"PK\x03\x04 a zip archive", "is not a GGUF file"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(64), "GGUF version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(64), "little-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 64, "truncated or damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFilesError, match=message):
            read_gguf(path)


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = samples.write_gguf(tmp_path / "whole.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    content = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    for cut in (*range(0, len(content), len(content) // 97), len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(ModelFilesError, match="truncated"):
            read_gguf(path)


def test_a_damaged_header_never_raises_anything_else(tmp_path: Path) -> None:
    whole = samples.write_gguf(tmp_path / "whole.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))
    content = whole.read_bytes()
    header_bytes = content.index(b"blk.1.attn_norm.weight") + 64
    chance = random.Random(0)
    refused = 0
    for attempt in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(8, header_bytes)] = chance.randrange(256)
        path, folder = tmp_path / f"{attempt}.gguf", tmp_path / str(attempt)
        path.write_bytes(damaged)
        folder.mkdir()
        try:
            convert_gguf(path, folder, silent)
        except ModelFilesError:
            refused += 1
        path.unlink()
    assert refused > 100


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ModelFilesError, match=r"needs 0\.00 GB for tiny\.gguf, but its disk has 0\.00 GB free"):
        convert(tmp_path, "llama", samples.metadata("llama"), samples.tensors("llama"))
    assert not list((tmp_path / "model").iterdir())
