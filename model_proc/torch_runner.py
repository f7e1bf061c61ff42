"""The runner for real models: executes plans with PyTorch on CPU or GPU."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ipc import faults
from ipc.codec import Ids
from ipc.config import ModelConfig
from ipc.control_messages import ModelFiles, RunnerReady
from ipc.messages import Admit, Logprobs, Plan, Prepare, Result, Sampling
from ipc.process import FatalError
from model_proc.batch import StepInputs
from model_proc.chooser import Chooser
from model_proc.constraints import Constraints
from model_proc.device import is_out_of_memory
from model_proc.files.checkpoint import generation_defaults
from model_proc.files.model_files import Progress
from model_proc.grammars import Answer, Grammars
from model_proc.launched import Forward, Launched
from model_proc.load import load
from model_proc.prompt_reader import PromptReader
from model_proc.ranks import ALONE, Seat
from model_proc.sampler import NOT_A_NUMBER, Draws, Sampled, Sampler
from model_proc.staging import upload

if TYPE_CHECKING:
    # Not at run time: it needs Triton.
    from model_proc.graphs import DecodeGraphs

log = logging.getLogger(__name__)


class TorchRunner:
    """One model on one device. `launch` does not wait for a GPU; `collect` does."""

    def __init__(self, config: ModelConfig, files: ModelFiles, loading: Progress, seat: Seat = ALONE) -> None:
        self._config = config
        self._files = files
        self._loading = loading
        self._seat = seat
        self._in_flight: deque[Launched] = deque()
        self._deferred: Launched | None = None  # the last one launched, while its sampling waits for tokens
        self._eos_token_ids = generation_defaults(Path(files.folder))["eos_token_id"]
        self._constraints: Constraints | None = None
        if seat.rank == 0:  # it samples for all
            grammars = Grammars(Path(files.tokenizer_folder) / "tokenizer.json", files.vocab_size, self._eos_token_ids)
            self._constraints = Constraints(grammars, self._eos_token_ids, files.vocab_size)
        self._graphs: DecodeGraphs | None = None

    def load(self) -> RunnerReady:
        """Load the model and make ready for plans. Raises ModelFilesError, or FatalError when it does not fit."""
        config, files = self._config, self._files
        try:
            loaded = load(config, files, self._loading, self._seat)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise FatalError(
                f"{files.name} does not fit into the memory of its device ({error}): share it with"
                " --tensor-parallel-size, lower --gpu-memory-utilization or --kv-cache-memory-bytes if the cache is too"
                " large, or use a smaller model"
            ) from error
        self._device = loaded.device
        self._has_kernels = loaded.has_kernels
        self._model = loaded.model
        self._cache = loaded.cache
        self._batch = loaded.batch
        self._attention = loaded.attention
        self._graphs = loaded.graphs
        self._ranks = loaded.ranks
        self._reader = PromptReader(self._device)
        self._sampler = Sampler(
            config.max_num_seqs, files.vocab_size, self._eos_token_ids, self._device, self._has_kernels
        )  # fmt: skip
        self._chooser = Chooser(self._batch, self._sampler, self._graphs, self._constraints, self._device)
        if self._has_kernels and self._device.type == "cuda":
            self._warm_up()
        return RunnerReady(
            num_blocks=self._cache.num_blocks,
            block_size=config.block_size,
            max_model_len=files.max_model_len,
            max_num_seqs=config.max_num_seqs,
            eos_token_ids=Ids("i", self._eos_token_ids),
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        while self._in_flight:
            self.collect()
        for slot in range(self._config.max_num_seqs):
            self._batch.drop(slot)
            self._reader.drop(slot)
        if self._constraints is not None:
            self._constraints.reset()

    def prepare(self, message: Prepare, answer: Answer) -> None:
        if self._constraints is not None:
            self._constraints.grammars.prepare(message, answer)

    def launch(self, plan: Plan) -> None:
        started = time.monotonic_ns()
        self._sample_deferred()
        if self._constraints is not None:
            self._constraints.advance(plan)
        inputs = self._batch.advance(plan)
        for slot in plan.drop:
            self._reader.drop(slot)
        errors = self._admit(plan.admit)
        self._check_slots(plan.slots)
        slots = inputs.sample_slots.tolist()
        constraints = self._constraints.of_rows(slots) if self._constraints is not None else []
        step = Launched(plan, inputs, slots, self._sampling_of(slots), constraints, started, errors=errors)
        with self._contained(step, "model"):
            step.forward = self._forward(inputs)
            if (read := self._reader.take()) is not None:
                step.read = read.to_host()
        if step.needs_tokens and not all(earlier.is_known for earlier in self._in_flight):
            # The host must not wait here: `collect` goes on with it as soon as the tokens are there.
            self._deferred = step
        else:
            self._sample(step)
        self._in_flight.append(step)

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
        self._know(step)
        self._sample_deferred()  # the device may be about to need it, so the result comes second
        result = Result(
            step=step.plan.step, slots=step.slots, token_ids=Ids("i"), logprobs=None, failed=[], errors=[],
            started_ns=step.started_ns, finished_ns=0,
        )  # fmt: skip
        if step.ran_out:
            result.slots, result.out_of_memory = [], True
        elif step.error:
            result.slots = []
            result.failed = step.plan.slots
            result.errors = [step.error] * len(result.failed)
        else:
            errors = step.errors
            if step.read is not None:
                result.readings, not_read = step.read.readings()
                errors |= not_read
            if step.sampled is not None:
                self._fill_in(result, step, step.sampled)
            result.failed, result.errors = list(errors), list(errors.values())
        result.finished_ns = time.monotonic_ns()
        return result

    @contextmanager
    def _contained(self, step: Launched, what: str) -> Iterator[None]:
        """Let a failure of what is done within be the step's."""
        try:
            with torch.inference_mode():
                yield
        except Exception as failure:
            if self._ranks is not None:
                raise  # the others are in the middle of a sum that this one never joined
            self._reader.take()
            if is_out_of_memory(failure):
                log.warning(
                    "no memory for step %d of %d tokens: %s", step.plan.step, sum(step.plan.num_tokens), failure
                )
                step.ran_out = True
            else:
                log.exception("step %d failed", step.plan.step)
                step.error = step.error or f"the {what} failed in this step: {type(failure).__name__}"
        if step.ran_out and self._device.type == "cuda":
            torch.cuda.empty_cache()  # pieces of the wrong sizes; only now does nothing hold on to them

    def _admit(self, admits: list[Admit]) -> dict[int, str]:
        """Note how new sequences sample and what they read. Returns the slots for which that failed, and why."""
        errors = {}
        for admit in admits:
            try:
                self._sampler.admit(admit)
                self._reader.admit(admit)
            except Exception as failure:
                log.warning("slot %d cannot be admitted", admit.slot, exc_info=True)
                errors[admit.slot] = f"the sampling of this request cannot be set up: {type(failure).__name__}"
        return errors

    # -- the forward pass ----------------------------------------------------------------------------------------------

    def _forward(self, inputs: StepInputs) -> Forward | None:
        """Launch a step's forward pass. Returns what there is to sample from, None when nobody samples."""
        slots, sampler = inputs.sample_slots, self._sampler
        size = self._graphs.size_for(inputs) if self._graphs else None
        if self._has_kernels and sampler.is_plain(slots):
            draws = Draws(sampler.temperatures[slots], sampler.uniform_numbers(slots, inputs.sample_positions))
        else:
            draws = None
        if self._graphs and size is not None:
            logits = self._graphs.forward(size, inputs, draws)
        else:
            logits = self._compute(inputs)
        if faults.armed and len(slots) and faults.at("logits"):
            logits[0] = float("nan")
        return Forward(logits, size, draws) if len(slots) else None

    def _compute(self, inputs: StepInputs) -> Tensor:
        """Compute a step's tokens without a graph. Returns the logits of the rows that sample, [S, vocabulary]."""
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

    # -- sampling ------------------------------------------------------------------------------------------------------

    def _sample_deferred(self) -> None:
        """Launch the sampling that waited for tokens, if there is one."""
        step, self._deferred = self._deferred, None
        if step is not None:
            self._sample(step)

    def _sample(self, step: Launched) -> None:
        """Launch a step's sampling; on a CPU, do it."""
        with self._contained(step, "model"):
            if step.forward is not None:
                sampled = self._choose_once(step, step.forward)
                step.sampled = None if sampled is None else sampled.to_host()
                step.forward = None
            if self._device.type == "cuda":
                step.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                step.done.record()
        if step.done is None:
            self._know(step)

    def _choose_once(self, step: Launched, forward: Forward) -> Sampled | None:
        """Choose the tokens of a step, on one rank for all; None on the others."""
        if step.needs_tokens:
            for earlier in self._in_flight:
                if earlier is not step:
                    self._know(earlier)
        if self._ranks is None:
            return self._chooser.choose(step, forward)
        last_token, slots = self._batch.last_token, upload((step.inputs.sample_slots,), self._device)[0]
        sampled = self._chooser.choose(step, forward) if self._ranks.is_first else None
        last_token[slots] = self._ranks.hear_first(last_token[slots])
        return sampled

    def _know(self, step: Launched) -> None:
        """Wait for a step's tokens, and let the constraints know them."""
        if step.is_known:
            return
        step.is_known = True
        with self._contained(step, "device"):
            if step.done is not None:
                step.done.synchronize()
        if step.constraints and step.sampled is not None and not step.error:
            token_ids = step.sampled.token_ids.tolist()
            for row, constraint in step.constraints:
                constraint.accept(token_ids[row])

    def _fill_in(self, result: Result, step: Launched, sampled: Sampled) -> None:
        """Put a step's samples into its result; the slots that have none into the step's errors."""
        token_ids = sampled.token_ids.tolist()
        for row, constraint in step.constraints:
            if constraint.error:
                step.errors.setdefault(step.slots[row], constraint.error)
        for slot, token in zip(step.slots, token_ids, strict=True):
            if token < 0:
                step.errors.setdefault(slot, NOT_A_NUMBER)
        rows = [row for row, slot in enumerate(step.slots) if slot not in step.errors]
        result.slots = [step.slots[row] for row in rows]
        result.token_ids = Ids("i", [token_ids[row] for row in rows])
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
