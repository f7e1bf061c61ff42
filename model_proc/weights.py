"""Builds the model: a decoder-only language model of `transformers`, with its weights from safetensors.

Weights of the wanted dtype are mapped from the file, not copied: the page cache holds them once, whatever the number of
starts. They move when the device is not the CPU.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers import logging as transformers_logging

from model_proc.files.model_files import ModelFilesError, Progress, read_json_object

LAYER_TYPES = {"full_attention", "sliding_attention"}
LANGUAGE_MODEL_SUFFIXES = ("ForCausalLM", "LMHeadModel")


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, attn_implementation: str, progress: Progress
) -> torch.nn.Module:
    """The model in `folder`, ready for inference: weights in `dtype` on `device`, rotary frequencies in float32.

    `attn_implementation` is a name registered with `transformers.AttentionInterface`. Raises ModelFilesError when the
    model is of an unsupported kind, or its files do not hold just the weights that it needs.
    """
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    progress("load", 0, total)
    with _quiet():
        config = load_config(folder)
        check_supported(config)
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, with every name
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise ModelFilesError(f"cannot load the weights in {folder}: {error}") from error
    _check_weights(folder, model, report)
    model.requires_grad_(False).eval().to(device)
    progress("load", total, total)
    return model


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration. Raises ModelFilesError when it is damaged or of a kind unknown to `transformers`."""
    kind = read_json_object(folder / "config.json").get("model_type")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except KeyError as error:
        raise ModelFilesError(f"{folder / 'config.json'} lacks {error}; fetch the model again") from error
    except Exception as error:  # a validation error of some library, by version
        known = kind in transformers.CONFIG_MAPPING
        reason = f"cannot be read ({error})" if known else f"has the unknown model_type {kind}"
        raise ModelFilesError(
            f"{folder / 'config.json'} {reason}; transformers {transformers.__version__} must know the model without"
            " code of its own"
        ) from error


def check_supported(config: PretrainedConfig) -> None:
    """Raises ModelFilesError unless this is a decoder-only text model whose attention can be replaced."""
    kind = config.model_type
    if config.sub_configs:
        raise _unsupported(kind, f"it has parts beside text ({', '.join(sorted(config.sub_configs))})")
    is_encoder = hasattr(config, "add_cross_attention") and getattr(config, "is_decoder", True) is False
    if is_encoder or getattr(config, "is_encoder_decoder", False):
        raise _unsupported(kind, "it has an encoder; only decoder-only models are served")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _unsupported(kind, "it is no language model that generates text")
    other = [name for name in config.architectures or () if not name.endswith(LANGUAGE_MODEL_SUFFIXES)]
    if other:
        raise _unsupported(kind, f"its weights are those of a {other[0]}, not of a language model")
    if getattr(config, "quantization_config", None):
        raise _unsupported(kind, "its weights are stored quantized; use the unquantized safetensors or a GGUF file")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    layer_types = set(getattr(config, "layer_types", None) or ())
    if model_class._is_stateful or not layer_types <= LAYER_TYPES:
        found = ", ".join(sorted(layer_types - LAYER_TYPES)) or "a recurrent state"
        raise _unsupported(kind, f"it has layers without a plain KV cache ({found})")
    if getattr(config, "num_kv_shared_layers", 0):
        raise _unsupported(kind, "its layers share their KV cache")
    if not model_class.is_backend_compatible():
        raise _unsupported(kind, f"the attention of {model_class.__name__} cannot be replaced")


def _unsupported(kind: str, reason: str) -> ModelFilesError:
    return ModelFilesError(f"the model type {kind} is not supported: {reason}")


def _check_weights(folder: Path, model: torch.nn.Module, report: dict[str, Any]) -> None:
    """Raises ModelFilesError when weights were missing, of another shape, or of a layer without a place for them."""
    if missing := sorted(report["missing_keys"]):
        raise ModelFilesError(f"{folder} lacks {_some(missing)}; fetch the model again")
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, needed = mismatched[0]
        raise ModelFilesError(
            f"{folder}: {name} has shape {tuple(stored)}, but config.json means {tuple(needed)}; fetch the model again"
        )
    if homeless := sorted(name for name in report["unexpected_keys"] if _belongs_to_a_layer(model, name)):
        raise ModelFilesError(
            f"{folder} has {_some(homeless)}, which config.json has no place for; fetch the model again"
        )


def _belongs_to_a_layer(model: torch.nn.Module, name: str) -> bool:
    """Whether the model has the layer of weight `name`, but not that weight in it: a bias, say, that would be ignored.

    Weights of whole other modules (heads for training, drafts of later tokens) do not matter here.
    """
    path, _, leaf = name.rpartition(".")
    modules = dict(model.named_modules())
    return path in modules and getattr(modules[path], leaf, None) is None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more weights" if len(names) > 3 else "")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep `transformers` from printing; what matters is in its return values."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
