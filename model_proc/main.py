"""The model's process: plans in, results out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ipc.messages import Loading, Plan
from ipc.process import FatalError, Process
from model_proc.checkpoint import default_cache_dir, resolve
from model_proc.describe import describe
from model_proc.mock import MockRunner, describe_mock
from model_proc.model_files import ModelFilesError
from model_proc.runner import Runner

POLL_S = 20e-6


def serve(process: Process) -> None:
    """Find the model, say which one it is, load it, and execute plans until shutdown."""
    try:
        runner = open_runner(process)
        ready = runner.load()
    except ModelFilesError as error:
        raise FatalError(str(error)) from error
    scheduler = process.peer("scheduler")
    scheduler.send(ready)
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


def open_runner(process: Process) -> Runner:
    """The runner that `--model` asks for, announced but not loaded. The mock's process never imports torch."""
    supervisor, config = process.peer("supervisor"), process.config
    if config.model == "mock":
        files = describe_mock(config)
        supervisor.send(files)
        return MockRunner(config, files)

    def loading(phase: str, done: int, total: int) -> None:
        supervisor.send(Loading(phase, done, total))

    files = describe(resolve(config.model, default_cache_dir(), loading), config)
    supervisor.send(files)
    # The others go on with the tokenizer while this import takes its seconds.
    loading("import torch", 0, 0)
    from model_proc.torch_runner import TorchRunner

    return TorchRunner(config, files, loading)
