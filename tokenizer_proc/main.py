"""The tokenizer's process: requests and look-ups in, prompts of token ids out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ipc.control_messages import ModelFiles
from ipc.messages import Generate
from ipc.process import Process
from ipc.spans import TOKENIZE, Spans
from tokenizer_proc.encoder import load_encoder
from tokenizer_proc.grammar_check import GrammarChecker
from tokenizer_proc.model_folder import load_template
from tokenizer_proc.pool import Pool, thread_number
from tokenizer_proc.preparer import Answer, Preparer, Question
from tokenizer_proc.router import Router


def serve(process: Process) -> None:
    """Wait to be told which model it is, then prepare its requests until shutdown."""
    # The pool's threads are all that there are: the library would start one more for every core.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    early: list[Any] = []
    files = wait_for_model(process, early)
    if files is None:
        return
    template = load_template(files, process.config.chat_template)
    encoder = load_encoder(files)
    grammars = GrammarChecker(files.vocab_size, encoder.special_ids) if files.tokenizer_folder else None
    preparer = Preparer(encoder, template, files.max_model_len, files.vocab_size, grammars)
    answer = recorded(preparer.answer, process.spans)
    pool = Pool(process.config.tokenizer_threads, answer, process.outbox(process.name))
    router = Router(answer, pool.ask, lambda name, message: process.peer(name).send(message))
    process.ready()
    try:
        for message in early:
            router.handle(message)
        while process.running:
            for message in process.receive():
                router.handle(message)
            process.stats = router.stats()
    finally:
        pool.close()


def recorded(answer: Callable[[Question], Answer], spans: Spans) -> Callable[[Question], Answer]:
    """The same, with a span for each request while somebody profiles."""

    def answer_and_record(question: Question) -> Answer:
        begun = time.monotonic_ns() if spans.on and type(question) is Generate else 0
        found = answer(question)
        if begun:
            spans.add(TOKENIZE, begun, question.rid, thread_number())
        return found

    return answer_and_record


def wait_for_model(process: Process, early: list[Any]) -> ModelFiles | None:
    """The model's name and files, when the supervisor knows them; None when there is a shutdown before.

    Other messages that have come by then are added to `early`.
    """
    files = None
    while process.running and files is None:
        for message in process.receive():
            if type(message) is ModelFiles:
                files = message
            else:
                early.append(message)
    return files
