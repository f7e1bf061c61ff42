"""The cache of conversions: whole or not there, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_proc.files import cache_folder
from model_proc.files.cache_folder import MANIFEST, find_fault
from model_proc.files.checkpoint import resolve
from model_proc.files.model_files import ModelFilesError
from model_proc.gguf import convert as gguf_convert
from tests.model_proc import gguf_samples as samples
from tests.model_proc.gguf_samples import silent

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    return samples.write_gguf(tmp_path / "tiny.gguf", "llama", samples.metadata("llama"), samples.tensors("llama"))


def age(folder: Path) -> int:
    return folder.stat().st_ino


def test_a_whole_conversion_is_used_again(gguf_file: Path, cache: Path) -> None:
    first = resolve(str(gguf_file), cache, silent)
    made = age(first.folder)
    reports: list[Any] = []
    assert resolve(str(gguf_file), cache, lambda *report: reports.append(report)) == first
    assert age(first.folder) == made
    assert reports == []


def test_a_changed_file_is_converted_anew(gguf_file: Path, cache: Path) -> None:
    first = resolve(str(gguf_file), cache, silent)
    os.utime(gguf_file, ns=(0, 0))
    assert resolve(str(gguf_file), cache, silent).folder != first.folder


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", MANIFEST])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
def test_a_damaged_conversion_is_built_again(
    gguf_file: Path, cache: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = resolve(str(gguf_file), cache, silent).folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder / name)
    if name == MANIFEST and damage is flip:
        (folder / MANIFEST).write_text('{"files": 7}')
    assert find_fault(folder) is not None
    assert resolve(str(gguf_file), cache, silent).folder == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert [path for path in folder.parent.iterdir() if ".tmp-" in path.name] == []


def test_large_files_are_checked_by_their_size(gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "HASHED_BYTES", 1000)
    folder = resolve(str(gguf_file), cache, silent).folder
    assert json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"]["sha256"] is None
    assert find_fault(folder) is None
    truncate(folder / "model.safetensors")
    assert find_fault(folder) == "model.safetensors has the wrong size"


def test_a_crash_in_the_middle_leaves_nothing_that_is_taken_for_whole(gguf_file: Path, cache: Path) -> None:
    """The process ends without any clean-up, with half of the weights written."""
    code = (
        "import os, sys; from pathlib import Path; from model_proc.files.checkpoint import resolve\n"
        "def die(phase, done, total):\n"
        "    if done > total // 2: os._exit(3)\n"
        "resolve(sys.argv[1], Path(sys.argv[2]), die)"
    )
    crashed = subprocess.run([sys.executable, "-c", code, str(gguf_file), str(cache)], cwd=REPOSITORY)
    assert crashed.returncode == 3
    assert [path.name for path in (cache / "gguf").iterdir() if ".tmp-" in path.name]
    folder = resolve(str(gguf_file), cache, silent).folder
    assert find_fault(folder) is None
    assert [path for path in (cache / "gguf").iterdir() if ".tmp-" in path.name] == []


def test_processes_that_convert_at_the_same_time_share_one_conversion(gguf_file: Path, cache: Path) -> None:
    """The first holds the lock until the second says that it waits for it."""
    code = (
        "import sys; from pathlib import Path; from model_proc.files.checkpoint import resolve\n"
        "def report(phase, done, total):\n"
        "    print(phase, flush=True)\n"
        "    if phase == 'convert' and done == total: sys.stdin.readline()\n"
        "print(resolve(sys.argv[1], Path(sys.argv[2]), report).folder, flush=True)"
    )
    command = [sys.executable, "-c", code, str(gguf_file), str(cache)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "convert\n"
        with start() as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting for another process to convert the model\n"
            said_by_first, _ = first.communicate("go on\n")
            said_by_second, _ = second.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    folder = said_by_first.splitlines()[-1]
    assert said_by_second.splitlines() == [folder]
    assert find_fault(Path(folder)) is None


def test_a_cache_that_cannot_be_written(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelFilesError) as refusal:
        resolve(str(gguf_file), tmp_path / "file", silent)
    said = str(refusal.value)
    assert said.startswith(f"cannot write the model cache {tmp_path / 'file' / 'gguf'} (Not a directory); set QUINTET")


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "the disk of the model cache"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_fails_during_the_conversion(
    gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(gguf_convert, "_write_weights", fail)
    with pytest.raises(ModelFilesError) as refusal:
        resolve(str(gguf_file), cache, silent)
    said = str(refusal.value)
    assert message in said
    assert "QUINTET_CACHE" in said
    assert [path.name for path in (cache / "gguf").iterdir() if not path.name.endswith(".lock")] == []
