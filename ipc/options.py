"""Values for the options of `ipc.option_table`, from whoever sets them, checked alone and together.

A value is looked for on the command line, then in the environment (`QUINTET_` and the name in capitals), then in the
`--config` file, then in the table. An unknown name is an error everywhere.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ipc.option_table import KV_EVENTS_BUFFER_STEPS, OPTIONS, Option, all_options

# Variables of this name that are no options: see `from_command_line`, `ipc.faults` and the model's files.
OTHER_VARIABLES = ("QUINTET_CONFIG", "QUINTET_FAULT", "QUINTET_CACHE")


class OptionError(ValueError):
    """An option that does not exist or has a value that it cannot have; the text names it and the remedy."""


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
    _check_together(values)
    return values


def _check_together(values: Mapping[str, Any]) -> None:
    """No option is accepted and then ignored because of another one."""
    if not values["enable_chunked_prefill"]:
        for name in ("long_prefill_token_threshold", "max_num_partial_prefills", "max_long_partial_prefills"):
            if values[name]:
                raise OptionError(f"--{name.replace('_', '-')}: needs --enable-chunked-prefill, which is off")
    if values["max_long_partial_prefills"] and not values["long_prefill_token_threshold"]:
        raise OptionError("--max-long-partial-prefills: needs --long-prefill-token-threshold, which says what is long")
    if bool(values["ssl_certfile"]) != bool(values["ssl_keyfile"]):
        raise OptionError("--ssl-certfile and --ssl-keyfile: both are needed for HTTPS, or neither")
    if values["ssl_ca_certs"] and not values["ssl_certfile"]:
        raise OptionError("--ssl-ca-certs: needs --ssl-certfile and --ssl-keyfile, for clients show theirs over HTTPS")
    if values["uds"] and values["host"] != "127.0.0.1":
        raise OptionError("--uds: the server listens there and nowhere else; leave --host out")
    if values["uds"] and values["gateway_workers"] > 1:
        raise OptionError("--gateway-workers: a Unix socket (--uds) has one listener; several share a port only")
    if values["tensor_parallel_size"] > 1 and values["model"] == "mock":
        raise OptionError("--tensor-parallel-size: the mock has no layers to share; only for a real model")
    if not values["enable_metrics"] and not values["vllm_metrics"]:
        raise OptionError("--no-vllm-metrics: needs --enable-metrics, which is off")
    _check_kv_events(values)
    if values["model"] != "mock":
        for name, neutral in (("mock_profile", "instant"), ("mock_lanes", 1)):
            if values[name] != neutral:
                raise OptionError(f"--{name.replace('_', '-')}: only for --model mock, not for {values['model']}")


def _check_kv_events(values: Mapping[str, Any]) -> None:
    endpoint, replay_endpoint = values["kv_events_endpoint"], values["kv_events_replay_endpoint"]
    if endpoint and not values["enable_prefix_caching"]:
        raise OptionError("--kv-events-endpoint: needs --enable-prefix-caching, which is off")
    if endpoint and endpoint == replay_endpoint:
        raise OptionError("--kv-events-replay-endpoint: must differ from --kv-events-endpoint")
    for name in ("kv_events_replay_endpoint", "kv_events_topic"):
        if values[name] and not endpoint:
            raise OptionError(f"--{name.replace('_', '-')}: needs --kv-events-endpoint, where events are published")
    if values["kv_events_buffer_steps"] != KV_EVENTS_BUFFER_STEPS and not replay_endpoint:
        raise OptionError("--kv-events-buffer-steps: needs --kv-events-replay-endpoint, where kept steps are asked for")


def _checked(option: Option, value: Any) -> Any:
    if option.kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise OptionError(f"{option.flag}: expected a list of words")  # unseen: they may be keys
    elif option.kind is float and type(value) is int:
        value = float(value)
    elif type(value) is not option.kind:
        raise OptionError(f"{option.flag}: expected {option.kind.__name__}, got {value!r}")
    if option.choices and value not in option.choices:
        raise OptionError(f"{option.flag}: {value!r} is none of {', '.join(option.choices)}")
    wrong = option.check(value) if option.check else None
    if wrong:
        raise OptionError(f"{option.flag}: {wrong}" + ("" if option.kind is list else f", got {value!r}"))
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
    options = {f"QUINTET_{option.name.upper()}": option for option in all_options()}
    values = {}
    for variable, text in environ.items():
        if variable in options:
            values[options[variable].name] = _read(options[variable], text, variable)
        elif variable.startswith("QUINTET_") and variable not in OTHER_VARIABLES:
            raise OptionError(f"unknown option {variable} in the environment{_nearest(variable, options)}")
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
        raise OptionError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise OptionError(f"--config {path}: expected names and values")
    options = {option.name: option for option in all_options()}
    values = {name.replace("-", "_"): value for name, value in values.items()}
    for name, value in values.items():
        if name not in options:
            raise OptionError(f"--config {path}: unknown option {name!r}{_nearest(name, options)}")
        try:
            _checked(options[name], value)
        except OptionError as error:
            raise OptionError(f"--config {path}: {error}") from None
    return values


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
    many = {"nargs": "+", "action": "extend"} if option.kind is list else {}
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
