"""What quantization costs in accuracy: each way of keeping the weights against plain PyTorch in float32.

    python -m benchmark.quantization [--model smollm2-135m] [--text FILE] [--json FILE]

Perplexity on a fixed text (this repository's documentation, unless --text names another one), cut into windows, and
greedy answers to fixed prompts, token by token. The reference is the checkpoint's weights in float32, dequantized where
they were published quantized, on plain PyTorch. The runner works alone, without the other processes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmark.accuracy.texts import TEXTS
from benchmark.report import write_json
from ipc.codec import Ids
from ipc.config import ModelConfig, section
from ipc.control_messages import ModelFiles, RunnerReady
from ipc.messages import Admit, Plan, Sampling
from ipc.options import complete
from model_proc.describe import describe
from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.torch_runner import TorchRunner

DOCS = Path(__file__).resolve().parent.parent / "docs"
WINDOW = 512  # tokens; each window is read from its start
REFERENCE = "float32 on plain PyTorch"
MODES: dict[str, dict[str, Any]] = {
    REFERENCE: {"dtype": "float32", "quantization": "none", "attention_backend": "torch", "num_threads": 1},
    "--dtype float32 --quantization none": {"dtype": "float32", "quantization": "none"},
    "--dtype float32": {"dtype": "float32"},
    "the default": {},
    "--dtype float32 --quantization int8": {"dtype": "float32", "quantization": "int8"},
    "--quantization int8": {"quantization": "int8"},
    "--dtype bfloat16 --quantization none": {"dtype": "bfloat16", "quantization": "none"},
}


class Model:
    """A loaded runner and what is asked of it."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        values = {"model": model, "device": "cpu", "num_gpu_blocks_override": 600, "max_num_seqs": 32, **options}
        config = section(ModelConfig, complete(values))
        self.files: ModelFiles = describe(resolve(model, default_cache_dir(), lambda *_: None), config)
        self.runner = TorchRunner(config, self.files, lambda *_: None)
        self.ready: RunnerReady = self.runner.load()
        self._step = 0

    def perplexity(self, ids: list[int]) -> tuple[float, int]:
        """Of the text, window by window, and how many tokens were predicted."""
        total, count = 0.0, 0
        for start in range(0, len(ids) - 1, WINDOW):
            window = ids[start : start + WINDOW + 1]
            logits = self._logits(window[:-1])
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum")
            total, count = total + float(losses), count + len(window) - 1
        return math.exp(total / count), count

    def greedy(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        """The most likely `length` tokens behind each prompt, ends of sequence included."""
        slots, ones = list(range(len(prompts))), [1] * len(prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        admits, first = [], 0
        for slot, ids in enumerate(prompts):
            blocks = -(-(len(ids) + length) // self.ready.block_size)
            table = list(range(first, first + blocks))
            admits.append(Admit(slot, slot, Ids("i", ids), len(ids), 0, table, Sampling(temperature=0.0)))
            first += blocks
        for step in range(length):
            tokens = ones if step else [len(ids) for ids in prompts]
            self._run(Plan(self._step, [], [] if step else admits, slots, tokens, [0] * len(slots), []), answers)
        return answers

    def _logits(self, ids: list[int]) -> torch.Tensor:
        """The logits behind every token, [T, vocabulary], computed as one prefill."""
        runner, blocks = self.runner, -(-len(ids) // self.ready.block_size)
        admit = Admit(0, 0, Ids("i", ids), len(ids), 0, list(range(blocks)), Sampling())
        inputs = runner._batch.advance(Plan(0, [], [admit], [0], [len(ids)], [0], []))
        with torch.inference_mode():
            step = runner._attention.step(runner._cache, runner._batch, inputs)
            positions = torch.from_numpy(inputs.positions)
            return runner._model.forward(torch.tensor(ids), positions, None, step).float()

    def _run(self, plan: Plan, answers: list[list[int]]) -> None:
        self._step += 1
        self.runner.launch(plan)
        result = self.runner.collect()
        if result.errors:
            raise SystemExit(result.errors[0])
        for slot, token in zip(result.slots, result.token_ids, strict=True):
            answers[slot].append(token)


def measure(model: str, text: str, max_tokens: int, length: int) -> dict[str, Any]:
    """Every mode's perplexity and how many of its answers are the reference's."""
    rows: list[dict[str, Any]] = []
    reference: list[list[int]] = []
    for mode, options in MODES.items():
        loaded = Model(model, options)
        tokenizer = Tokenizer.from_file(str(Path(loaded.files.tokenizer_folder) / "tokenizer.json"))
        ids = tokenizer.encode(text).ids[:max_tokens]
        perplexity, predicted = loaded.perplexity(ids)
        answers = loaded.greedy([tokenizer.encode(prompt).ids for prompt in TEXTS], length)
        reference = reference or answers
        rows.append({
            "mode": mode,
            "options": options,
            "perplexity": perplexity,
            "perplexity_change": perplexity / rows[0]["perplexity"] - 1 if rows else 0.0,
            "same_answers": sum(ours == theirs for ours, theirs in zip(answers, reference, strict=True)),
            "same_tokens": sum(_common(ours, theirs) for ours, theirs in zip(answers, reference, strict=True)),
        })  # fmt: skip
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "model": model,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "predicted_tokens": predicted,
        "prompts": len(TEXTS),
        "answer_tokens": length,
        "modes": rows,
    }


def _common(ours: list[int], theirs: list[int]) -> int:
    """How many leading tokens are the same."""
    return next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))


def show(figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['model']}, {figures['predicted_tokens']} tokens of text", title_justify="left")
    for column in ("mode", "perplexity", "change", "same answers", "tokens until they differ"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for row in figures["modes"]:
        table.add_row(
            row["mode"], f"{row['perplexity']:.3f}", f"{100 * row['perplexity_change']:+.2f} %",
            f"{row['same_answers']} of {figures['prompts']}",
            f"{row['same_tokens'] / figures['prompts']:.1f} of {figures['answer_tokens']}",
        )  # fmt: skip
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmark.quantization", description="What quantization costs in accuracy.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, help="the text whose perplexity is measured")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of the text (default: 4096)")
    parser.add_argument("--answer-len", type=int, default=64, help="tokens of each answer (default: 64)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    text = args.text.read_text() if args.text else "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    figures = measure(args.model, text, args.max_tokens, args.answer_len)
    show(figures)
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
