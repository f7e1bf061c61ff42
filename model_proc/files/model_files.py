"""What the other parts of the room learn about a model: where its files lie, or why it cannot be served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""`progress(phase, done, total)`: bytes done and to do; a total of 0 means that it is not known."""

BLOCKS_FILE = "blocks.safetensors"
"""Beside the weights of a converted GGUF file: the blocks of its quantized matrices, as they were published."""


class ModelFilesError(Exception):
    """The model cannot be served. The message is one line: what is wrong, and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


@dataclass(frozen=True, slots=True)
class LocalModel:
    """Where a model's files lie.

    `folder` holds config.json and the weights as safetensors (and generation_config.json and a chat template where
    the model has them). `tokenizer_folder` holds tokenizer.json and tokenizer_config.json: the same folder, unless
    the tokenizer had to be converted. `name` is what the model is called when the user gives it no other name.
    """

    folder: Path
    tokenizer_folder: Path
    name: str


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in file `path`. Raises ModelFilesError when it is missing, unreadable, or no object."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelFilesError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ModelFilesError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} must hold a JSON object, not {type(content).__name__}; fetch the model again")
    return content


def gigabytes(size: int) -> str:
    """`size` bytes for a message: `0.54 GB`."""
    return f"{size / 1e9:.2f} GB"
