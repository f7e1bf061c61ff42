"""A GGUF file to a model folder in the form that `transformers` reads, made once and kept in the user's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from model_proc.files.model_files import BLOCKS_FILE, ModelFilesError, Progress, gigabytes
from model_proc.files.safetensors_file import SafetensorsWriter
from model_proc.gguf.config import build_config, build_generation_config
from model_proc.gguf.file import read_gguf
from model_proc.gguf.tensors import Conversion, plan_conversions
from model_proc.gguf.tokenizer import build_tokenizer

KEPT_BLOCKS = ("Q4_0", "Q4_1", "Q8_0")
"""Types of GGUF whose blocks are kept: 32 weights with one scale, and one minimum at most."""


def convert_gguf(source: Path, folder: Path, progress: Progress) -> None:
    """Write the model in file `source` into the empty `folder`: configuration, tokenizer, chat template and weights.

    Weights that GGUF keeps as float32, float16 or bfloat16 stay so; quantized ones become float32, exactly. Blocks that
    can be computed with as they are (`KEPT_BLOCKS`) lie beside them, in `BLOCKS_FILE`.
    Raises ModelFilesError when the file is damaged or of an unsupported kind, or the disk is too small.
    """
    file = read_gguf(source)
    config = build_config(file)
    conversions = plan_conversions(file, config)
    total = sum(conversion.target.num_bytes for conversion in conversions)
    progress("convert", 0, total)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise ModelFilesError(
            f"the model cache {folder.parent} needs {gigabytes(total)} for {source.name}, but its disk has"
            f" {gigabytes(free)} free; free some space, or set QUINTET_CACHE"
        )
    tokenizer, tokenizer_config = build_tokenizer(file)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", build_generation_config(file))
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_weights(folder / "model.safetensors", conversions, total, progress)
    if any(conversion.is_quantized for conversion in conversions):
        _write_blocks(folder / BLOCKS_FILE, conversions)


def _write_weights(path: Path, conversions: list[Conversion], total: int, progress: Progress) -> None:
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("convert", done, total)

    with SafetensorsWriter(path, [conversion.target for conversion in conversions]) as writer:
        for conversion in conversions:
            writer.write(conversion.target.name, conversion.chunks(), count)


def _write_blocks(path: Path, conversions: list[Conversion]) -> None:
    """The blocks of quantized matrices, uint8 [rows, bytes of a row], and the type of each in the file's metadata."""
    kept = [conversion for conversion in conversions if conversion.source.type.name in KEPT_BLOCKS]
    types = {conversion.target.name: conversion.source.type.name for conversion in kept}
    with SafetensorsWriter(path, [conversion.block_spec for conversion in kept], types) as writer:
        for conversion in kept:
            writer.write(conversion.target.name, [conversion.block_rows()], lambda num_bytes: None)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
