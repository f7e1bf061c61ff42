"""What the other processes need to know of a model, read from its files before any weight is loaded."""

from __future__ import annotations

from typing import Any

from ipc.config import ModelConfig
from ipc.control_messages import ModelFiles
from model_proc.files.checkpoint import generation_defaults, read_config
from model_proc.files.model_files import LocalModel, ModelFilesError

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "repetition_penalty")


def describe(model: LocalModel, config: ModelConfig) -> ModelFiles:
    """The message that introduces a model. Raises ModelFilesError when its config.json lacks something."""
    settings = read_config(model.folder)
    defaults = generation_defaults(model.folder)
    return ModelFiles(
        name=model.name,
        folder=str(model.folder),
        tokenizer_folder=str(model.tokenizer_folder),
        max_model_len=_context(settings, config.max_model_len, model),
        vocab_size=_whole_number(settings, ("vocab_size",), model),
        defaults={key: defaults[key] for key in SAMPLING_KEYS if key in defaults},
    )


def _context(settings: dict[str, Any], wanted: int, model: LocalModel) -> int:
    limit = _whole_number(settings, CONTEXT_KEYS, model)
    if wanted > limit:
        raise ModelFilesError(
            f"--max-model-len {wanted} is more than the {limit} tokens that {model.name} was made for"
        )
    return wanted or limit


def _whole_number(settings: dict[str, Any], keys: tuple[str, ...], model: LocalModel) -> int:
    for key in keys:
        value = settings.get(key)
        if type(value) is int and value > 0:
            return value
    raise ModelFilesError(f"{model.folder / 'config.json'} has no {keys[0]}; fetch the model again")
