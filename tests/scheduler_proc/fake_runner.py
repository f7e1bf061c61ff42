"""A runner that keeps the contract to the letter and checks that the scheduler does: its KV memory holds token ids.

The next token is a function of all tokens before it, and those are read back through the block table. So a block that
is shared with the wrong sequence, overwritten, or reused too early changes the output or fails an assertion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from hashlib import blake2b

from ipc.codec import Ids, decode, encode
from ipc.control_messages import RunnerReady
from ipc.messages import Admit, Logprobs, Output, Plan, Prepare, Reading, Result, Sampling, Submit, Tokens

VOCAB_SIZE = 11
EOS = 0


def next_token(token_ids: Iterable[int]) -> int:
    """What the fake model says after these tokens."""
    digest = blake2b(Ids("i", token_ids).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def generate(prompt: list[int], max_tokens: int, ignore_eos: bool) -> list[int]:
    """What a request must get, whatever the scheduler does."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] == EOS and not ignore_eos:
            break
    return tokens[len(prompt) :]


def submit(rid: int, prompt: list[int], max_tokens: int, n: int = 1, salt: str = "", **sampling: object) -> Submit:
    params = Sampling(max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Submit(rid, f"request-{rid}", n, Ids("i", prompt), params, Output(), 0, salt, 1, 2, None)


class FakeRunner:
    """Executes plans in order, one at a time, when told to."""

    def __init__(self, ready: RunnerReady) -> None:
        self.block_size = ready.block_size
        self.memory = [-1] * (ready.num_blocks * ready.block_size)
        self.max_num_seqs = ready.max_num_seqs
        self.slots: dict[int, Admit] = {}
        self.tokens: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.plans: deque[Plan] = deque()
        self.grammars: set[int] = set()

    def prepare(self, message: Prepare) -> None:
        _, message = decode(encode(message, epoch=1))
        self.grammars -= set(message.forget)
        if message.text != "bad":
            self.grammars.add(message.grammar)

    def execute(self, fail: set[int] | None = None, most_tokens: int | None = None) -> Result:
        """Run the oldest plan; `fail` are indexes into its slots whose work comes to nothing.

        There is no memory for steps of more than `most_tokens`: they leave garbage behind.
        """
        plan = self.plans.popleft()
        ran_out = most_tokens is not None and sum(plan.num_tokens) > most_tokens
        if ran_out:
            fail = set(range(len(plan.slots)))
        for slot in plan.drop:
            self.slots.pop(slot, None)
        for admit in plan.admit:
            assert admit.slot not in self.slots, "a slot is given away twice"
            assert 0 <= admit.slot < self.max_num_seqs
            assert admit.grammar < 0 or admit.grammar in self.grammars, "a grammar that is not prepared"
            assert 0 <= admit.num_computed < len(admit.token_ids)
            self.slots[admit.slot] = admit
            self.tokens[admit.slot] = list(admit.token_ids)
            self.computed[admit.slot] = admit.num_computed
        new_blocks = iter(plan.blocks)
        assert len(set(plan.slots)) == len(plan.slots)
        failed_slots = {plan.slots[index] for index in fail or ()}
        result = Result(plan.step, [], Ids("i"), None, [], [], 0, 0)
        sampling = []
        for slot, count, grown in zip(plan.slots, plan.num_tokens, plan.num_blocks, strict=True):
            self.slots[slot].blocks.extend(next(new_blocks) for _ in range(grown))
            sampling += self._write(slot, count, slot in failed_slots)
        assert next(new_blocks, None) is None
        for slot in sampling:
            self._sample(slot, result, slot in failed_slots)
        for slot, count in zip(plan.slots, plan.num_tokens, strict=True):
            if slot not in failed_slots:
                self._read(slot, count, result)
        if ran_out:
            result.out_of_memory = True
            return result
        for slot in sorted(failed_slots):
            result.failed.append(slot)
            result.errors.append("failed on purpose")
        return result

    def _write(self, slot: int, count: int, failed: bool) -> list[int]:
        tokens = self.tokens[slot]
        for position in range(self.computed[slot], self.computed[slot] + count):
            # As with real KV, what is computed on garbage is garbage too.
            spoiled = failed or (position > 0 and self.memory[self._row(slot, position - 1)] != tokens[position - 1])
            self.memory[self._row(slot, position)] = -2 if spoiled else tokens[position]
        self.computed[slot] += count
        assert self.computed[slot] <= len(tokens), "a sequence is planned past its tokens"
        is_end = self.computed[slot] == len(tokens) and not self.slots[slot].sampling.prompt_only
        return [slot] if is_end else []

    def _read(self, slot: int, count: int, result: Result) -> None:
        """What the step's tokens, which are computed by now, tell of the prompt."""
        admit = self.slots[slot]
        prompt = admit.token_ids[: admit.output_start]
        end = self.computed[slot]
        if admit.sampling.pooling and end - count < len(prompt) <= end:
            result.readings.append(Reading(admit.rid, len(prompt), Logprobs(), [float(sum(prompt))]))
        if admit.sampling.prompt_logprobs >= 0:
            start = end - count + (end > count)
            ids = prompt[start : end + 1]
            if ids:
                rows = Logprobs(counts=[1] * len(ids), ids=ids, values=[0.0] * len(ids), pieces=[])
                result.readings.append(Reading(admit.rid, start, rows, []))

    def _sample(self, slot: int, result: Result, failed: bool) -> None:
        tokens = self.tokens[slot]
        if failed:
            tokens.append(-2)  # a step behind this one is planned already and goes on with whatever is there
            return
        seen = [self.memory[self._row(slot, position)] for position in range(len(tokens))]
        # On garbage left by a failed neighbour there is a result all the same; the scheduler must not believe it.
        token = next_token(tokens) if seen == tokens else VOCAB_SIZE + 1
        tokens.append(token)
        result.slots.append(slot)
        result.token_ids.append(token)

    def _row(self, slot: int, position: int) -> int:
        return self.slots[slot].blocks[position // self.block_size] * self.block_size + position % self.block_size


class Client:
    """Collects what reaches the detokenizer, and checks that every sequence has one Head, its tokens, and one Tail."""

    def __init__(self) -> None:
        self.output: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[list[int]]] = {}
        self.cached: dict[int, int] = {}
        self.reason: dict[int, int] = {}
        self.read: dict[int, list[int]] = {}  # the tokens of the prompt whose log-probabilities came
        self.embedding: dict[int, list[float]] = {}

    def take(self, messages: list[Tokens]) -> None:
        for message in messages:
            for head in message.heads:
                assert head.rid not in self.output, "two heads"
                self.output[head.rid] = []
                self.logprobs[head.rid] = []
                self.cached[head.rid] = head.cached_tokens
            for reading in message.readings:
                assert reading.rid in self.output, "a reading without a head"
                assert reading.rid not in self.reason, "a reading after the end"
                read = self.read.setdefault(reading.rid, [])
                assert reading.start == len(read) or not reading.logprobs.counts, "a position twice, or one left out"
                read += reading.logprobs.ids
                self.embedding.setdefault(reading.rid, []).extend(reading.embedding)
            rows = _rows(message.logprobs, len(message.rids))
            for rid, token, row in zip(message.rids, message.token_ids, rows, strict=True):
                assert rid not in self.reason, "a token after the end"
                self.output[rid].append(token)
                self.logprobs[rid].append(row)
            for tail in message.tails:
                assert tail.rid in self.output, "a tail without a head"
                assert tail.rid not in self.reason, "two tails"
                assert tail.completion_tokens == len(self.output[tail.rid])
                self.reason[tail.rid] = tail.reason
        messages.clear()


def _rows(logprobs: Logprobs | None, count: int) -> list[list[int]]:
    if logprobs is None:
        return [[]] * count
    ids = iter(logprobs.ids)
    return [[next(ids) for _ in range(entries)] for entries in logprobs.counts]
