"""The one table of user-facing options: command line, environment, config file and offline API are all made from it.

Names are vLLM's; SGLang's are accepted as aliases. A value is looked for on the command line, then in the environment
(`QUINTET_` and the name in capitals), then in the `--config` file, then here. An unknown name is an error everywhere.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


class OptionError(ValueError):
    """An option that does not exist or has a value that it cannot have; the text names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `kind` reads a string; a `bool` kind makes a `--x/--no-x` pair, a `list` kind takes several words."""

    name: str
    kind: Any
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()  # flags that switch a bool off, beside --no-NAME
    choices: tuple[str, ...] = ()
    check: Callable[[Any], str | None] | None = None  # what is wrong with a value, if anything

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def at_least(low: float) -> Callable[[Any], str | None]:
    return lambda value: None if value >= low else f"must be at least {low}"


def between(low: float, high: float) -> Callable[[Any], str | None]:
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def power_of_two(value: int) -> str | None:
    return None if value > 0 and value & (value - 1) == 0 else "must be a power of two"


def positive_numbers(values: list[str]) -> str | None:
    return None if all(value.isdecimal() and int(value) > 0 for value in values) else "must be numbers above 0"


OPTIONS: dict[str, list[Option]] = {
    "Model": [
        Option(
            "model",
            str,
            "smollm2-135m",
            "smollm2-135m (embedded), a local folder, a .gguf file, a Hugging Face id, or mock",
            aliases=("--model-path",),
        ),
        Option("served_model_name", list, [], "public names of the model; the first one is shown"),
        Option("device", str, "auto", "where the model runs", choices=("auto", "cpu", "cuda")),
        Option(
            "dtype", str, "auto", "type of weights and KV cache", choices=("auto", "float32", "bfloat16", "float16")
        ),
        Option(
            "max_model_len",
            int,
            0,
            "longest prompt and output together, in tokens; 0 is the model's own limit",
            aliases=("--context-length",),
            check=at_least(0),
        ),
        Option("load_format", str, "auto", "the checkpoint's weights, or random ones", choices=("auto", "dummy")),
        Option(
            "model_impl",
            str,
            "auto",
            "our own decoder or transformers; auto takes our own where it knows the model",
            choices=("auto", "native", "transformers"),
        ),
        Option(
            "attention_backend",
            str,
            "auto",
            "how attention is computed; auto is triton on a GPU",
            choices=("auto", "torch", "triton"),
        ),
        Option("enforce_eager", bool, False, "no CUDA graphs: every kernel is launched on its own"),
        Option(
            "cudagraph_capture_sizes",
            list,
            [],
            "numbers of decoding sequences that get a CUDA graph; others are padded to the next one",
            aliases=("--cuda-graph-bs",),
            check=positive_numbers,
        ),
        Option("chat_template", str, "", "file with a Jinja chat template, instead of the model's own"),
        Option("num_threads", int, 0, "CPU threads of the model process; 0 chooses", check=at_least(0)),
    ],
    "Server": [
        Option("host", str, "127.0.0.1", "address to listen on"),
        Option("port", int, 8000, "port to listen on", check=between(0, 65535)),
        Option("max_body_mib", int, 32, "largest request body, MiB", check=between(1, 48)),
        Option(
            "shutdown_timeout", float, 30.0, "seconds that running requests get to finish at SIGTERM", check=at_least(0)
        ),
        Option("tokenizer_threads", int, 2, "threads for chat templates and tokenizing", check=at_least(1)),
        Option("log_level", str, "info", "how much the processes say", choices=("debug", "info", "warning", "error")),
    ],
    "Scheduler": [
        Option(
            "max_num_seqs",
            int,
            256,
            "sequences in the running batch",
            aliases=("--max-running-requests",),
            check=between(1, 65536),
        ),
        Option(
            "max_num_batched_tokens",
            int,
            2048,
            "token budget of one step: decodes and prefill chunks together",
            aliases=("--max-prefill-tokens",),
            check=at_least(1),
        ),
        Option("enable_chunked_prefill", bool, True, "cut long prompts to the token budget"),
        Option(
            "enable_prefix_caching",
            bool,
            True,
            "reuse the KV blocks of equal prefixes",
            negations=("--disable-radix-cache",),
        ),
        Option("pipeline_depth", int, 2, "steps planned before the first one's result is there", check=between(1, 8)),
        Option(
            "max_num_queued_reqs",
            int,
            1024,
            "waiting requests; more are answered with 429",
            aliases=("--max-queued-requests",),
            check=at_least(1),
        ),
    ],
    "KV cache": [
        Option("block_size", int, 16, "tokens in one KV block", aliases=("--page-size",), check=power_of_two),
        Option(
            "num_gpu_blocks_override", int, 0, "number of KV blocks, whatever the memory; 0 chooses", check=at_least(0)
        ),
        Option("kv_cache_memory_bytes", int, 0, "memory of the KV cache; 0 chooses", check=at_least(0)),
        Option(
            "gpu_memory_utilization",
            float,
            0.9,
            "share of the GPU's memory for weights and KV cache",
            aliases=("--mem-fraction-static",),
            check=between(0.05, 1.0),
        ),
    ],
}


def all_options() -> list[Option]:
    return [option for group in OPTIONS.values() for option in group]


def from_command_line(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """All options by name, from arguments, environment and config file. Raises OptionError; `--help` exits."""
    parser = _build_parser()
    given = vars(parser.parse_args(argv))
    config_file = given.pop("config", None) or environ.get("QUINTET_CONFIG")
    positional = given.pop("model_tag", None)
    if positional is not None:
        if "model" in given:
            raise OptionError("the model is given twice: once by position, once as --model")
        given["model"] = positional
    layers = [_from_file(Path(config_file)) if config_file else {}, _from_environment(environ), given]
    return complete({name: value for layer in layers for name, value in layer.items()})


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values checked, and every other option at its default. Raises OptionError."""
    options = {option.name: option for option in all_options()}
    for name in given:
        if name not in options:
            raise OptionError(f"unknown option {name!r}{_nearest(name, options)}")
    values = {}
    for name, option in options.items():
        values[name] = _checked(option, given[name]) if name in given else option.default
    return values


def _checked(option: Option, value: Any) -> Any:
    if option.kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise OptionError(f"{option.flag}: expected a list of words, got {value!r}")
    elif option.kind is float and type(value) is int:
        value = float(value)
    elif type(value) is not option.kind:
        raise OptionError(f"{option.flag}: expected {option.kind.__name__}, got {value!r}")
    if option.choices and value not in option.choices:
        raise OptionError(f"{option.flag}: {value!r} is none of {', '.join(option.choices)}")
    wrong = option.check(value) if option.check else None
    if wrong:
        raise OptionError(f"{option.flag}: {wrong}, got {value!r}")
    return value


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read(option: Option, text: str, origin: str) -> Any:
    if option.kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise OptionError(f"{origin}: expected true or false, got {text!r}")
    if option.kind is list:
        return text.split()
    try:
        return option.kind(text)
    except ValueError:
        raise OptionError(f"{origin}: expected {option.kind.__name__}, got {text!r}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for option in all_options():
        variable = f"QUINTET_{option.name.upper()}"
        if variable in environ:
            values[option.name] = _read(option, environ[variable], variable)
    return values


def _from_file(path: Path) -> dict[str, Any]:
    loaders: dict[str, Callable[[str], Any]] = {
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
        ".json": json.loads,
    }
    load = loaders.get(path.suffix)
    if load is None:
        raise OptionError(f"--config {path}: the file must end in {', '.join(loaders)}")
    try:
        values = load(path.read_text())
    except OSError as error:
        raise OptionError(f"--config {path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise OptionError(f"--config {path}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise OptionError(f"--config {path}: expected names and values")
    return {name.replace("-", "_"): value for name, value in values.items()}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, the nearest flag, no usage dump."""

    def error(self, message: str) -> Any:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            flags = {flag: None for option in all_options() for flag in (option.flag, *option.aliases)}
            message = f"unknown option {unknown}{_nearest(unknown.split()[0].split('=')[0], flags)}"
        raise OptionError(message)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="quintet",
        description="Serve a large language model from five processes over OpenAI-style HTTP.",
        epilog="Every option can also be set as QUINTET_NAME in the environment or as a line of the --config file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="same as --model")
    parser.add_argument("--config", metavar="FILE", help="options from a .yaml, .toml or .json file")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            _add(group, option)
    return parser


def _add(group: Any, option: Option) -> None:
    if option.kind is bool:
        text = f"{option.help} (default: {'on' if option.default else 'off'})"
        group.add_argument(
            option.flag, *option.aliases, dest=option.name, help=text, action=argparse.BooleanOptionalAction
        )
        if option.negations:
            group.add_argument(
                *option.negations, dest=option.name, action="store_false", help=f"same as --no-{option.flag[2:]}"
            )
        return
    shown = f" (default: {option.default})" if option.default not in ("", []) else ""
    kind = str if option.kind is list else option.kind
    many = {"nargs": "+"} if option.kind is list else {}
    group.add_argument(
        option.flag,
        *option.aliases,
        dest=option.name,
        type=kind,
        help=option.help + shown,
        choices=option.choices or None,
        metavar=None if option.choices else kind.__name__.upper(),
        **many,
    )
