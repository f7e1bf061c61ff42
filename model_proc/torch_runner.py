"""The runner for real models: executes plans with PyTorch on CPU or GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.messages import Admit, Logprobs, ModelFiles, Plan, Result, RunnerReady, Sampling
from ipc.process import FatalError
from model_proc.batch import StepInputs
from model_proc.files.checkpoint import generation_defaults
from model_proc.files.model_files import Progress
from model_proc.load import load
from model_proc.prompt_reader import PromptReader, Read
from model_proc.ranks import ALONE, Seat
from model_proc.sampler import Draws, Sampled, Sampler
from model_proc.staging import upload

if TYPE_CHECKING:
    # Not at run time: it needs Triton.
    from model_proc.graphs import DecodeGraphs

NOT_A_NUMBER = "the model's output is not a number"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """A step in flight."""

    plan: Plan
    sampling: list[Sampling]  # of the sequences that sample
    slots: list[int]  # theirs
    sampled: Sampled | None  # on the host once `done` has happened; None when nobody samples
    read: Read | None  # likewise: what was read of prompts
    done: torch.cuda.Event | None  # None on a CPU, where `launch` has done the work
    error: str  # why the whole step failed, "" when it did not
    started_ns: int


class TorchRunner:
    """One model on one device. `launch` does not wait for a GPU; `collect` does."""

    def __init__(self, config: ModelConfig, files: ModelFiles, loading: Progress, seat: Seat = ALONE) -> None:
        self._config = config
        self._files = files
        self._loading = loading
        self._seat = seat
        self._in_flight: deque[Launched] = deque()
        self._graphs: DecodeGraphs | None = None

    def load(self) -> RunnerReady:
        """Load the model and make ready for plans. Raises ModelFilesError, or FatalError when it does not fit."""
        config, files = self._config, self._files
        loaded = load(config, files, self._loading, self._seat)
        self._device = loaded.device
        self._has_kernels = loaded.has_kernels
        self._model = loaded.model
        self._cache = loaded.cache
        self._batch = loaded.batch
        self._attention = loaded.attention
        self._graphs = loaded.graphs
        self._ranks = loaded.ranks
        eos_token_ids = generation_defaults(Path(files.folder))["eos_token_id"]
        self._reader = PromptReader(self._device)
        self._sampler = Sampler(
            config.max_num_seqs, files.vocab_size, eos_token_ids, self._device, self._has_kernels
        )  # fmt: skip
        if self._has_kernels and self._device.type == "cuda":
            self._warm_up()
        return RunnerReady(
            num_blocks=self._cache.num_blocks,
            block_size=config.block_size,
            max_model_len=files.max_model_len,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=Ids("i", eos_token_ids),
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        while self._in_flight:
            self.collect()
        for slot in range(self._config.max_num_seqs):
            self._batch.drop(slot)
            self._reader.drop(slot)

    def launch(self, plan: Plan) -> None:
        started = time.monotonic_ns()
        inputs = self._batch.advance(plan)
        for slot in plan.drop:
            self._reader.drop(slot)
        for admit in plan.admit:
            self._sampler.admit(admit)
            self._reader.admit(admit)
        self._check_slots(plan.slots)
        sampled, read, done, error = None, None, None, ""
        try:
            with torch.inference_mode():
                sampled = self._run(inputs)
                if sampled is not None:
                    sampled = sampled.to_host()
                if (read := self._reader.take()) is not None:
                    read = read.to_host()
                if self._device.type == "cuda":
                    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    done.record()
        except RuntimeError as failure:
            if self._ranks is not None:
                raise  # the others are in the middle of a sum that this one never joined
            log.exception("step %d failed", plan.step)
            self._reader.take()
            error = f"the model failed in this step: {type(failure).__name__}"
        slots = inputs.sample_slots.tolist()
        sampling = self._sampling_of(slots)
        self._in_flight.append(Launched(plan, sampling, slots, sampled, read, done, error, started))

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
                if self._ranks is not None:
                    raise
                log.exception("step %d failed", step.plan.step)
                error = f"the device failed in this step: {type(failure).__name__}"
        if error:
            result.slots = []
            result.failed = step.plan.slots
            result.errors = [error] * len(result.failed)
        else:
            if step.sampled is not None:
                self._fill_in(result, step, step.sampled)
            if step.read is not None:
                self._add_readings(result, step.read)
        result.finished_ns = time.monotonic_ns()
        return result

    def _run(self, inputs: StepInputs) -> Sampled | None:
        """Compute a step and sample. Returns what was sampled; None when nobody samples, or another rank does it."""
        slots, sampler = inputs.sample_slots, self._sampler
        size = self._graphs.size_for(inputs) if self._graphs else None
        if self._has_kernels and sampler.is_plain(slots):
            draws = Draws(sampler.temperatures[slots], sampler.uniform_numbers(slots, inputs.sample_positions))
        else:
            draws = None
        if self._graphs and size is not None:
            logits = self._graphs.forward(size, inputs, draws)
        else:
            logits = self._forward(inputs)
        if not len(slots):
            return None
        if self._ranks is None:
            return self._sample(logits, inputs, draws, size)
        last_token, device_slots = self._batch.last_token, upload((slots,), self._device)[0]
        sampled = self._sample(logits, inputs, draws, size) if self._ranks.is_first else None
        last_token[device_slots] = self._ranks.hear_first(last_token[device_slots])
        return sampled

    def _sample(self, logits: Tensor, inputs: StepInputs, draws: Draws | None, size: int | None) -> Sampled:
        """Choose the tokens of a step and note them in the batch, where the next step finds them.

        `draws` are there when all rows draw plainly, `size` when the logits are those of a graph.
        """
        slots, last_token = inputs.sample_slots, self._batch.last_token
        if draws is not None and self._graphs and size is not None:
            return Sampled(self._graphs.sample(size, len(slots)), None, None)
        device_slots = upload((slots,), self._device)[0]
        if draws is not None:
            from model_proc.kernels.sampling_kernels import sample_plain

            columns = (draws.temperatures.view(np.int32), draws.numbers.view(np.int32))
            heat, number = (bits.view(torch.float32) for bits in upload(columns, self._device, torch.int32))
            return Sampled(sample_plain(logits, heat, number, device_slots, last_token), None, None)
        sampling = self._sampling_of(slots)
        num_output = inputs.sample_positions - self._batch.output_start[slots]
        sampled = self._sampler.sample(logits, sampling, slots, inputs.sample_positions, num_output)
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
        if not self._reader.wants(inputs):
            return self._model.forward(token_ids, positions, sample_rows, step)
        readout = self._model.read(token_ids, positions, step)
        self._reader.read(inputs, readout)
        return readout.logits(sample_rows)

    def _fill_in(self, result: Result, step: Launched, sampled: Sampled) -> None:
        """Put a step's samples into its result."""
        token_ids = sampled.token_ids.tolist()
        rows = [row for row, token in enumerate(token_ids) if token >= 0]
        result.slots = [step.slots[row] for row in rows]
        result.token_ids = Ids("i", [token_ids[row] for row in rows])
        result.failed = [slot for slot, token in zip(step.slots, token_ids, strict=True) if token < 0]
        result.errors = [NOT_A_NUMBER] * len(result.failed)
        if sampled.logprob_ids is not None and sampled.logprob_values is not None:
            ids, values = sampled.logprob_ids.tolist(), sampled.logprob_values.tolist()
            logprobs = Logprobs(counts=[], ids=Ids("i"), values=[], pieces=[])
            for row in rows:
                count = step.sampling[row].logprobs + 1
                logprobs.counts.append(count)
                logprobs.ids.extend(ids[row][:count])
                logprobs.values += values[row][:count]
            result.logprobs = logprobs

    def _add_readings(self, result: Result, read: Read) -> None:
        """Put what a step read of prompts into its result."""
        result.readings, failed = read.readings()
        result.failed += failed
        result.errors += [NOT_A_NUMBER] * len(failed)

    def _check_slots(self, slots: list[int]) -> None:
        for slot in slots:
            if self._batch.sampling[slot] is None:
                raise ValueError(f"the plan computes slot {slot}, which is empty")

    def _sampling_of(self, slots: Iterable[int]) -> list[Sampling]:
        return [params for slot in slots if (params := self._batch.sampling[slot]) is not None]

    def _warm_up(self) -> None:
        """Run a prefill and a decode side by side, so that every kernel is compiled before the first request."""
        lengths = [2, 1][: min(2, self._cache.num_blocks, self._config.max_num_seqs)]
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
