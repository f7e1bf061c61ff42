"""Options: one table, four sources, and an error that names the thing and the remedy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ipc.config import SECTIONS, RingConfig, section
from ipc.option_table import all_options
from ipc.options import OptionError, complete, from_command_line


def test_defaults_fill_every_section() -> None:
    options = from_command_line([], {})
    assert options == complete({})
    for cls in SECTIONS.values():
        section(cls, options)
    used = {field.name for cls in SECTIONS.values() for field in fields(cls)}
    supervisors = {
        "tokenizer_workers",
        "detokenizer_workers",
        "shutdown_timeout",
        "log_level",
        "log_format",
        "restart_limit",
        "execute_timeout",
    }
    assert {option.name for option in all_options()} == used | supervisors, "every option has a reader"
    assert "log_level" in {field.name for field in fields(RingConfig)}


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 1\nmax-num-seqs: 2\nblock_size: 32\nserved_model_name: [a, b]\n")
    environ = {"QUINTET_PORT": "3", "QUINTET_MAX_NUM_SEQS": "4", "QUINTET_ENABLE_PREFIX_CACHING": "off"}
    options = from_command_line(["--config", str(file), "--port", "5"], environ)
    assert (options["port"], options["max_num_seqs"], options["block_size"]) == (5, 4, 32)
    assert options["served_model_name"] == ["a", "b"]
    assert options["enable_prefix_caching"] is False


@pytest.mark.parametrize(
    ("suffix", "text"), [(".toml", 'model = "mock"\nport = 9'), (".json", '{"model": "mock", "port": 9}')]
)
def test_other_config_files(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"config{suffix}"
    file.write_text(text)
    options = from_command_line([], {"QUINTET_CONFIG": str(file)})
    assert (options["model"], options["port"]) == ("mock", 9)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["mock"], "model", "mock"),
        (["--model-path", "x"], "model", "x"),
        (["--context-length", "99"], "max_model_len", 99),
        (["--max-running-requests", "7"], "max_num_seqs", 7),
        (["--page-size", "64"], "block_size", 64),
        (["--disable-radix-cache"], "enable_prefix_caching", False),
        (["--no-enable-chunked-prefill"], "enable_chunked_prefill", False),
        (["--mem-fraction-static", "0.5"], "gpu_memory_utilization", 0.5),
        (["--served-model-name", "a", "b"], "served_model_name", ["a", "b"]),
    ],
)
def test_names_and_aliases(argv: list[str], name: str, value: Any) -> None:
    assert from_command_line(argv, {})[name] == value


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["--max-num-seq", "3"], {}, "unknown option --max-num-seq.*did you mean '--max-num-seqs'"),
        (["--block-size", "24"], {}, "--block-size: must be a power of two, got 24"),
        (["--port", "99999"], {}, "--port: must be between 0 and 65535"),
        (["--port", "many"], {}, "argument --port: invalid int value: 'many'"),
        (["--dtype", "int4"], {}, "--dtype: invalid choice: 'int4'"),
        (["mock", "--model", "x"], {}, "given twice"),
        ([], {"QUINTET_PORT": "x"}, "QUINTET_PORT: expected int, got 'x'"),
        ([], {"QUINTET_PROT": "1"}, "unknown option QUINTET_PROT in the environment; did you mean 'QUINTET_PORT'"),
        ([], {"QUINTET_ENABLE_PREFIX_CACHING": "maybe"}, "expected true or false"),
        (["--config", "nowhere.yaml"], {}, "nowhere.yaml: No such file"),
        (["--config", "x.ini"], {}, "must end in"),
    ],
)
def test_errors_name_the_thing_and_the_remedy(argv: list[str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        from_command_line(argv, environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "config.yaml: unknown option 'prot'; did you mean 'port'"),
        ("port: eighty", "config.yaml: --port: expected int, got 'eighty'"),
        ("port: true", "--port: expected int, got True"),
        ("- 1", "expected names and values"),
        ("a: [", "config.yaml: .*line 1"),
    ],
)
def test_config_file_errors(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message):
        from_command_line(["--config", str(file)], {})


EVENTS = {"kv_events_endpoint": "tcp://127.0.0.1:5557"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kv_events_endpoint": "5557"}, "--kv-events-endpoint: must be like tcp://127.0.0.1:5557 or ipc://"),
        ({"kv_events_endpoint": "tcp://127.0.0.1:0"}, "--kv-events-endpoint: must be like"),
        ({"kv_events_endpoint": "tcp://127.0.0.1:99999"}, "--kv-events-endpoint: must be like"),
        ({"kv_events_endpoint": "tcp://[::1]"}, "--kv-events-endpoint: must be like"),
        ({"kv_events_endpoint": "inproc://x"}, "--kv-events-endpoint: must be like"),
        (EVENTS | {"kv_events_replay_endpoint": "x"}, "--kv-events-replay-endpoint: must be like"),
        (EVENTS | {"kv_events_buffer_steps": 0}, "--kv-events-buffer-steps: must be between 1 and"),
        (EVENTS | {"enable_prefix_caching": False}, "--kv-events-endpoint: needs --enable-prefix-caching"),
        (EVENTS | {"kv_events_replay_endpoint": "tcp://127.0.0.1:5557"}, "must differ from --kv-events-endpoint"),
        ({"kv_events_replay_endpoint": "tcp://*:5558"}, "--kv-events-replay-endpoint: needs --kv-events-endpoint"),
        ({"kv_events_topic": "kv"}, "--kv-events-topic: needs --kv-events-endpoint"),
        (EVENTS | {"kv_events_buffer_steps": 5}, "--kv-events-buffer-steps: needs --kv-events-replay-endpoint"),
    ],
)
def test_what_kv_events_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        complete(values)


@pytest.mark.parametrize("endpoint", ["tcp://*:5557", "tcp://localhost:1", "tcp://[::]:65535", "ipc:///tmp/x"])
def test_where_kv_events_can_be(endpoint: str) -> None:
    assert complete({"kv_events_endpoint": endpoint})["kv_events_endpoint"] == endpoint
