"""A model on the CPU kernels: whether they can run it, in which form its weights are kept, and on how many threads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ipc.config import ModelConfig
from ipc.control_messages import ModelFiles
from ipc.process import FatalError
from model_proc.attention import cpu_paged
from model_proc.attention.cpu_paged import CpuAttention
from model_proc.device import find_dtype
from model_proc.files.checkpoint import default_cache_dir
from model_proc.files.model_files import Progress
from model_proc.kernels.cpu_build import NoKernelsError, build
from model_proc.kernels.cpu_library import CpuLibrary
from model_proc.models import packed
from model_proc.models.decoder import Decoder
from model_proc.models.open import open_packed_decoder
from model_proc.models.settings import DecoderSettings
from model_proc.threads import choose_threads

log = logging.getLogger(__name__)


@dataclass(slots=True)
class OnCpuKernels:
    """What the CPU kernels run, and in which type the KV cache is kept."""

    model: Decoder
    attention: CpuAttention
    dtype: torch.dtype


def load_on_cpu_kernels(
    config: ModelConfig, files: ModelFiles, settings: DecoderSettings | None, num_ranks: int, loading: Progress
) -> OnCpuKernels | None:
    """The model on the CPU kernels; None when plain PyTorch is to run it.

    `settings` is None for a model that `transformers` runs. Raises FatalError when the options want the kernels and
    they cannot run here, and ModelFilesError when the weights cannot be loaded.
    """
    folder = Path(files.folder)
    quantization = _quantization(config, folder)
    dtype = find_dtype(config.dtype, torch.device("cpu"))
    if config.dtype == "auto" and quantization != "none":
        dtype = torch.bfloat16
    try:
        if config.attention_backend == "torch":
            raise NoKernelsError("--attention-backend torch asks for plain PyTorch")
        if num_ranks > 1:
            raise NoKernelsError("they do not share a model between processes")
        if settings is None:
            raise NoKernelsError("they run our own decoder alone, not the models of transformers")
        if lacking := packed.unsupported(settings):
            raise NoKernelsError(f"they do not know {lacking}")
        if lacking := cpu_paged.unsupported(settings.head_dim, config.block_size, dtype):
            raise NoKernelsError(f"they do not know {lacking}")
        path = build(default_cache_dir(), loading)
    except NoKernelsError as reason:
        if config.attention_backend == "cpu":
            raise FatalError(f"--attention-backend cpu: the CPU kernels do not run here: {reason}") from reason
        if config.quantization in ("int8", "int4"):
            raise FatalError(
                f"--quantization {config.quantization}: it takes the CPU kernels, which do not run here: {reason}"
            ) from reason
        if config.attention_backend != "torch":
            log.warning("the model runs on plain PyTorch, slowly; not on the CPU kernels: %s", reason)
        return None
    library = CpuLibrary(path, 1)
    library.set_threads(config.num_threads or choose_threads(library))
    # PyTorch has little left to do. Threads of its own would spin beside those of the kernels.
    torch.set_num_threads(1)
    length = files.max_model_len
    model = open_packed_decoder(folder, settings, dtype, quantization, library, length, config.load_format, loading)
    log.info("CPU kernels on %d threads, quantization %s", library.num_threads, quantization)
    return OnCpuKernels(model, CpuAttention(library), dtype)


def _quantization(config: ModelConfig, folder: Path) -> str:
    """As `packed_weights` wants it."""
    if config.quantization != "auto":
        return config.quantization
    return "blocks" if packed.is_published_quantized(folder) and config.load_format != "dummy" else "none"
