"""A tokenizer without tokenizer.json (a SentencePiece model, or vocab.json and merges.txt) to one that has it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

from model_proc.files.model_files import ModelFilesError


def convert_tokenizer(source: Path, target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template of model folder `source` into `target`.

    Raises ModelFilesError when `transformers` cannot make a fast tokenizer of it.
    """
    from transformers import AutoTokenizer
    from transformers import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a foreign tokenizer raises, the remedy is the same
        raise _impossible(source, f"{type(error).__name__}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if not tokenizer.is_fast:
        raise _impossible(source, "it has no fast form")
    tokenizer.save_pretrained(target)


def _impossible(source: Path, reason: str) -> ModelFilesError:
    remedy = "put a tokenizer.json beside it"
    if (source / "tokenizer.model").exists() and importlib.util.find_spec("sentencepiece") is None:
        remedy = f"run: pip install sentencepiece protobuf (or {remedy})"
    return ModelFilesError(f"the tokenizer in {source} cannot be converted to tokenizer.json; {remedy} ({reason})")
