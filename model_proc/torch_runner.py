"""The runner for real models: executes plans with PyTorch on CPU or GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.messages import Logprobs, ModelFiles, Plan, Result, RunnerReady, Sampling
from ipc.process import FatalError
from model_proc.attention import transformers_bridge
from model_proc.attention.paged import KVCache, LayerShape
from model_proc.attention.torch_sdpa import TorchAttention
from model_proc.batch import Batch, StepInputs
from model_proc.files.checkpoint import generation_defaults
from model_proc.files.model_files import Progress
from model_proc.sampler import Sampled, Sampler
from model_proc.weights import load_model

CPU_KV_CACHE_BYTES = 4 << 30  # at most this much, and at most a quarter of the memory that is free
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """A step in flight."""

    plan: Plan
    sampling: list[Sampling]  # of the sequences that sample
    slots: list[int]  # theirs
    sampled: Sampled | None  # None when nobody samples
    error: str  # why the whole step failed, "" when it did not
    started_ns: int


class TorchRunner:
    """One model on one device. `launch` does not wait for a GPU; `collect` does."""

    def __init__(self, config: ModelConfig, files: ModelFiles, loading: Progress) -> None:
        self._config = config
        self._files = files
        self._loading = loading
        self._in_flight: deque[Launched] = deque()
        self._attention = TorchAttention()

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
        transformers_bridge.register()
        folder = Path(files.folder)
        self._model = load_model(folder, self._dtype, self._device, transformers_bridge.NAME, self._loading)
        layers = self._probe_layers()
        num_blocks = self._num_blocks(layers, files.max_model_len)
        self._cache = KVCache(layers, num_blocks, config.block_size, self._dtype, self._device)
        self._batch = Batch(config.max_num_seqs, files.max_model_len, config.block_size, self._device)
        eos_token_ids = generation_defaults(folder)["eos_token_id"]
        self._sampler = Sampler(config.max_num_seqs, files.vocab_size, eos_token_ids, self._device)
        log.info(
            "%s on %s as %s, %d threads, KV cache of %d tokens",
            files.name, self._device, str(self._dtype).removeprefix("torch."), torch.get_num_threads(),
            num_blocks * config.block_size,
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
        sampling = [self._sampling_of(slot) for slot in inputs.sample_slots]
        sampled, error = None, ""
        try:
            with torch.inference_mode():
                sampled = self._run(inputs, sampling)
        except RuntimeError as failure:
            log.exception("step %d failed", plan.step)
            error = f"the model failed in this step: {type(failure).__name__}"
        slots = inputs.sample_slots.tolist()
        self._in_flight.append(Launched(plan, sampling, slots, sampled, error, started))

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def next_done_ns(self) -> None:
        return None  # it is not known beforehand

    def is_done(self) -> bool:
        return True

    def collect(self) -> Result:
        step = self._in_flight.popleft()
        result = Result(
            step=step.plan.step, slots=step.slots, token_ids=Ids("i"), logprobs=None, failed=[], errors=[],
            started_ns=step.started_ns, finished_ns=0,
        )  # fmt: skip
        if step.error:
            result.slots = []
            result.failed = step.plan.slots
            result.errors = [step.error] * len(result.failed)
        elif step.sampled is not None:
            self._fill_in(result, step, step.sampled)
        result.finished_ns = time.monotonic_ns()
        return result

    def _run(self, inputs: StepInputs, sampling: list[Sampling]) -> Sampled | None:
        batch = self._batch
        logits = self._forward(inputs)
        if not sampling:
            return None
        slots = inputs.sample_slots
        num_output = inputs.sample_positions - batch.output_start[slots]
        sampled = self._sampler.sample(logits, sampling, slots, inputs.sample_positions, num_output)
        batch.last_token[torch.from_numpy(slots).to(self._device)] = sampled.token_ids
        return sampled

    def _forward(self, inputs: StepInputs) -> Tensor:
        """Compute a step's tokens. Returns the logits of the rows that sample, [S, vocabulary]."""
        step = self._attention.step(self._cache, self._batch, inputs)
        host_ids, from_device, token_slots, positions, sample_rows = (
            torch.from_numpy(values).to(self._device)
            for values in (
                inputs.token_ids, inputs.from_device, inputs.token_slots, inputs.positions, inputs.sample_rows,
            )
        )  # fmt: skip
        token_ids = torch.where(from_device, self._batch.last_token[token_slots], host_ids)
        return self._call_model(token_ids, positions, sample_rows, step)

    def _call_model(self, token_ids: Tensor, positions: Tensor, sample_rows: Tensor, step: Any) -> Tensor:
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=sample_rows,
            **{transformers_bridge.STEP_KEYWORD: step},
        )
        return output.logits[0]

    def _fill_in(self, result: Result, step: Launched, sampled: Sampled) -> None:
        """Bring a step's samples to the host and into its result."""
        token_ids = sampled.token_ids.tolist()
        finite = sampled.finite.tolist()
        rows = [row for row, ok in enumerate(finite) if ok]
        result.slots = [step.slots[row] for row in rows]
        result.token_ids = Ids("i", [token_ids[row] for row in rows])
        result.failed = [slot for slot, ok in zip(step.slots, finite, strict=True) if not ok]
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

    def _sampling_of(self, slot: int) -> Sampling:
        sampling = self._batch.sampling[slot]
        if sampling is None:
            raise ValueError(f"the plan computes slot {slot}, which is empty")
        return sampling

    # -- loading -------------------------------------------------------------------------------------------------------

    def _probe_layers(self) -> list[LayerShape]:
        """What each layer keeps in the KV cache, found by sending one token through the model."""
        probe = transformers_bridge.ShapeProbe()
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self._call_model(zero, zero, zero, probe)
        return [probe.layers[layer] for layer in sorted(probe.layers)]

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
