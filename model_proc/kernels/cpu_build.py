"""Compiles the CPU kernels (`model_proc/kernels/cpu/`) for this machine's processor, once, into the user's cache.

Any C++ compiler will do; `pip install ziglang` brings one to a machine that has none. Without one, the model runs on
plain PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from model_proc.files.model_files import Progress

SOURCES = Path(__file__).resolve().parent / "cpu"
NEEDED = {"avx2", "fma", "f16c"}
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread", "-w",
)  # fmt: skip
TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


class NoKernelsError(Exception):
    """There are no CPU kernels here; the text says why, and what to do."""


def build(cache_dir: Path, progress: Progress) -> Path:
    """The shared library with the kernels, compiled now unless it is in the cache. Raises NoKernelsError."""
    features = _processor_features()
    if missing := NEEDED - features:
        raise NoKernelsError(f"they need an x86-64 processor with {', '.join(sorted(missing))}")
    identity = hashlib.sha256(" ".join([*FLAGS, *sorted(features)]).encode())
    for path in sorted(SOURCES.iterdir()):
        identity.update(path.name.encode() + path.read_bytes())
    library = cache_dir / "kernels" / f"cpu-{identity.hexdigest()[:16]}.so"
    if not library.is_file():
        compiler = _find_compiler()
        progress("compile the CPU kernels", 0, 0)
        _compile(compiler, library)
    return library


def _find_compiler() -> list[str]:
    """How to call a C++ compiler. Raises NoKernelsError when there is none."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise NoKernelsError("there is no C++ compiler; install g++ or clang++, or: pip install ziglang")


def _compile(compiler: list[str], library: Path) -> None:
    """Under a name of its own first: whoever finds the library finds it whole."""
    unfinished = library.with_name(f".{library.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, "-o", str(unfinished), str(SOURCES / "kernels.cpp")]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode:
            log.warning("%s failed:\n%s", shlex.join(command), done.stderr)
            raise NoKernelsError(f"{compiler[0]} could not compile them; the log says more")
        unfinished.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernelsError(f"they could not be compiled ({error})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _processor_features() -> set[str]:
    """The processor's features by the names of Linux; empty on other systems and processors."""
    if platform.machine() != "x86_64":
        return set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())
