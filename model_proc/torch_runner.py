"""The runner for real models: executes plans with PyTorch on CPU or GPU."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
from torch import Tensor

from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.messages import Admit, Logprobs, ModelFiles, Plan, Result, RunnerReady, Sampling
from ipc.process import FatalError
from model_proc.attention.paged import AttentionBackend, KVCache, LayerShape
from model_proc.attention.torch_sdpa import TorchAttention
from model_proc.batch import Batch, StepInputs
from model_proc.files.checkpoint import generation_defaults
from model_proc.files.model_files import Progress
from model_proc.kernels.ops import Ops, TorchOps
from model_proc.models.decoder import Decoder
from model_proc.models.open import Model, native_settings, open_decoder, open_transformers
from model_proc.sampler import Sampled, Sampler
from model_proc.staging import upload

if TYPE_CHECKING:
    # Not at run time: they need Triton.
    from model_proc.attention.triton_paged import TritonAttention
    from model_proc.graphs import DecodeGraphs

CPU_KV_CACHE_BYTES = 4 << 30  # at most this much, and at most a quarter of the memory that is free
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """A step in flight."""

    plan: Plan
    sampling: list[Sampling]  # of the sequences that sample
    slots: list[int]  # theirs
    sampled: Sampled | None  # on the host once `done` has happened; None when nobody samples
    done: torch.cuda.Event | None  # None on a CPU, where `launch` has done the work
    error: str  # why the whole step failed, "" when it did not
    started_ns: int


class TorchRunner:
    """One model on one device. `launch` does not wait for a GPU; `collect` does."""

    def __init__(self, config: ModelConfig, files: ModelFiles, loading: Progress) -> None:
        self._config = config
        self._files = files
        self._loading = loading
        self._in_flight: deque[Launched] = deque()
        self._graphs: DecodeGraphs | None = None

    def load(self) -> RunnerReady:
        """Load the weights and lay out the KV cache. Raises ModelFilesError, or FatalError when they do not fit."""
        config, files = self._config, self._files
        torch.set_grad_enabled(False)
        self._device = _device(config.device)
        # cuDNN's attention makes a plan for every new length, and each decode step has one.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if self._device.type == "cpu" and config.num_threads:
            torch.set_num_threads(config.num_threads)
        self._dtype = _dtype(config.dtype, self._device)
        uses_triton = _uses_triton(config.attention_backend, self._device)
        folder = Path(files.folder)
        self._model, is_native = self._open_model(folder, uses_triton)
        layers = self._model.layers
        num_blocks = self._num_blocks(layers, files.max_model_len)
        self._cache = KVCache(layers, num_blocks, config.block_size, self._dtype, self._device)
        self._batch = Batch(config.max_num_seqs, files.max_model_len, config.block_size, self._device)
        eos_token_ids = generation_defaults(folder)["eos_token_id"]
        self._sampler = Sampler(config.max_num_seqs, files.vocab_size, eos_token_ids, self._device)
        attention = self._open_attention(uses_triton, layers)
        self._attention: AttentionBackend = attention
        if is_native and not isinstance(attention, TorchAttention) and self._uses_graphs():
            self._graphs = self._capture(attention)
        if uses_triton and self._device.type == "cuda":
            self._warm_up(num_blocks)
        log.info(
            "%s on %s as %s, %s, %d threads, KV cache of %d tokens",
            files.name, self._device, str(self._dtype).removeprefix("torch."),
            "native" if is_native else "transformers", torch.get_num_threads(), num_blocks * config.block_size,
        )  # fmt: skip
        return RunnerReady(
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_model_len=files.max_model_len,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=Ids("i", eos_token_ids),
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def launch(self, plan: Plan) -> None:
        started = time.monotonic_ns()
        inputs = self._batch.advance(plan)
        for admit in plan.admit:
            self._sampler.admit(admit)
        self._check_slots(plan.slots)
        sampled, done, error = None, None, ""
        try:
            with torch.inference_mode():
                sampled = self._run(inputs)
                if sampled is not None:
                    sampled = sampled.to_host()
                if self._device.type == "cuda":
                    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    done.record()
        except RuntimeError as failure:
            log.exception("step %d failed", plan.step)
            error = f"the model failed in this step: {type(failure).__name__}"
        slots = inputs.sample_slots.tolist()
        sampling = self._sampling_of(slots)
        self._in_flight.append(Launched(plan, sampling, slots, sampled, done, error, started))

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def next_done_ns(self) -> None:
        return None  # it is not known beforehand

    def is_done(self) -> bool:
        done = self._in_flight[0].done
        return done is None or bool(done.query())  # type: ignore[no-untyped-call]

    def collect(self) -> Result:
        step = self._in_flight.popleft()
        result = Result(
            step=step.plan.step, slots=step.slots, token_ids=Ids("i"), logprobs=None, failed=[], errors=[],
            started_ns=step.started_ns, finished_ns=0,
        )  # fmt: skip
        error = step.error
        if step.done is not None:
            try:
                step.done.synchronize()
            except RuntimeError as failure:
                log.exception("step %d failed", step.plan.step)
                error = f"the device failed in this step: {type(failure).__name__}"
        if error:
            result.slots = []
            result.failed = step.plan.slots
            result.errors = [error] * len(result.failed)
        elif step.sampled is not None:
            self._fill_in(result, step, step.sampled)
        result.finished_ns = time.monotonic_ns()
        return result

    def _run(self, inputs: StepInputs) -> Sampled | None:
        """Compute a step and sample. Returns what was sampled, None when nobody samples."""
        slots, sampler = inputs.sample_slots, self._sampler
        size = self._graphs.size_for(inputs) if self._graphs else None
        is_plain = self._has_kernels and sampler.is_plain(slots)
        if is_plain:
            temperatures = sampler.temperatures[slots]
            numbers = sampler.uniform_numbers(slots, inputs.sample_positions)
        else:
            temperatures = numbers = np.zeros(len(slots), dtype=np.float32)
        if self._graphs and size is not None:
            logits = self._graphs.forward(size, inputs, temperatures, numbers)
            if is_plain:
                return Sampled(self._graphs.sample(size, len(slots)), None, None)
        else:
            logits = self._forward(inputs)
        if not len(slots):
            return None
        last_token = self._batch.last_token
        device_slots = upload((slots,), self._device)[0]
        if is_plain:
            from model_proc.kernels.sampling_kernels import sample_plain

            bits = upload((temperatures.view(np.int32), numbers.view(np.int32)), self._device, torch.int32)
            heat, number = (column.view(torch.float32) for column in bits)
            return Sampled(sample_plain(logits, heat, number, device_slots, last_token), None, None)
        sampling = self._sampling_of(slots)
        num_output = inputs.sample_positions - self._batch.output_start[slots]
        sampled = sampler.sample(logits, sampling, slots, inputs.sample_positions, num_output)
        last_token[device_slots] = sampled.token_ids.clamp(min=0)
        return sampled

    def _forward(self, inputs: StepInputs) -> Tensor:
        """Compute a step's tokens. Returns the logits of the rows that sample, [S, vocabulary]."""
        step = self._attention.step(self._cache, self._batch, inputs)
        host_ids, from_device, token_slots, positions, sample_rows = upload(
            (
                inputs.token_ids,
                inputs.from_device.astype(np.int64),
                inputs.token_slots,
                inputs.positions,
                inputs.sample_rows,
            ),
            self._device,
        )
        token_ids = torch.where(from_device != 0, self._batch.last_token[token_slots], host_ids)
        return self._model.forward(token_ids, positions, sample_rows, step)

    def _fill_in(self, result: Result, step: Launched, sampled: Sampled) -> None:
        """Put a step's samples into its result."""
        token_ids = sampled.token_ids.tolist()
        rows = [row for row, token in enumerate(token_ids) if token >= 0]
        result.slots = [step.slots[row] for row in rows]
        result.token_ids = Ids("i", [token_ids[row] for row in rows])
        result.failed = [slot for slot, token in zip(step.slots, token_ids, strict=True) if token < 0]
        result.errors = ["the model's output is not a number"] * len(result.failed)
        if sampled.logprob_ids is not None and sampled.logprob_values is not None:
            ids, values = sampled.logprob_ids.tolist(), sampled.logprob_values.tolist()
            logprobs = Logprobs(counts=[], ids=Ids("i"), values=[], pieces=[])
            for row in rows:
                count = step.sampling[row].logprobs + 1
                logprobs.counts.append(count)
                logprobs.ids.extend(ids[row][:count])
                logprobs.values += values[row][:count]
            result.logprobs = logprobs

    def _check_slots(self, slots: list[int]) -> None:
        for slot in slots:
            if self._batch.sampling[slot] is None:
                raise ValueError(f"the plan computes slot {slot}, which is empty")

    def _sampling_of(self, slots: Iterable[int]) -> list[Sampling]:
        return [params for slot in slots if (params := self._batch.sampling[slot]) is not None]

    # -- loading -------------------------------------------------------------------------------------------------------

    def _open_model(self, folder: Path, uses_triton: bool) -> tuple[Model, bool]:
        """The model, and whether it is our own decoder."""
        config = self._config
        settings = native_settings(folder, config.model_impl)
        if settings is None:
            if config.load_format == "dummy":
                raise FatalError(
                    "--load-format dummy works with our own decoder alone, which does not know this model or is"
                    " switched off by --model-impl; use --load-format auto"
                )
            return open_transformers(folder, self._dtype, self._device, self._loading), False
        ops: Ops = TorchOps()
        if uses_triton:
            from model_proc.kernels.triton_ops import TritonOps

            ops = TritonOps(_has_dependent_launch(self._device))
        length = self._files.max_model_len
        decoder = open_decoder(
            folder, settings, self._dtype, ops, self._device, length, config.load_format, self._loading
        )
        return decoder, True

    def _open_attention(self, uses_triton: bool, layers: list[LayerShape]) -> TorchAttention | TritonAttention:
        self._has_kernels = uses_triton
        if not uses_triton:
            return TorchAttention()
        from model_proc.attention.triton_paged import TritonAttention, supports

        odd = [shape for shape in layers if not supports(shape, self._dtype)]
        if odd:
            what = f"heads with keys of {odd[0].key_dim} and values of {odd[0].value_dim} as {self._dtype}"
            if self._config.attention_backend == "triton":
                raise FatalError(f"--attention-backend triton: it has no kernel for {what}; use auto or torch")
            log.warning("attention runs on plain PyTorch, slowly: there is no kernel for %s", what)
            return TorchAttention()

        attention = TritonAttention(self._batch, self._device, _has_dependent_launch(self._device))
        if isinstance(self._model, Decoder) and self._model.attends_plainly:
            from model_proc.attention.dense_prefill import make_plans

            settings, budget = self._model.settings, self._config.max_num_batched_tokens
            self._loading("plan prefills", 0, 0)
            attention.uses_dense = make_plans(
                settings.num_heads, layers[0], settings.attention_scale, self._files.max_model_len, budget, self._dtype,
                self._device,
            )  # fmt: skip
        return attention

    def _uses_graphs(self) -> bool:
        return self._device.type == "cuda" and not self._config.enforce_eager

    def _capture(self, attention: TritonAttention) -> DecodeGraphs:
        """Graphs of decode steps, captured now."""
        from model_proc.graphs import DecodeGraphs, capture_sizes

        wanted = [int(size) for size in self._config.cudagraph_capture_sizes]
        sizes = capture_sizes(wanted, self._config.max_num_seqs)
        depth = self._config.pipeline_depth
        graphs = DecodeGraphs(self._model, attention, self._cache, self._batch, sizes, depth)
        graphs.capture(lambda done, total: self._loading("capture CUDA graphs", done, total))
        return graphs

    def _warm_up(self, num_blocks: int) -> None:
        """Run a prefill and a decode side by side, so that every kernel is compiled before the first request."""
        lengths = [2, 1][: min(2, num_blocks, self._config.max_num_seqs)]
        slots = list(range(len(lengths)))
        admits = [
            Admit(slot, slot, Ids("i", [0] * length), length, 0, [slot], Sampling(temperature=1.0))
            for slot, length in zip(slots, lengths, strict=True)
        ]
        self.launch(Plan(0, [], admits, slots, lengths, [0] * len(slots), []))
        result = self.collect()
        for slot in slots:
            self._batch.drop(slot)
        if result.errors:
            raise FatalError(f"the model does not run on {self._device}: {result.errors[0]}; its log says more")

    def _num_blocks(self, layers: list[LayerShape], max_model_len: int) -> int:
        """How many blocks the KV cache gets: as asked for, or as the memory allows."""
        config = self._config
        block_bytes = KVCache.bytes_per_token(layers, self._dtype) * config.block_size
        if config.num_gpu_blocks_override:
            num_blocks = config.num_gpu_blocks_override
        elif config.kv_cache_memory_bytes:
            num_blocks = config.kv_cache_memory_bytes // block_bytes
        else:
            # More than every sequence at full length is never of use.
            useful = config.max_num_seqs * -(-max_model_len // config.block_size)
            num_blocks = min(self._free_memory() // block_bytes, useful)
        return num_blocks

    def _free_memory(self) -> int:
        """Bytes that the KV cache may take when nothing else is said."""
        if self._device.type == "cpu":
            return min(CPU_KV_CACHE_BYTES, psutil.virtual_memory().available // 4)
        free, total = torch.cuda.mem_get_info(self._device)
        return max(0, int(free - total * (1 - self._config.gpu_memory_utilization)))


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FatalError("--device cuda: PyTorch finds no GPU here; use --device cpu, or install a CUDA build")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted, 0) if wanted == "cuda" else torch.device(wanted)


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it fast, float32 elsewhere."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _uses_triton(wanted: str, device: torch.device) -> bool:
    """Whether kernels of our own run. Raises FatalError when they are asked for and cannot."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    available = importlib.util.find_spec("triton") is not None and (device.type == "cuda" or interpreted)
    if wanted == "triton" and not available:
        raise FatalError("--attention-backend triton: it needs a GPU and the package triton; use torch or auto")
    return wanted == "triton" or (wanted == "auto" and device.type == "cuda" and available)


def _has_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel may start before the one in front of it has ended: Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
