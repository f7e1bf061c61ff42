"""From a model's folder to a model that runs: our own decoder where it knows the model, else `transformers`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model_proc.attention import transformers_bridge
from model_proc.attention.paged import AttentionStep, LayerShape
from model_proc.files.model_files import ModelFilesError, Progress, read_json_object
from model_proc.kernels.cpu_library import CpuLibrary
from model_proc.kernels.cpu_ops import CpuOps
from model_proc.kernels.ops import Ops
from model_proc.models.decoder import Decoder
from model_proc.models.loader import empty_weights, fill_from, fill_randomly
from model_proc.models.packed import packed_weights
from model_proc.models.parallel import ParallelOps, share_of
from model_proc.models.readout import Readout
from model_proc.models.settings import DecoderSettings, NotNativeError, decoder_settings
from model_proc.models.transformers_model import TransformersModel
from model_proc.ranks import Ranks
from model_proc.weights import check_supported, load_config, load_model

log = logging.getLogger(__name__)


class Model(Protocol):
    """What the runner needs of a model."""

    @property
    def layers(self) -> list[LayerShape]: ...

    def forward(
        self, token_ids: Tensor, positions: Tensor, sample_rows: Tensor | None, step: AttentionStep
    ) -> Tensor: ...

    def read(self, token_ids: Tensor, positions: Tensor, step: AttentionStep) -> Readout: ...


def native_settings(folder: Path, implementation: str) -> DecoderSettings | None:
    """How our decoder computes the model in `folder`; None when `transformers` does.

    `implementation` is "auto", "native" or "transformers". Raises ModelFilesError for a model that nobody serves, and
    for "native" where the decoder does not know the model.
    """
    config = load_config(folder)
    check_supported(config)
    if implementation == "transformers":
        return None
    try:
        return decoder_settings(config, read_json_object(folder / "config.json"))
    except NotNativeError as reason:
        if implementation == "native":
            raise ModelFilesError(
                f"--model-impl native: {folder} cannot run natively: {reason}; use --model-impl auto"
            ) from reason
        log.info("the model runs on transformers: %s", reason)
        return None


def open_decoder(
    folder: Path, settings: DecoderSettings, dtype: torch.dtype, ops: Ops, device: torch.device, max_model_len: int,
    load_format: str, progress: Progress, ranks: Ranks | None = None,
) -> Decoder:  # fmt: skip
    """Our decoder with the weights in `folder`, or with random ones when `load_format` is "dummy".

    With several ranks, this one's share of it. Raises FatalError when they cannot share this model.
    """
    if ranks is None:
        weights = empty_weights(settings, dtype, device)
    else:
        settings, ops = share_of(settings, ranks.size), ParallelOps(ops, ranks)
        weights = empty_weights(settings, dtype, device, ranks.rank, ranks.size)
    if load_format == "dummy":
        fill_randomly(weights)
    else:
        fill_from(folder, weights, progress)
    return Decoder(settings, weights, ops, max_model_len)


def open_packed_decoder(
    folder: Path, settings: DecoderSettings, dtype: torch.dtype, quantization: str, library: CpuLibrary,
    max_model_len: int, load_format: str, progress: Progress,
) -> Decoder:  # fmt: skip
    """Our decoder on the CPU kernels; `quantization` as in `packed_weights`. With float32, activations stay exact."""
    weights = packed_weights(folder, settings, dtype, quantization, library, load_format, progress)
    return Decoder(settings, weights, CpuOps(library, dtype != torch.float32), max_model_len)


def open_transformers(folder: Path, dtype: torch.dtype, device: torch.device, progress: Progress) -> TransformersModel:
    """The model in `folder` on `transformers`."""
    transformers_bridge.register()
    return TransformersModel(load_model(folder, dtype, device, transformers_bridge.NAME, progress))
