"""What a runner of real models computes with, made at its start: model, KV cache, batch, attention, CUDA graphs."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ipc.config import ModelConfig
from ipc.control_messages import ModelFiles
from ipc.process import FatalError
from model_proc.attention.cpu_paged import CpuAttention
from model_proc.attention.paged import AttentionBackend, KVCache, LayerShape
from model_proc.attention.torch_sdpa import TorchAttention
from model_proc.batch import Batch
from model_proc.device import find_device, find_dtype, free_memory, has_dependent_launch, uses_triton
from model_proc.files.model_files import Progress
from model_proc.kernels.ops import Ops, TorchOps
from model_proc.load_cpu import load_on_cpu_kernels
from model_proc.models.decoder import Decoder
from model_proc.models.open import Model, native_settings, open_decoder, open_transformers
from model_proc.models.settings import DecoderSettings
from model_proc.ranks import Ranks, Seat, join_ranks

if TYPE_CHECKING:
    # Not at run time: they need Triton.
    from model_proc.attention.triton_paged import TritonAttention
    from model_proc.graphs import DecodeGraphs

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Loaded:
    """One model on one device, and what its steps need."""

    device: torch.device
    has_kernels: bool  # Triton kernels of our own run
    model: Model
    cache: KVCache
    batch: Batch
    attention: AttentionBackend
    graphs: DecodeGraphs | None
    ranks: Ranks | None  # whom the model is shared with


def load(config: ModelConfig, files: ModelFiles, loading: Progress, seat: Seat) -> Loaded:
    """Load the weights and lay out the KV cache. Raises ModelFilesError, or FatalError when they do not fit."""
    torch.set_grad_enabled(False)
    device = find_device(config.device, seat)
    # cuDNN's attention makes a plan for every new length, and each decode step has one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cpu":
        _set_threads(config.num_threads, seat.size)
    elif config.quantization not in ("auto", "none"):
        raise FatalError(f"--quantization {config.quantization}: it is for a CPU; use none, or --device cpu")
    ranks = join_ranks(seat, device) if seat.size > 1 else None
    has_kernels = uses_triton(config.attention_backend, device)
    settings = native_settings(Path(files.folder), config.model_impl)
    on_cpu = None
    if device.type == "cpu" and not has_kernels:
        on_cpu = load_on_cpu_kernels(config, files, settings, seat.size, loading)
    dtype = on_cpu.dtype if on_cpu else find_dtype(config.dtype, device)
    model = on_cpu.model if on_cpu else _open_model(config, files, settings, device, dtype, has_kernels, loading, ranks)
    layers = model.layers
    num_blocks = _num_blocks(config, files, layers, dtype, device)
    if ranks is not None:
        num_blocks = ranks.least(num_blocks, device)
    cache = KVCache(layers, num_blocks, config.block_size, dtype, device)
    batch = Batch(config.max_num_seqs, files.max_model_len, config.block_size, device)
    attention = (
        on_cpu.attention
        if on_cpu
        else _open_attention(config, files, model, layers, batch, dtype, has_kernels, loading)
    )
    graphs = None
    is_native = isinstance(model, Decoder)
    has_graphs = is_native and device.type == "cuda" and not config.enforce_eager
    if has_graphs and not isinstance(attention, TorchAttention | CpuAttention):
        graphs = _capture(config, model, attention, cache, batch, loading)
    log.info(
        "%s on %s as %s, %s, KV cache of %d tokens",
        files.name, device, str(dtype).removeprefix("torch."), "native" if is_native else "transformers",
        num_blocks * config.block_size,
    )  # fmt: skip
    return Loaded(device, has_kernels, model, cache, batch, attention, graphs, ranks)


def _set_threads(wanted: int, processes: int) -> None:
    """As many CPU threads as asked for; without a wish, processes that compute side by side share the cores."""
    if wanted:
        torch.set_num_threads(wanted)
    elif processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _open_model(
    config: ModelConfig, files: ModelFiles, settings: DecoderSettings | None, device: torch.device, dtype: torch.dtype,
    has_kernels: bool, loading: Progress, ranks: Ranks | None,
) -> Model:  # fmt: skip
    folder = Path(files.folder)
    if settings is None:
        if config.load_format == "dummy":
            raise FatalError(
                "--load-format dummy works with our own decoder alone, which does not know this model or is"
                " switched off by --model-impl; use --load-format auto"
            )
        if ranks is not None:
            raise FatalError(
                f"--tensor-parallel-size {ranks.size}: only models of our own decoder can be shared, and this one runs"
                " on transformers (docs/models.md)"
            )
        return open_transformers(folder, dtype, device, loading)
    ops: Ops = TorchOps()
    if has_kernels:
        from model_proc.kernels.triton_ops import TritonOps

        ops = TritonOps(has_dependent_launch(device))
    length = files.max_model_len
    return open_decoder(folder, settings, dtype, ops, device, length, config.load_format, loading, ranks)


def _open_attention(
    config: ModelConfig, files: ModelFiles, model: Model, layers: list[LayerShape], batch: Batch, dtype: torch.dtype,
    has_kernels: bool, loading: Progress,
) -> TorchAttention | TritonAttention:  # fmt: skip
    if not has_kernels:
        return TorchAttention()
    from model_proc.attention.triton_paged import TritonAttention, supports

    odd = [shape for shape in layers if not supports(shape, dtype)]
    if odd:
        what = f"heads with keys of {odd[0].key_dim} and values of {odd[0].value_dim} as {dtype}"
        if config.attention_backend == "triton":
            raise FatalError(f"--attention-backend triton: it has no kernel for {what}; use auto or torch")
        log.warning("attention runs on plain PyTorch, slowly: there is no kernel for %s", what)
        return TorchAttention()

    device = batch.last_token.device
    attention = TritonAttention(batch, device, has_dependent_launch(device))
    if isinstance(model, Decoder) and model.attends_plainly:
        from model_proc.attention.dense_prefill import make_plans

        settings = model.settings
        loading("plan prefills", 0, 0)
        attention.uses_dense = make_plans(
            settings.num_heads, layers[0], settings.attention_scale, files.max_model_len,
            config.max_num_batched_tokens, dtype, device,
        )  # fmt: skip
    return attention


def _capture(
    config: ModelConfig, model: Model, attention: TritonAttention, cache: KVCache, batch: Batch, loading: Progress
) -> DecodeGraphs:
    """Graphs of decode steps, captured now."""
    from model_proc.graphs import DecodeGraphs, capture_sizes

    wanted = [int(size) for size in config.cudagraph_capture_sizes]
    sizes = capture_sizes(wanted, config.max_num_seqs)
    graphs = DecodeGraphs(model, attention, cache, batch, sizes, config.pipeline_depth)
    graphs.capture(lambda done, total: loading("capture CUDA graphs", done, total))
    return graphs


def _num_blocks(
    config: ModelConfig, files: ModelFiles, layers: list[LayerShape], dtype: torch.dtype, device: torch.device
) -> int:
    """How many blocks the KV cache gets: as asked for, or as the memory allows."""
    block_bytes = KVCache.bytes_per_token(layers, dtype) * config.block_size
    if config.num_gpu_blocks_override:
        return config.num_gpu_blocks_override
    if config.kv_cache_memory_bytes:
        return config.kv_cache_memory_bytes // block_bytes
    # More than every sequence at full length is never of use.
    useful = config.max_num_seqs * -(-files.max_model_len // config.block_size)
    return min(free_memory(device, config.gpu_memory_utilization) // block_bytes, useful)
