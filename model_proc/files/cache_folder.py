"""Folders in the user's cache that are either whole or not there.

A folder is filled under a temporary name beside its place, flushed to the disk, and renamed into place; a crash at any
moment leaves nothing that is taken for whole. Its manifest, `quintet.json`, says which files it must hold. A folder
that was damaged later (a file missing, cut short or, if small, changed) is found by that manifest and built again.
One process builds at a time, under a lock that the kernel releases when its holder dies; the others wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from model_proc.files.model_files import ModelFilesError, Progress

log = logging.getLogger(__name__)

MANIFEST = "quintet.json"
HASHED_BYTES = 64 * 1024 * 1024
"""Files up to this size are checked by content, larger ones (the weights) by size: a start must stay quick."""


def ensure_folder(folder: Path, details: dict[str, Any], fill: Callable[[Path], None], progress: Progress) -> None:
    """Make `folder` whole: return at once when it is, else have `fill(temporary_folder)` write its files.

    `details` goes into the manifest beside the list of files. Raises ModelFilesError when the cache cannot be written.
    """
    fault = find_fault(folder)
    if fault is None:
        return
    if folder.exists():
        log.warning("rebuilding %s: %s", folder, fault)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), progress):
            if find_fault(folder) is not None:
                _build(folder, details, fill)
    except OSError as error:
        raise _explain(folder.parent, error) from error


def find_fault(folder: Path) -> str | None:
    """Why `folder` is not whole, or None when it is."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        for name, entry in files.items():
            path = folder / name
            if path.stat().st_size != entry["size"]:
                return f"{name} has the wrong size"
            if entry["sha256"] != _small_file_hash(path):
                return f"{name} was changed"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its manifest is damaged"
    return None


def _build(folder: Path, details: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and swap it in. The caller holds the lock, so every other temporary folder is dead."""
    prefix = f".{folder.name}.tmp-"
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f"{prefix}{os.getpid()}")
    temporary.mkdir()
    try:
        fill(temporary)
        paths = sorted(path for path in temporary.iterdir() if path.is_file())
        files = {path.name: {"size": path.stat().st_size, "sha256": _small_file_hash(path)} for path in paths}
        manifest = temporary / MANIFEST
        manifest.write_text(json.dumps({**details, "files": files}, indent=2) + "\n")
        for path in (*paths, manifest, temporary):
            _flush(path)
        if folder.exists():
            folder.rename(folder.with_name(f"{prefix}damaged"))
        temporary.rename(folder)
        _flush(folder.parent)
    finally:
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process to convert the model", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _small_file_hash(path: Path) -> str | None:
    if path.stat().st_size > HASHED_BYTES:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(parent: Path, error: OSError) -> ModelFilesError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelFilesError(f"the disk of the model cache {parent} is full; free some space, or set QUINTET_CACHE")
    return ModelFilesError(
        f"cannot write the model cache {parent} ({error.strerror}); set QUINTET_CACHE to a folder that can be written"
    )
