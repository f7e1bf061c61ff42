"""The house rules: who may import whom, who may load torch, and what must not be anywhere."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "ipc": set(),
    "gateway": {"ipc"},
    "tokenizer_proc": {"ipc"},
    "scheduler_proc": {"ipc"},
    "model_proc": {"ipc"},
    "detok_proc": {"ipc"},
    "supervision": {"ipc"},
    "launch": {"supervision", "ipc"},
    "quintet": {"supervision", "ipc"},
}
TORCH = {"torch", "transformers"}  # transformers brings torch along
PICKLES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
EVERYWHERE = [*ROOMS, "benchmark", "deploy", "tests"]
LIGHT = ["gateway", "tokenizer_proc", "scheduler_proc", "detok_proc"]


def files_of(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    ours = set(ROOMS) | {"benchmark", "deploy", "tests"}
    for path in files_of(room):
        used = set(imports(path))
        assert used & ours <= ROOMS[room] | {room}, path
        assert room == "model_proc" or not used & TORCH, path


@pytest.mark.parametrize("path", [path for room in EVERYWHERE for path in files_of(room)], ids=str)
def test_no_pickle_anywhere(path: Path) -> None:
    assert not set(imports(path)) & PICKLES
    source = path.read_text()
    if path != Path(__file__):
        for call in ("send_pyobj", "recv_pyobj", "torch.load("):
            assert call not in source


@pytest.mark.parametrize("room", LIGHT)
def test_the_light_processes_start_without_torch(room: str) -> None:
    script = f"import json, sys, {room}.main; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(json.loads(out.stdout)) & TORCH


def test_no_file_outgrows_its_room() -> None:
    sizes = {path: len(path.read_text().splitlines()) for room in ROOMS for path in files_of(room)}
    assert {str(path): size for path, size in sizes.items() if size > 600} == {}
