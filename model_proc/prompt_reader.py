"""What requests want to know of their prompts beside an answer: log-probabilities of the tokens, an embedding.

Such prompts come without cached tokens, so that every one of theirs passes by here, in one step or in several. The
logits of a prompt are never all there at once: they are reduced to a few columns, some rows at a time.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipc.codec import Ids
from ipc.messages import Admit, Logprobs, Reading
from model_proc.batch import StepInputs
from model_proc.device import is_out_of_memory
from model_proc.models.readout import Readout
from model_proc.sampler import NOT_A_NUMBER
from model_proc.staging import download, upload

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 128  # whose logits are in memory together, as float32


@dataclass(slots=True)
class Prompt:
    """A prompt that is being read."""

    rid: int
    token_ids: Ids
    logprobs: int  # alternatives beside each token; -1 when nobody wants them
    pooling: str  # "mean", "last", or "" when nobody wants an embedding
    total: Tensor | None = None  # [hidden size] float32: the sum of the hidden states so far, for the mean


@dataclass(slots=True)
class Piece:
    """What one step read of one prompt. Its rows are those of `Read.ids` and `Read.values` from `first_row` on."""

    slot: int
    rid: int
    first_token: int | None  # of the prompt, when its log-probabilities begin here
    start: int  # position of the first token that has a row
    num_rows: int
    num_entries: int  # of each row
    embedding: Tensor | None  # [hidden size] float32, when the prompt's end was read


@dataclass(slots=True)
class Read:
    """What one step read, on the device until `to_host`."""

    pieces: list[Piece]
    ids: Tensor | None  # [R, 1 + K] each token, then the K most likely ones in its place
    values: Tensor | None  # [R, 1 + K] natural logarithms
    errors: dict[int, str] = field(default_factory=dict)  # why slots could not be read

    def to_host(self) -> Read:
        """The same on the host, once an event recorded after this call has happened."""
        for piece in self.pieces:
            if piece.embedding is not None:
                piece.embedding = download(piece.embedding)
        if self.ids is None or self.values is None:
            return self
        return Read(self.pieces, download(self.ids), download(self.values), self.errors)

    def readings(self) -> tuple[list[Reading], dict[int, str]]:
        """The messages' form of it, and the slots that failed, each with the reason."""
        ids = [] if self.ids is None else self.ids.tolist()
        values = [] if self.values is None else self.values.tolist()
        readings, failed, row = [], dict(self.errors), 0
        for piece in self.pieces:
            logprobs, embedding = Logprobs(), [] if piece.embedding is None else piece.embedding.tolist()
            start = piece.start
            if piece.first_token is not None:
                start -= 1
                logprobs.counts.append(1)
                logprobs.ids.append(piece.first_token)
                logprobs.values.append(0.0)
            for index in range(row, row + piece.num_rows):
                logprobs.counts.append(piece.num_entries)
                logprobs.ids.extend(ids[index][: piece.num_entries])
                logprobs.values += values[index][: piece.num_entries]
            row += piece.num_rows
            if not all(map(math.isfinite, embedding)):
                failed[piece.slot] = NOT_A_NUMBER
            elif logprobs.counts or embedding:
                readings.append(Reading(piece.rid, start, logprobs, embedding))
        return readings, failed


class PromptReader:
    """Reads the prompts of the slots that want it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._prompts: dict[int, Prompt] = {}  # by slot
        self._last: Read | None = None

    def admit(self, admit: Admit) -> None:
        """Note what a sequence wants to know. One that has output already asks again for what it may have got."""
        params = admit.sampling
        self._prompts.pop(admit.slot, None)
        if params.prompt_logprobs >= 0 or params.pooling:
            token_ids = admit.token_ids[: admit.output_start]
            self._prompts[admit.slot] = Prompt(admit.rid, token_ids, params.prompt_logprobs, params.pooling)

    def drop(self, slot: int) -> None:
        """The slot's sequence is gone."""
        self._prompts.pop(slot, None)

    def wants(self, inputs: StepInputs) -> bool:
        """Whether there is something to read in a step."""
        return bool(self._prompts) and any(slot in self._prompts for slot in inputs.slots.tolist())

    def read(self, inputs: StepInputs, readout: Readout) -> None:
        """Read what a step computed; `take` gives it. Raises only what running out of memory raises."""
        try:
            self._last = self._read(inputs, readout)
        except Exception as failure:
            if is_out_of_memory(failure):
                raise
            log.warning("prompts could not be read", exc_info=True)
            reason = f"the reading of this prompt failed: {type(failure).__name__}"
            failed = [slot for slot in inputs.slots.tolist() if slot in self._prompts]
            self._last = Read([], None, None, dict.fromkeys(failed, reason))

    def _read(self, inputs: StepInputs, readout: Readout) -> Read:
        finished: list[int] = []
        pieces: list[Piece] = []
        rows: list[NDArray[np.int64]] = []  # of the readout, one after the other
        targets: list[Ids] = []  # and the tokens that came behind each
        end = 0
        for slot, count in zip(inputs.slots.tolist(), inputs.query_lens.tolist(), strict=True):
            begin, end = end, end + count
            prompt = self._prompts.get(slot)
            if prompt is None:
                continue
            position = int(inputs.positions[begin])
            num_rows, first_token = 0, None
            if prompt.logprobs >= 0:
                first_token = prompt.token_ids[0] if position == 0 else None
                behind = prompt.token_ids[position + 1 : position + 1 + count]
                num_rows = len(behind)
                rows.append(np.arange(begin, begin + num_rows))
                targets.append(behind)
            embedding = None
            if prompt.pooling:
                embedding = _pool(prompt, readout.hidden[begin:end], position + count)
            pieces.append(Piece(slot, prompt.rid, first_token, position + 1, num_rows, prompt.logprobs + 1, embedding))
            if position + count >= len(prompt.token_ids):
                finished.append(slot)
        ids, values = self._logprobs(readout, rows, targets, max(piece.num_entries for piece in pieces) - 1)
        for slot in finished:
            del self._prompts[slot]
        return Read(pieces, ids, values)

    def take(self) -> Read | None:
        """What the last step read, once; None when it read nothing."""
        last, self._last = self._last, None
        return last

    def _logprobs(
        self, readout: Readout, rows: list[NDArray[np.int64]], targets: list[Ids], num_top: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The columns of `Read`, K being `num_top`."""
        if not rows or not sum(map(len, rows)):
            return None, None
        behind = np.concatenate([np.frombuffer(target, dtype=np.int32) for target in targets if target])
        all_rows, all_targets = upload((np.concatenate(rows), behind.astype(np.int64)), self._device)
        ids, values = [], []
        for start in range(0, len(behind), ROWS_AT_ONCE):
            end = start + ROWS_AT_ONCE
            logprobs = readout.logits(all_rows[start:end]).float().log_softmax(dim=-1)
            target = all_targets[start:end, None]
            top = logprobs.topk(num_top, dim=-1)
            ids.append(torch.cat([target, top.indices], dim=1))
            values.append(torch.cat([logprobs.gather(1, target), top.values], dim=1))
        return torch.cat(ids), torch.cat(values)


def _pool(prompt: Prompt, hidden: Tensor, num_read: int) -> Tensor | None:
    """The prompt's embedding, once its end is among the tokens of `hidden` [tokens, hidden size]; None before."""
    is_end = num_read >= len(prompt.token_ids)
    if prompt.pooling == "last":
        return hidden[-1].float() if is_end else None
    total = hidden.float().sum(dim=0)
    prompt.total = total if prompt.total is None else prompt.total + total
    return prompt.total / len(prompt.token_ids) if is_end else None
