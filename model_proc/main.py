"""The model's process: plans in, results out."""

from __future__ import annotations

import gc
import time
from collections import deque

from ipc.messages import Loading, Plan, RunnerReady
from ipc.process import FatalError, Process
from model_proc.describe import describe
from model_proc.files.checkpoint import default_cache_dir, resolve
from model_proc.files.model_files import ModelFilesError
from model_proc.mock import MockRunner, describe_mock
from model_proc.runner import Runner

POLL_S = 20e-6


def serve(process: Process) -> None:
    """Find the model, say which one it is, load it, and execute plans until shutdown."""
    gc.disable()  # imports and weights only allocate: collecting in between costs about a second of the start
    try:
        runner = open_runner(process)
        ready = runner.load()
        check_capacity(ready)
    except ModelFilesError as error:
        raise FatalError(str(error)) from error
    scheduler = process.peer("scheduler")
    scheduler.send(ready)
    gc.enable()
    process.ready()
    plans: deque[Plan] = deque()
    while process.running:
        busy = bool(plans) or runner.in_flight > 0
        plans.extend(message for message in process.receive(0 if busy else None) if type(message) is Plan)
        if plans:
            runner.launch(plans.popleft())
            process.progress += 1
        if runner.in_flight and runner.is_done():
            scheduler.send(runner.collect())
            process.progress += 1
        elif runner.in_flight and not plans:
            # The device works. The next plan may arrive before it is done, so look out for both.
            time.sleep(POLL_S)


def check_capacity(ready: RunnerReady) -> None:
    """Raise FatalError unless the KV cache can hold the longest sequence that the server promises to take."""
    capacity = ready.num_blocks * ready.block_size
    if capacity < ready.max_model_len:
        raise FatalError(
            f"the KV cache has room for {capacity} tokens, less than one sequence of {ready.max_model_len}: lower "
            "--max-model-len, or give more with --kv-cache-memory-bytes or --num-gpu-blocks-override"
        )


def open_runner(process: Process) -> Runner:
    """The runner that `--model` asks for, announced but not loaded. The mock's process never imports torch."""
    supervisor, config = process.peer("supervisor"), process.config
    if config.model == "mock":
        files = describe_mock(config)
        supervisor.send(files)
        return MockRunner(config, files)

    def loading(phase: str, done: int, total: int) -> None:
        supervisor.send(Loading(phase, done, total))

    needs_weights = config.load_format != "dummy"
    files = describe(resolve(config.model, default_cache_dir(), loading, needs_weights), config)
    supervisor.send(files)
    # The others go on with the tokenizer while this import takes its seconds.
    loading("import torch", 0, 0)
    from model_proc.torch_runner import TorchRunner

    return TorchRunner(config, files, loading)
